"""What every back end offers: the table that holds its kernels, and what text becomes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpcps_kernels.check import checked
from hpcps_kernels.specs import SPECS

Array: TypeAlias = NDArray[Any]


class SparseRows(NamedTuple):
    """Labelled samples as compressed sparse rows: sample i owns entries indptr[i] .. indptr[i + 1] - 1."""

    labels: NDArray[np.float64]  # (n,)
    indptr: NDArray[np.int64]  # (n + 1,)
    indices: NDArray[np.int32]  # (nnz,), from 0, rising within a sample
    values: Array  # (nnz,) float32 or float64


class ParseError(ValueError):
    """Malformed text; `line` (in the data) and byte `column` count from 1, `kind` is an index of `KINDS`."""

    KINDS = (
        "",
        "the line does not begin with a number as its label",
        "expected INDEX:VALUE",
        "the index is outside 1 .. 2^31 (from 0 with data.zero_based)",
        "indices must rise within a line",
        "the value is not a number",
    )

    def __init__(self, line: int, column: int, kind: int) -> None:
        self.line, self.column, self.kind = line, column, kind
        self.reason = self.KINDS[kind]
        super().__init__(f"line {line}, column {column}: {self.reason}")


class Kernels:
    """The kernels of one back end, by name, with checked arguments. A family is imported by the first use of one.

    What each does stands in `reference`, what it takes in `specs/`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, kernel: str) -> Callable[..., Any]:
        if kernel not in SPECS:
            raise AttributeError(f"kernels: there is none called {kernel!r}")
        found = self._checked(kernel)
        setattr(self, kernel, found)
        return found

    def _checked(self, kernel: str) -> Callable[..., Any]:
        return checked(SPECS[kernel], self._find(self.name, kernel), self._find("reference", kernel).__doc__)

    @staticmethod
    def _find(back_end: str, kernel: str) -> Callable[..., Any]:
        module = importlib.import_module(f"hpcps_kernels.{back_end}.{SPECS[kernel].module}")
        found: Callable[..., Any] = getattr(module, kernel)
        return found
