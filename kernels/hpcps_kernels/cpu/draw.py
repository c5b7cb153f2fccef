"""Numbers drawn by key. Bound by multiplications of 64 bits, two a number."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import types
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.interface import Array
from hpcps_kernels.reference import draw as reference

Word: TypeAlias = Any  # 64 bits without a sign
U = np.uint64
GAMMA, MIX_A, MIX_B = U(reference.GAMMA), U(reference.MIX_A), U(reference.MIX_B)
DEVIATION = reference.DEVIATION
LOW = U(0xFFFF)


@kernel
def init_rows(out: Array, keys: Array, seed: int, zeros: int, scale: float) -> None:
    to, width, values = out.dtype.type, out.shape[1], out.reshape(out.size)
    begin = width if scale == 0 else min(max(zeros, 0), width)
    factor, seeded = scale / DEVIATION, _mixed(U(seed) + GAMMA)
    for i in range(keys.shape[0]):
        first = i * width
        for d in range(begin):
            values[np.uintp(first + d)] = 0
        start = _mixed(seeded ^ U(keys[i]))
        for d in range(begin, width):
            drawn = _mixed(start + GAMMA * U(d + 1))
            values[np.uintp(first + d)] = to(np.float64(_normal(drawn)) * factor)


@part
def _mixed(z: Word) -> Word:
    z = (z ^ (z >> U(30))) * MIX_A
    z = (z ^ (z >> U(27))) * MIX_B
    return z ^ (z >> U(31))


@part
def _normal(drawn: Word) -> Any:
    """As the reference's."""
    slope = np.int64(drawn & LOW) - np.int64((drawn >> U(16)) & LOW)
    return (np.int64(_ones(drawn >> U(32))) - 16) * 65536 + slope


def _count_ones(typing_context: Any, word: Any) -> Any:
    """How many bits of a word are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_ones: Any = intrinsic(_count_ones)
