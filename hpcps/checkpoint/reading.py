"""Finds the newest checkpoint that is whole. Nothing of it is believed that was not checked: sizes and types before
memory is taken, all bytes by their SHA-256, names lest they lead elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpcps.checkpoint.folder import CheckpointFolder
from hpcps.checkpoint.manifest import MANIFEST, MANIFEST_BYTES_MAX, FileAbout, Manifest, decode
from hpcps.checkpoint.same import different
from hpcps.errors import CheckpointError, ConfigError
from hpcps.snapshot import Flat, Pieces, Snapshot, TableRows, Values
from hpcps.tensors import Place, read_places
from hpcps.together import Together, agree

DIGEST_BYTES = 4 << 20


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole."""

    path: Path
    manifest: Manifest
    snapshot: Snapshot
    damaged: tuple[str, ...]
    """Newer ones that are not, and why"""


def newest(folder: CheckpointFolder, together: Together, config: dict[str, Any]) -> Found | None:
    """The newest checkpoint that is whole; None where there is none at all. A collective: the ranks share the work.

    Raises ConfigError if it is of a run with another configuration, CheckpointError where all are damaged.
    """
    steps = together.once(lambda: np.array(folder.steps(), np.int64))
    damaged: list[str] = []
    for step in steps[::-1].tolist():
        path = folder.at(step)
        content = together.once(partial(_told, path))
        said = json.loads(content.tobytes()) if content[:1].tobytes() == b'"' else None
        problem = said or _check(path, decode(content.tobytes()), step, together)
        if problem:
            damaged.append(problem)
            continue
        manifest = decode(content.tobytes())
        other = different(manifest.config, config)
        if other:
            raise _known(ConfigError(f"{path}: is a checkpoint of another run: {other}; --overwrite begins anew"))
        return Found(path, manifest, agree(together, partial(_open, path, manifest)), tuple(damaged))
    if damaged:
        more = f" (and {len(damaged) - 1} older)" if len(damaged) > 1 else ""
        raise _known(CheckpointError(f"no checkpoint is whole: {damaged[0]}{more}; --overwrite begins anew"))
    return None


def _known(error: ConfigError | CheckpointError) -> ConfigError | CheckpointError:
    error.known_to_all = True
    return error


def _told(path: Path) -> Any:
    """The bytes of a manifest that can be read, or, as a JSON string, what is wrong with it."""
    file = path / MANIFEST
    try:
        content = _whole(file, MANIFEST_BYTES_MAX)
        decode(content)
    except (OSError, ValueError) as error:
        content = json.dumps(f"{file}: is damaged: {_why(error)}").encode()
    return np.frombuffer(content, np.uint8)


def _check(path: Path, manifest: Manifest, step: int, together: Together) -> str | None:
    """What is wrong with a checkpoint's files, each of which is looked at by one rank; None: nothing."""
    problem = f"{path / MANIFEST}: is of step {manifest.position.steps}" if manifest.position.steps != step else ""
    for file in manifest.files[together.rank :: together.size]:
        try:
            _check_file(path / file.name, file)
        except (OSError, ValueError) as error:
            problem = problem or f"{path / file.name}: is damaged: {_why(error)}"
    told = together.gather(np.frombuffer(f"{problem}\0".encode("utf-8", "backslashreplace"), np.uint8))
    problems = [one.decode() for one in told.tobytes().split(b"\0") if one]
    return problems[0] if problems else None


def _check_file(path: Path, about: FileAbout) -> None:
    """Raise OSError or ValueError unless a file is, byte for byte, what was written."""
    with _regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != about.size:
            raise ValueError(f"it has {size} bytes, not {about.size}")
        digest = hashlib.sha256()
        while block := file.read(DIGEST_BYTES):
            digest.update(block)
    if digest.hexdigest() != about.sha256:
        raise ValueError("its SHA-256 is another")
    _places(path, about)


def _places(path: Path, about: FileAbout) -> dict[str, Place]:
    """Where its tensors lie, which must be those that the manifest names."""
    with _regular(path) as file:
        places = read_places(file, about.size)
    found = {name: (place.dtype.name, place.shape) for name, place in places.items()}
    if found != {name: (tensor.dtype, tensor.shape) for name, tensor in about.tensors.items()}:
        raise ValueError("its tensors are not those of the manifest")
    named = [flat.tensor for flat in about.flats] + [one for table in about.tables for one in table.columns.values()]
    if not set(named) <= set(places):
        raise ValueError("the manifest names a tensor that it does not have")
    if any(not place.shape for place in places.values()) or any("rows" not in table.columns for table in about.tables):
        raise ValueError("a tensor is not of the shape that it should be")
    return places


def _open(path: Path, manifest: Manifest) -> Snapshot:
    """The state of the run; it is read as it is asked for."""
    flats, tables = [], []
    for file in manifest.files:
        try:
            places = _places(path / file.name, file)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path / file.name}: cannot be read: {_why(error)}") from error
        values = {
            name: Values(place.dtype, place.shape, _reader(path / file.name, place)) for name, place in places.items()
        }
        flats += [Flat(one.name, one.start, values[one.tensor]) for one in file.flats]
        for table in file.tables:
            columns = {name: values[tensor] for name, tensor in table.columns.items()}
            tables.append(TableRows(table.table, columns, table.start, table.among))
    return Snapshot(manifest.position, Pieces(flats, tables), str(path))


def _reader(path: Path, place: Place) -> Callable[[int, int], Any]:
    def read(low: int, high: int) -> Any:
        row = int(np.prod(place.shape[1:], dtype=np.int64))
        try:
            with _regular(path) as file:
                file.seek(place.offset + low * row * place.dtype.itemsize)
                content = file.read((high - low) * row * place.dtype.itemsize)
            return np.frombuffer(content, place.dtype).reshape(high - low, *place.shape[1:])
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {_why(error)}") from error

    return read


def _whole(path: Path, most: int) -> bytes:
    with _regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"it has more than {most} bytes")
        content: bytes = file.read(most)
    return content


def _regular(path: Path) -> Any:
    """A file that is one: no link that leads elsewhere, no pipe that never ends."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError("it is no file")
    return os.fdopen(number, "rb")


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
