"""Argument checks, made once from each kernel's `Spec` and shared by all back ends.

A training step calls a handful of kernels in about 150 µs, with the same few shapes again and again. So a
wrapper remembers the layouts that it has accepted, and a call of a known layout costs one lookup in a set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hpcps_kernels.spec import FLOATS, Argument, Spec
from hpcps_kernels.split import split

LAYOUTS_KEPT = 4096  # then the set starts again, so that ever new shapes do not fill memory

_CHECKED = """
def {name}({parameters}):
    try:
        known = ({layouts}) in accepted
    except AttributeError:  # not arrays: check says which
        known = False
    if not known:
        check({arrays})
        accept(({layouts})){split}
    return kernel({arguments})
"""
_SPLIT = """
    if threads > 1:
        return split(threads, ({arguments},))"""


class Arrays(Protocol):
    """The arrays that a back end's kernels take, and what is to be known of how they lie."""

    name: str
    kind: type[Any]
    layout: str  # what of an array a wrapper remembers, as Python writes it

    def check_layout(self, where: str, argument: Argument, array: Any) -> None:
        """Raise ValueError unless it lies as kernels need it."""


class NumpyArrays:
    """NumPy's."""

    name: str = "a NumPy array"
    kind: type[Any] = np.ndarray
    layout: str = "{0}.shape, {0}.dtype, {0}.flags.num"

    def check_layout(self, where: str, argument: Argument, array: Any) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"{where} must be C-contiguous, not with strides {array.strides}")
        if not array.flags.aligned:
            raise ValueError(f"{where} must be aligned to its dtype, not at address {array.ctypes.data:#x}")
        if argument.is_written and not array.flags.writeable:
            raise ValueError(f"{where} must be writeable, not read-only")


NUMPY: Arrays = NumpyArrays()


def checked(spec: Spec, kernel: Callable[..., Any], doc: str | None, kind: Arrays = NUMPY) -> Callable[..., Any]:
    """`kernel` with its arguments checked against its spec.

    The wrapper raises TypeError for what is not an array of the right dtype, ValueError for a wrong shape or
    layout, each in one line that names kernel, argument, what was expected and what came. Safe to call from
    many threads. Its attribute ``unchecked`` is ``kernel`` itself, for callers that have seen to what it takes, and for
    whom two microseconds are much; choices are then given by their positions.

    ``wrapper.bind(*arguments)``, with all arrays and any number of the scalars after them, is for calls with the same
    arrays again and again: it checks once, and gives a function of the scalars that are left, which costs nothing but
    the kernel. Choices that are left are given by their positions, too.
    """
    accepted: set[tuple[object, ...]] = set()

    def check(*arrays: object) -> None:
        check_arrays(spec, arrays, kind)

    def bind(*arguments: Any) -> Callable[..., Any]:
        arrays, scalars = arguments[: len(spec.arrays)], arguments[len(spec.arrays) :]
        check(*arrays)
        return partial(kernel, *arrays, *map(_as_kernel_takes, repeat(spec.name), spec.scalars, scalars))

    def accept(layout: tuple[object, ...]) -> None:
        if len(accepted) >= LAYOUTS_KEPT:
            accepted.clear()
        accepted.add(layout)

    # Written out argument by argument: a loop over *args would cost more than the rest of the wrapper.
    namespace: dict[str, Any] = {"accepted": accepted, "check": check, "accept": accept, "kernel": kernel}
    namespace["float_dtype"] = partial(_float_dtype, spec.name)
    for argument in spec.scalars:
        if argument.role == "choice":
            namespace[f"code_of_{argument.name}"] = partial(_code, spec.name, argument)
    if spec.splits:  # a GPU's threads are its own, whatever the host has
        namespace["split"] = partial(split, spec, kernel) if kind is NUMPY else lambda threads, given: kernel(*given)
    exec(_source(spec, kind.layout), namespace)  # the text comes from specs/ alone
    wrapper: Callable[..., Any] = namespace[spec.name]
    wrapper.__doc__, wrapper.__module__ = doc, kernel.__module__
    wrapper.unchecked, wrapper.bind = kernel, bind  # type: ignore[attr-defined]
    return wrapper


