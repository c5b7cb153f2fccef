"""The folder of a run: what is in it, how it is written, and how a finished one is read.

========================= ===========================================================================
``config.toml``           the whole configuration, defaults included
``metrics.jsonl``         one line a report
``model.safetensors``     the parameters, and beside them what prediction needs
``checkpoint/``           where the run can go on from: see ``hpcps/checkpoint``
``order-S.bin``           of a recorded run: in which order shard S took what workers sent
``stall-rank-R.txt``      of a run that has ended standing still: what rank R was doing
``summary.json``          written last: a folder without it is not finished
========================= ===========================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcps.errors import ConfigError, DataError
from hpcps.models import Facts
from hpcps.params import Params
from hpcps.tensors import Stored, stored_here, write_tensors

Array = np.ndarray[Any, Any]

CONFIG, METRICS, MODEL, SUMMARY = "config.toml", "metrics.jsonl", "model.safetensors", "summary.json"
ORDERS, CHECKPOINTS = "order-*.bin", "checkpoint"
STALLS = "stall-rank-*.txt"
_KNOWN = {CONFIG, METRICS, MODEL, SUMMARY, CHECKPOINTS}
_EXTRA = "hpcps."  # prefix of the tensors that are not parameters


@dataclass(frozen=True)
class Trained:
    """A model as it is kept: parameters, and the data's side of it.

    ``shift`` and ``scale``, (D,) float64: the model's input is (x - shift) * scale. ``classes``, (K,) int64: the
    original labels in the order of the class numbers; None for a regression.
    """

    params: Params
    facts: Facts
    classes: Array | None
    shift: Array
    scale: Array


class RunFolder:
    """A folder being written by rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, overwrite: bool, resume: bool = False) -> None:
        """Raise ConfigError if the folder cannot be used: it holds a finished run (which is neither to be replaced nor
        to be trained longer), or things that are no run's, or cannot be written. Nothing in it is changed."""
        if (self.path / SUMMARY).exists() and not overwrite and not resume:
            remedy = "choose another --out, or give --overwrite, or --resume to train it for more epochs"
            raise ConfigError(f"{self.path}: holds a finished run; {remedy}")
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            known = {*_KNOWN, *(path.name for path in [*self.path.glob(ORDERS), *self._half_written()])}
            strangers = [entry.name for entry in self.path.iterdir() if entry.name not in known]
            if strangers and not (self.path / CONFIG).exists():
                raise ConfigError(f"{self.path}: is a folder with other things in it ({strangers[0]}); choose another")
            tempfile.TemporaryFile(dir=self.path).close()

    def begin(self, config_toml: str, steps: int = 0) -> None:
        """Take out what an earlier run left, its metrics up to ``steps`` excepted, and write the configuration. Raises
        ConfigError."""
        with writing(self.path):
            earlier = [path for pattern in (ORDERS, STALLS) for path in self.path.glob(pattern)] + self._half_written()
            for path in [self.path / name for name in (SUMMARY, MODEL)] + earlier:
                path.unlink(missing_ok=True)
            self._cut_metrics(steps)
            write_whole(self.path / CONFIG, lambda file: file.write_text(config_toml, encoding="utf-8"))

    def _half_written(self) -> list[Path]:
        """What ranks have left that were killed in :func:`write_whole`."""
        names = CONFIG, METRICS, MODEL, SUMMARY, ORDERS
        return [path for name in names for path in self.path.glob(f".{name}.*") if path.suffix[1:].isdigit()]

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        with writing(self.path), (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def _cut_metrics(self, steps: int) -> None:
        """Keep the lines of the first so many steps: those behind will come again."""
        path, kept = self.path / METRICS, ""
        if steps and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = "".join(line for line in lines if 0 < _step_of(line) <= steps)
        path.unlink(missing_ok=True)
        if kept:
            write_whole(path, lambda file: file.write_text(kept, encoding="utf-8"))

    def keep(self, name: str, content: bytes) -> None:
        """Write one more file, from any rank."""
        with writing(self.path):
            write_whole(self.path / name, lambda file: file.write_bytes(content))

    def write_model(self, trained: Trained, elsewhere: Mapping[str, Stored]) -> str:
        """Write the model, of which some parameters may be stored ``elsewhere``; returns the SHA-256 of all parameters
        in name order, as little-endian bytes."""
        digests: list[str] = []
        with writing(self.path):
            write_whole(self.path / MODEL, lambda file: digests.append(_write_model(file, trained, elsewhere)))
        return digests[0]

    def end(self, summary: Mapping[str, Any]) -> None:
        """Write the summary that marks the run as finished."""
        text = json.dumps(summary, indent=2) + "\n"
        with writing(self.path):
            write_whole(self.path / SUMMARY, lambda file: file.write_text(text, encoding="utf-8"))


def _step_of(line: str) -> int:
    """The step of a line of metrics; 0 for one that is not whole."""
    try:
        return int(json.loads(line)["step"])
    except (KeyError, TypeError, ValueError):
        return 0


def stall_name(rank: int) -> str:
    """The file in which a rank says what it was doing as the run stood still.

    >>> stall_name(3)
    'stall-rank-3.txt'
    """
    return STALLS.replace("*", str(rank))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a ConfigError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot write there: {error.strerror or error}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, bring it to disk, and put it in place: whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises DataError if there is none."""
    try:
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("not a summary")
    except FileNotFoundError as error:
        why = "is not a finished run" if path.is_dir() else "no such folder"
        raise DataError(f"{path}: {why} ({SUMMARY} is missing)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path / SUMMARY}: {error}") from error
    return summary


def read_model(path: Path) -> Trained:
    """The model of a finished run. Raises DataError naming the file if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = path / MODEL
    try:
        tensors = load_file(file)
        extra = {name.removeprefix(_EXTRA): tensors.pop(name) for name in list(tensors) if name.startswith(_EXTRA)}
        params = _join(tensors)
        features, sparse, entries = (int(_numbers(extra, name, 1)[0]) for name in ("features", "sparse", "entries"))
        ids = tuple(map(int, _numbers(extra, "ids")))
        classes = _numbers(extra, "classes") if "classes" in extra else None
        if len(ids) not in (0, 2) or (classes is not None and len(np.unique(classes)) != max(1, len(classes))):
            raise ValueError("ids or classes are not what they should be")
        # Without memory: nothing but this number says that there are so many features.
        shift, scale = (
            _numbers(extra, name, features, "f") if name in extra else np.broadcast_to(usual, (features,))
            for name, usual in (("shift", 0.0), ("scale", 1.0))
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: cannot be read as a model: {error}") from error
    facts = Facts(features, 0 if classes is None else len(classes), bool(sparse), ids, entries)
    return Trained(params, facts, classes, shift, scale)


def _numbers(tensors: Mapping[str, Array], name: str, count: int | None = None, kinds: str = "ib") -> Array:
    """A tensor of ``count`` finite numbers, of one of these kinds of dtype. Raises ValueError, KeyError."""
    found = tensors[name]
    if found.ndim != 1 or count not in (None, len(found)) or found.dtype.kind not in kinds:
        raise ValueError(f"{name} is {found.shape} of {found.dtype}")
    if not np.isfinite(found).all() or (kinds == "ib" and name != "classes" and (found < 0).any()):
        raise ValueError(f"{name} holds impossible numbers")
    return found


def _join(tensors: Mapping[str, Array]) -> Params:
    shapes = {name: array.shape for name, array in tensors.items()}
    if len({array.dtype for array in tensors.values()}) != 1:
        raise ValueError("its parameters are not of one dtype")
    params = Params.zeros(shapes, np.result_type(*tensors.values()))
    for name, array in tensors.items():
        params[name][...] = array
    return params


def _write_model(file: Path, trained: Trained, elsewhere: Mapping[str, Stored]) -> str:
    """Write the model; returns the SHA-256 of its parameters, in name order, as little-endian bytes."""
    facts = trained.facts
    extra = {"features": np.array([facts.features]), "sparse": np.array([facts.sparse])}
    extra |= {"ids": np.array(facts.ids, np.int64), "entries": np.array([facts.entries])}
    if trained.classes is not None:
        extra["classes"] = trained.classes
    if trained.shift.any():
        extra["shift"] = trained.shift
    if (trained.scale != 1).any():
        extra["scale"] = trained.scale
    params = {**{name: stored_here(array) for name, array in trained.params.items()}, **elsewhere}
    more = {f"{_EXTRA}{name}": stored_here(array) for name, array in extra.items()}
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for name, piece in write_tensors(out, {**params, **more}):
            if name in params:
                digest.update(piece)
    return digest.hexdigest()
