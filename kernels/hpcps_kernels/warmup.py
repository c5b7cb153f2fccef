"""Compile kernels before they are needed, so that the ranks of a job find them on disk.

``python -m hpcps_kernels.warmup float32 NAME …`` compiles the kernels named, for parameters of this dtype and for
every dtype that other arguments may have, and prints how many signatures it had to compile.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from hpcps_kernels import load
from hpcps_kernels.spec import DTYPES, Argument, Spec
from hpcps_kernels.specs import SPECS


def warm(names: Sequence[str], dtype: str) -> int:
    """Compile the kernels, or load them from disk; returns how many signatures were compiled here."""
    from hpcps_kernels.cpu._jit import KERNELS

    kernels = load("cpu")
    for name in names:
        for arguments in calls(SPECS[name], dtype):
            with contextlib.suppress(ValueError, IndexError):  # of what it is called with: it is compiled by then
                getattr(kernels, name)(*arguments)
    return sum(sum(dispatcher.stats.cache_misses.values()) for dispatcher in KERNELS.values())


def calls(spec: Spec, dtype: str) -> Iterator[list[Any]]:
    """Small arguments for each combination of dtypes that a job in ``dtype`` may need."""
    letters = list(dict.fromkeys(a.dtype for a in spec.arrays if a.dtype in DTYPES))
    for dtypes in product(*[(dtype,) if letter == "F" else DTYPES[letter] for letter in letters]):
        chosen = dict(zip(letters, dtypes, strict=True))
        yield [_array(a, chosen) if a.is_array else _scalar(a, dtype) for a in spec.arguments]


def _array(argument: Argument, dtypes: dict[str, str]) -> np.ndarray[Any, Any]:
    lengths = [letter.rstrip("?").partition("+") for letter in argument.shape]
    shape = [int(name) if name.isdigit() else 1 + int(extra or 0) for name, _, extra in lengths]
    return np.zeros(shape, dtypes.get(argument.dtype, argument.dtype))


def _scalar(argument: Argument, dtype: str) -> Any:
    numbers = {"float": 0.5, "int": 1, "flag": False, "float dtype": dtype}
    return argument.choices[0] if argument.role == "choice" else numbers[argument.role]


if __name__ == "__main__":
    print(warm(sys.argv[2:], sys.argv[1]))
