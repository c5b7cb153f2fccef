"""``manifest.json``: what a checkpoint consists of. It holds its own SHA-256, and is believed only if that is right."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hpcps.snapshot import Position

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 << 20
WORKERS_MAX = 1 << 24
FILE_NAME = re.compile(r"[a-z]+-[0-9]+\.safetensors")
"""What the files of a checkpoint are called: nothing that leads out of its folder."""

Size = Annotated[int, Meta(ge=0, le=2**62)]


class Facts(Struct, frozen=True, forbid_unknown_fields=True):
    """What must be so of the data, besides the configuration."""

    train_samples: Size
    test_samples: Size
    features: Size
    classes: Size
    parameters: Size


class TensorAbout(Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of a file."""

    dtype: str
    shape: tuple[Size, ...]


class FlatAbout(Struct, frozen=True, forbid_unknown_fields=True):
    """Which piece of a flat array a tensor is."""

    name: str
    start: Size
    tensor: str


class TableAbout(Struct, frozen=True, forbid_unknown_fields=True):
    """Which rows of a table some tensors are; ``columns`` by name."""

    table: str
    start: Size
    among: tuple[Annotated[int, Meta(ge=1, le=2**31)], Size]
    columns: dict[str, str]


class FileAbout(Struct, frozen=True, forbid_unknown_fields=True):
    """A file, and what of the run's state is in it."""

    name: str
    size: Size
    sha256: str
    tensors: dict[str, TensorAbout]
    flats: list[FlatAbout]
    tables: list[TableAbout]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole checkpoint."""

    format: Literal[1]
    position: Position
    config: dict[str, dict[str, Any]]
    facts: Facts
    files: list[FileAbout]


class _Sealed(Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    manifest: msgspec.Raw


def encode(manifest: Manifest) -> bytes:
    """The bytes of the file."""
    inside = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Sealed(hashlib.sha256(inside).hexdigest(), msgspec.Raw(inside)))


def decode(content: bytes) -> Manifest:
    """The manifest that a file holds. Raises ValueError where it is damaged, or names what cannot be."""
    try:
        sealed = msgspec.json.decode(content, type=_Sealed)
        inside = bytes(sealed.manifest)
        if hashlib.sha256(inside).hexdigest() != sealed.sha256:
            raise ValueError("its SHA-256 is another")
        manifest = msgspec.json.decode(inside, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    names = [file.name for file in manifest.files]
    wrong = [name for name in names if not FILE_NAME.fullmatch(name)]
    if wrong or len(set(names)) < len(names):
        raise ValueError(f"names a file {(wrong or names)[0]!r}")
    position = manifest.position
    if (
        not 1 <= position.workers <= WORKERS_MAX
        or not 0 <= position.reported_steps <= position.steps <= position.updates
        or (position.cut and position.cut[0] != 0)
        or any(low > high for low, high in pairwise(position.cut))
    ):
        raise ValueError("its position cannot be")
    return manifest
