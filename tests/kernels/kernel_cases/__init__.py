"""Calls on which every back end is held against the reference: a file a family, each with its `CASES`.

A case makes its arguments anew each time, the same ones, in the order of the kernel's spec.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hpcps_kernels import SPECS, Argument, Spec
from hpcps_kernels.specs import FAMILIES

OWN_FILES = {"meet", "text"}  # families whose tests make their own calls
FLOATS = ("float32", "float64")
NOTHING = "nothing"  # as the length of an optional argument


@dataclass(frozen=True)
class Case:
    """One call: `lengths` and `dtypes` settle the letters of the spec, `scalars` its numbers, `make` its arrays.

    `make` maps an argument's name to what makes it of (shape, dtype, rng); others are standard normal, or small
    counts in integers. `lengths` also takes the name of an optional argument, as NOTHING, to leave it out.
    """

    kernel: str
    lengths: Mapping[str, Any]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    scalars: Mapping[str, Any] = field(default_factory=dict)
    make: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    note: str = ""

    @property
    def spec(self) -> Spec:
        return SPECS[self.kernel]

    def arrays(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [self._array(argument, rng) for argument in self.spec.arrays]

    def numbers(self) -> list[Any]:
        return [self.scalars[a.name] for a in self.spec.scalars]

    def _array(self, argument: Argument, rng: np.random.Generator) -> np.ndarray:
        shape = tuple(self._length(argument, letter) for letter in argument.shape)
        dtype = np.dtype(self.dtypes.get(argument.dtype, argument.dtype))
        if argument.name in self.make:
            return np.ascontiguousarray(self.make[argument.name](shape, dtype, rng), dtype).reshape(shape)
        if dtype.kind in "iu":
            return rng.integers(0, 100, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    def _length(self, argument: Argument, letter: str) -> int:
        if letter.endswith("?") and self.lengths.get(argument.name) == NOTHING:
            return 0
        name, _, extra = letter.rstrip("?").partition("+")
        return int(name) if name.isdigit() else self.lengths[name] + int(extra or 0)

    def __str__(self) -> str:
        sizes = "-".join(f"{letter}{length}" for letter, length in self.lengths.items())
        names = [str(value) for value in self.scalars.values() if isinstance(value, str)]
        return "-".join([self.kernel, sizes, *dict.fromkeys(self.dtypes.values()), *names, self.note]).strip("-")


def below(letter_length: int) -> Callable[..., Any]:
    """Integers from 0 to `letter_length` - 1."""
    return lambda shape, dtype, rng: rng.integers(0, max(letter_length, 1), shape)


def positive(shape: Any, dtype: Any, rng: np.random.Generator) -> np.ndarray:
    return rng.random(shape) + 0.01


def all_cases() -> list[Case]:
    families = [name for name in (family.__name__.rpartition(".")[2] for family in FAMILIES) if name not in OWN_FILES]
    return [case for name in families for case in importlib.import_module(f"kernel_cases.{name}").CASES]
