"""Data sets that come with the package. Their text files name the source, the authors and the licence."""

from __future__ import annotations

import io
from functools import cache
from importlib import resources

import msgspec
import numpy as np

from hpcps.data.blocks import Array
from hpcps.data.files import PARSING
from hpcps.data.pieces import Piece, Rows

SHAPES = {"digits": {"train": (1437, 64), "test": (360, 64)}}


class BuiltinSource(msgspec.Struct, frozen=True, tag="builtin"):
    """The training or test part of a built-in data set: uint8 samples, integer labels."""

    file: str
    part: str  # "train" | "test"

    noun = "sample"
    dtype = "uint8"
    sparse = False
    labelled = True

    @property
    def label_file(self) -> str:
        return self.file

    @property
    def count(self) -> int:
        return SHAPES[self.file][self.part][0]

    @property
    def features(self) -> int:
        return SHAPES[self.file][self.part][1]

    def read(self, rows: Rows) -> Piece:
        """Samples (m, D) uint8 and labels (m,) of these rows."""
        members = _members(self.file)
        wanted = np.asarray(rows)
        return Piece(members[f"x_{self.part}"][wanted], members[f"y_{self.part}"][wanted], rows)


@cache
def _members(name: str) -> dict[str, Array]:
    content = resources.files("hpcps.data").joinpath(f"{name}.npz").read_bytes()
    with PARSING, np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
