"""What one holder, a worker or a shard, writes of a checkpoint: a file of tensors, then what is in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from hpcps.checkpoint.manifest import FileAbout, FlatAbout, TableAbout, TensorAbout
from hpcps.snapshot import Pieces, Values
from hpcps.tensors import Stored, write_tensors


def about_name(holder: str) -> str:
    """The file that says what a holder has written, and is there when that is whole."""
    return f"{holder}.json"


def failed_name(holder: str) -> str:
    """The file that says why a holder could not write."""
    return f"{holder}.failed"


def write_part(folder: Path, holder: str, pieces: Pieces) -> None:
    """Write what a holder has, bring it to disk, and say so. Raises OSError."""
    tensors: dict[str, Values] = {}
    flats, tables = [], []
    for flat in pieces.flats:
        tensor = f"{flat.name}@{flat.start}"
        tensors[tensor] = flat.values
        flats.append(FlatAbout(flat.name, flat.start, tensor))
    for rows in pieces.tables:
        columns = {name: f"table:{rows.table}.{name}@{rows.start}" for name in rows.columns}
        tensors |= {columns[name]: values for name, values in rows.columns.items()}
        tables.append(TableAbout(rows.table, rows.start, rows.among, columns))
    abouts = {name: TensorAbout(values.dtype.name, values.shape) for name, values in tensors.items()}
    size, digest = _write(folder / f"{holder}.safetensors", tensors)
    about = FileAbout(f"{holder}.safetensors", size, digest, abouts, flats, tables)
    aside = folder / f".{about_name(holder)}"
    aside.write_bytes(msgspec.json.encode(about))
    aside.rename(folder / about_name(holder))


def write_failure(folder: Path, holder: str, why: str) -> None:
    """Say why a holder could not write; where there is no room for that, that it could not."""
    with (folder / failed_name(holder)).open("w", encoding="utf-8") as file:
        file.write(why)


def _write(path: Path, tensors: dict[str, Values]) -> tuple[int, str]:
    """Write a file; returns its size and SHA-256."""
    with path.open("wb") as file:
        out = _Digesting(file)
        stored = {name: Stored(values.dtype, values.shape, values.blocks) for name, values in tensors.items()}
        _exhaust(write_tensors(out, stored))  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    return out.size, out.digest.hexdigest()


def _exhaust(pieces: Iterator[Any]) -> None:
    for _ in pieces:
        pass


class _Digesting:
    """A file whose bytes are counted and digested as they are written."""

    def __init__(self, file: Any) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._file = file

    def write(self, content: bytes | memoryview) -> int:
        written: int = self._file.write(content)
        self.digest.update(content)
        self.size += written
        return written
