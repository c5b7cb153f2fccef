"""What a run is told: one frozen, typed :class:`Config`, from TOML < environment ``HPCPS_*`` < ``--set``.

Every key has one line of help (options.py), which errors repeat; what cannot be done is in refusals.py. Paths in a file
are relative to that file; paths from the environment and the command line are relative to the working directory.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from hpcps.config.options import HELP, Checkpoint, Compress, Config, Data, Model, Optimizer, Run, Server, Train, help_of
from hpcps.config.refusals import check, signal_names
from hpcps.errors import ConfigError

__all__ = ["HELP", "Checkpoint", "Compress", "Config", "Data", "Model", "Optimizer", "Run", "Server", "Train"]
__all__ += ["as_tree", "from_tree", "read", "signal_names", "to_toml"]

_SECTIONS = get_type_hints(Config)
_PATHS: tuple[str, ...] = (
    "data.path",
    "data.labels",
    "data.test",
    "model.kind",
    "model.scores",
    "optimizer.kind",
    "server.replay",
)
_PATHS += ("checkpoint.path",)


def read(path: Path | None, environment: Mapping[str, str] | None = None, settings: Iterable[str] = ()) -> Config:
    """The configuration of ``path`` (TOML), overridden by ``HPCPS_SECTION_KEY`` variables and ``section.key=value``
    settings. Raises ConfigError naming the file or the key."""
    tree = _read_toml(path) if path is not None else {}
    source = str(path) if path is not None else "configuration"
    overrides: dict[str, Any] = {}
    for key, text in [*_environment(environment or {}), *map(_split_setting, settings)]:
        _put(overrides, key, text)
    _make_absolute(overrides, Path.cwd())
    _merge(tree, overrides)
    return from_tree(tree, source)


def from_tree(tree: Mapping[str, Any], source: str = "configuration") -> Config:
    """A checked Config from nested dictionaries. Raises ConfigError naming the key."""
    _refuse_unknown(tree, source)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error))}") from error
    check(config, source)
    return config


def to_toml(config: Config) -> str:
    """The whole configuration as TOML, defaults included; :func:`read` takes it back."""
    tree = msgspec.to_builtins(config)
    lines = []
    for section, values in tree.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_literal(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def as_tree(config: Config) -> dict[str, Any]:
    """The whole configuration as nested dictionaries of what JSON knows."""
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    return tree


def _literal(value: Any) -> str:
    """A TOML value; JSON's strings, numbers, booleans and arrays are TOML's."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_literal(key)} = {_literal(item)}" for key, item in value.items())
        return "{" + inside + "}"
    return msgspec.json.encode(value).decode()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: its tables or arrays are too deep") from error
    except ValueError as error:  # TOML's own, and of numbers with thousands of digits
        raise ConfigError(f"{path}: {error}") from error
    _make_absolute(tree, path.absolute().parent)
    return tree


def _make_absolute(tree: Mapping[str, Any], folder: Path) -> None:
    """Paths relative to ``folder`` as absolute ones, so that the run's copy holds anywhere; names stay names."""
    for key in _PATHS:
        section, name = key.split(".")
        values = tree.get(section)
        if not isinstance(values, dict) or not isinstance(values.get(name), str):
            continue
        value = values[name]
        if section in ("model", "optimizer"):
            is_path = ":" in value
        else:
            is_path = section in ("server", "checkpoint") or any(mark in value for mark in "/.*?[")
        if value and (is_path or (section == "data" and os.path.exists(folder / value))):
            values[name] = os.path.normpath(folder / value)


def _environment(environment: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """``HPCPS_TRAIN_BATCH=64`` as ``train.batch``; other ``HPCPS_*`` variables are not the configuration's."""
    for name in sorted(environment):
        section, _, key = name.removeprefix("HPCPS_").lower().partition("_")
        if name.startswith("HPCPS_") and section in _SECTIONS and key:
            yield f"{section}.{key}", environment[name]


def _split_setting(setting: str) -> tuple[str, str]:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting}: must be section.key=value")
    return key.strip(), text.strip()


def _put(tree: dict[str, Any], key: str, text: str) -> None:
    section, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    if section not in _SECTIONS or not name:
        raise ConfigError(f"{key}: unknown key{_did_you_mean(key, HELP)}")
    values = tree.setdefault(section, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{section}: must be a table, not {values!r}")
    is_text = get_type_hints(_SECTIONS[section]).get(name) is str
    value = text if is_text else _parse(text)
    if inner:
        below = values.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: {section}.{name} = {below!r} is set as well")
        below[inner] = value
    else:
        values[name] = value


def _merge(tree: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Put the overrides over the tree, table by table. What is no table where one should be is refused later."""
    for name, value in overrides.items():
        below = tree.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            _merge(below, value)
        elif below is None or not isinstance(value, dict):
            tree[name] = value


def _parse(text: str) -> Any:
    """A TOML value, or else the text itself, so that ``train.strategy=ring`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _refuse_unknown(tree: Mapping[str, Any], source: str) -> None:
    for section, values in tree.items():
        if section not in _SECTIONS:
            raise ConfigError(f"{source}: {section}: unknown section{_did_you_mean(section, _SECTIONS)}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: {section}: must be a table, not {values!r}")
        for name in values:
            if f"{section}.{name}" not in HELP:
                raise ConfigError(f"{source}: {section}.{name}: unknown key{_did_you_mean(f'{section}.{name}', HELP)}")


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    sections = ", ".join(sorted({name.split(".")[0] for name in known}))
    return f"; did you mean {close[0]}?" if close else f"; the sections are {sections}"


def _explain(message: str) -> str:
    """msgspec's message with our key in front and its help behind."""
    place = re.search(r" - at `\$\.?([^`]*)`$", message)
    missing = re.search(r"missing required field `(\w+)`", message)
    key = place.group(1) if place else ""
    if missing:
        name = f"{key}.{missing.group(1)}" if key else missing.group(1)
        return f"{name}: missing{help_of(name)}"
    text = message[: place.start()] if place else message
    return f"{key}: {text[:1].lower()}{text[1:]}{help_of(key)}"