def _source(spec: Spec, layout: str) -> str:
    convert = {"float": "float({0})", "int": "int({0})", "flag": "bool({0})"}
    convert |= {"float dtype": "float_dtype({0})", "choice": "code_of_{0}({0})"}
    default = {"flag": "=False", "float dtype": "='float32'"}
    parameters = [a.name + default.get(a.role, "") for a in spec.arguments]
    arguments = ", ".join(convert.get(a.role, "{0}").format(a.name) for a in spec.arguments)
    return _CHECKED.format(
        name=spec.name,
        parameters=", ".join([*parameters, "threads=1"] if spec.splits else parameters),
        arrays=", ".join(a.name for a in spec.arrays),
        layouts=" ".join(f"{layout.format(a.name)}," for a in spec.arrays),
        split=_SPLIT.format(arguments=arguments) if spec.splits else "",
        arguments=arguments,
    )


def _as_kernel_takes(kernel: str, argument: Argument, value: Any) -> Any:
    """A scalar as the kernel itself takes it."""
    if argument.role == "choice":
        return _code(kernel, argument, value)
    if argument.role == "float dtype":
        return _float_dtype(kernel, value)
    return {"float": float, "int": int, "flag": bool}[argument.role](value)


def _float_dtype(kernel: str, dtype: DTypeLike) -> np.dtype[Any]:
    wanted = np.dtype(dtype)
    if wanted not in map(np.dtype, FLOATS):
        raise TypeError(f"{kernel}: dtype must be {' or '.join(FLOATS)}, not {wanted.name}")
    return wanted


def _code(kernel: str, argument: Argument, name: str) -> int:
    try:
        return argument.choices.index(name)
    except ValueError:
        raise ValueError(
            f"{kernel}: {argument.name} must be one of {', '.join(argument.choices)}, not {name!r}"
        ) from None


def check_arrays(spec: Spec, arrays: tuple[Any, ...], kind: Arrays = NUMPY) -> None:
    """Raise TypeError or ValueError unless the arrays fit the spec, one with another."""
    dtypes: dict[str, tuple[str, str]] = {}
    lengths: dict[str, tuple[int, str]] = {number: (int(number), "") for number in ("1", "2", "3", "8")}
    for argument, array in zip(spec.arrays, arrays, strict=True):
        where = f"{spec.name}: {argument.name}"
        if not isinstance(array, kind.kind):
            raise TypeError(f"{where} must be {kind.name}, not {type(array).__name__}")
        _check_dtype(where, argument, array, dtypes)
        _check_shape(where, argument, array, lengths)
        kind.check_layout(where, argument, array)


def _check_dtype(where: str, argument: Argument, array: Any, dtypes: dict[str, tuple[str, str]]) -> None:
    dtype = array.dtype.name if array.dtype.isnative else f"byte-swapped {array.dtype.name}"
    if dtype not in argument.dtypes:
        raise TypeError(f"{where} must be {' or '.join(argument.dtypes)}, not {dtype}")
    first, named = dtypes.setdefault(argument.dtype, (dtype, argument.name))
    if dtype != first:
        raise TypeError(f"{where} must be {first} as {named} is, not {dtype}")


def _check_shape(where: str, argument: Argument, array: Any, lengths: dict[str, tuple[int, str]]) -> None:
    wanted = f"({', '.join(argument.shape)}{',' if len(argument.shape) == 1 else ''})"
    if array.ndim != len(argument.shape):
        raise ValueError(f"{where} must have shape {wanted}, not {array.shape}")
    for letter, length in zip(argument.shape, array.shape, strict=True):
        if letter.endswith("?") and length == 0:
            continue
        letter, _, extra = letter.rstrip("?").partition("+")
        length -= int(extra or 0)
        first, named = lengths.setdefault(letter, (length, argument.name))
        if length < 0 or length != first:
            source = f" with {letter} = {first} as in {named}" if named else ""
            raise ValueError(f"{where} must have shape {wanted}{source}, not {array.shape}")
