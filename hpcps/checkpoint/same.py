"""Whether a checkpoint is of the run that is to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcps.checkpoint.manifest import Facts

FREE_SECTIONS = ("server", "run", "checkpoint")
FREE = ("epochs", "strategy", "algorithm", "average_every", "average_warmup", "report_every", "backup")
"""Of the section ``train``: what may be another than it was"""
PATHS = ("data.path", "data.labels", "data.test", "model.kind", "model.scores", "optimizer.kind")
"""Of these the last name counts: files may be elsewhere now"""


def different(was: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first key whose value must be as it was and is not, with both values, for people."""
    for section, values in now.items():
        before = was.get(section, {})
        if section in FREE_SECTIONS:
            continue
        for name, value in values.items():
            key, old = f"{section}.{name}", before.get(name)
            if key in PATHS and _last(old) == _last(value):
                continue
            if old != value and not (section == "train" and name in FREE):
                return f"{key} = {value!r}, and was {old!r}"
    return None


def different_data(was: Facts, now: Facts) -> str | None:
    """The same for what the data are."""
    for name in Facts.__struct_fields__:
        if getattr(was, name) != getattr(now, name):
            return f"{getattr(now, name):,} {name.replace('_', ' ')}, not {getattr(was, name):,}"
    return None


def _last(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) else value
