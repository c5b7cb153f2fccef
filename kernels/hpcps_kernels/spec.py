"""What every kernel takes: names, roles, dtypes and shapes, how it accumulates and how far twins may differ.

A dtype is a letter of `DTYPES` (the same letter means the same dtype throughout one call) or a dtype's own
name. A shape is a tuple of letters (the same letter means the same length throughout one call), where "N+1"
is one more than N, "n?" is N or nothing (an array of length 0 stands for one that is left out) and a number
is exactly that.

Destinations come first. An "out" argument is overwritten, an "inout" one is updated in place, an "in" one is
only read. A destination must not share memory with another argument.

`specs/` holds the kernels themselves, a file a family, named as the files of the back ends are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLOATS = ("float32", "float64")
DTYPES = {
    "F": FLOATS,  # the dtype of the call's parameters
    "V": FLOATS,  # values stored in a dtype of their own
    "A": (*FLOATS, "int64"),  # what can be added
    "W": (*FLOATS, "int64", "uint16"),  # what ranks can add: uint16 holds the bits of a half or a bfloat16
    "I": ("int32", "int64"),  # keys
    "S": (*FLOATS, "uint8", "int8", "int16", "int32", "int64"),  # what data sets are stored as
    "X": (*FLOATS, "float16", "uint8", "int8"),  # samples that a gradient converts as it reads them
}
ACTIVATIONS = ("identity", "relu", "tanh", "gelu")
BAG_MODES = ("sum", "mean")
MEET_OPERATIONS = ("sum", "scatter", "gather")
WIDE_FORMATS = ("own", "bfloat16", "float16")  # of what stands in uint16; other dtypes are their own
POINT_LOSSES = ("squared", "huber", "logistic", "hinge", "squared_hinge", "poisson")  # of one score a sample


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel. A flag is false, a float dtype float32 if left out; both need no shape."""

    name: str
    role: Literal["out", "inout", "in", "float", "int", "flag", "choice", "float dtype"]
    dtype: str = ""
    shape: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # of a "choice": callers give a name, kernels get its position

    @property
    def is_array(self) -> bool:
        return self.role in ("out", "inout", "in")

    @property
    def is_written(self) -> bool:
        return self.role in ("out", "inout")

    @property
    def dtypes(self) -> tuple[str, ...]:
        return DTYPES.get(self.dtype, (self.dtype,))


@dataclass(frozen=True)
class Spec:
    """One kernel. `tolerance` is relative to an output's largest magnitude, in its dtype's epsilons.

    `module` is the file of each back end that holds it. A kernel that `splits` along a letter may be
    called for slices of the arrays whose first axis has it, one by one or side by side, and gives the same bits:
    it returns nothing and takes a thread count.
    """

    name: str
    module: str
    arguments: tuple[Argument, ...]
    accumulates: str = ""  # the dtype of running sums; "" where nothing is summed
    tolerance: float = 0.0  # 0: twins agree to the last bit
    splits: str = ""
    order_on_gpu: float = 0.0  # not 0: a GPU adds in an order of its own, always the same, and differs by so much

    @property
    def tolerance_on_gpu(self) -> float:
        return self.order_on_gpu or self.tolerance

    @property
    def arrays(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.is_array)

    @property
    def scalars(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if not a.is_array)


def out(name: str, dtype: str, *shape: str) -> Argument:
    return Argument(name, "out", dtype, shape)


def inout(name: str, dtype: str, *shape: str) -> Argument:
    return Argument(name, "inout", dtype, shape)


def read(name: str, dtype: str, *shape: str) -> Argument:
    return Argument(name, "in", dtype, shape)


def real(name: str) -> Argument:
    return Argument(name, "float")


def whole(name: str) -> Argument:
    return Argument(name, "int")


def choice(name: str, *choices: str) -> Argument:
    return Argument(name, "choice", choices=choices)
