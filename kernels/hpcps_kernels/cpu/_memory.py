"""Memory by address: arrays where other ranks have theirs, and words that neither the compiler nor the CPU moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import part
from hpcps_kernels.interface import Array

BYTES, LINE_BYTES = 8, 64


def _pointer(typing_context: Any, address: Any) -> Any:
    """The address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _load_acquire(typing_context: Any, address: Any) -> Any:
    """The int64 at an address; what is read after it is not read before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word(builder, arguments[0]), "acquire", align=BYTES)

    return types.int64(types.int64), generate


def _store_release(typing_context: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address; what was written before it is seen before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _word(builder, arguments[0]), "release", align=BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, cgutils.intp_t.as_pointer())


pointer: Any = intrinsic(_pointer)
load_acquire: Any = intrinsic(_load_acquire)
store_release: Any = intrinsic(_store_release)


@part
def array_at(address: int, count: int, like: Array) -> Array:
    """``count`` elements of ``like``'s dtype at an address."""
    found: Array = carray(pointer(address), (count,), like.dtype)
    return found


@part
def address_of(array: Array) -> int:
    """Where an array lies. Signed: of an int64 and what NumPy gives Numba would make a float64."""
    address: int = np.int64(array.ctypes.data)  # type: ignore[assignment]
    return address


@part
def aligned(count: int, like: Array) -> Array:
    """Memory for ``count`` elements of ``like``'s dtype that begins with a cache line."""
    room = np.empty(count + LINE_BYTES, like.dtype)
    start = -address_of(room) % LINE_BYTES // room.itemsize
    memory: Array = room[start : start + count]
    return memory
