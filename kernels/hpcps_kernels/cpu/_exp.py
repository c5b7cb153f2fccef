"""exp and log(1 + x) without branches or calls, so that loops over them turn into vector code.

The C library's are scalar: a loop that calls them takes some 10 ns an element. These are good to about 2 units in the
last place, everywhere the same.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hpcps_kernels.cpu._vectors import Value, multiply_add

LN2 = {64: (6.93147180369123816490e-01, 1.90821492927058770002e-10), 32: (0.693359375, -2.12194440e-4)}
"""log 2 in two parts, the first with zeros at its end, so that its multiples are exact (Cody and Waite 1980)."""
MANTISSA = {64: 52, 32: 23}
EXP_RANGE = {64: (-707.0, 709.79), 32: (-86.5, 88.73)}  # below it is 0: no denormals; above it is inf
EXP_TERMS = {64: 14, 32: 8}  # of Taylor's series up to log(2) / 2
LOG_TERMS = {64: 18, 32: 9}  # of the series of the inverse hyperbolic tangent up to 1 / 3


class _Formula:
    """Builds arithmetic on one float type."""

    def __init__(self, builder: Any, bits: int) -> None:
        self.builder, self.bits = builder, bits
        self.type = ir.DoubleType() if bits == 64 else ir.FloatType()
        self.integer = ir.IntType(bits)

    def number(self, value: float) -> Value:
        single = struct.unpack("f", struct.pack("f", value))[0]
        return ir.Constant(self.type, value if self.bits == 64 or math.isinf(value) else single)

    def multiply_add(self, x: Value, y: Value, total: Value) -> Value:
        return multiply_add(self.builder, x, y, total)

    def series(self, x: Value, factors: list[float]) -> Value:
        """factors[0] + x (factors[1] + factors[2] x + …); the sum in brackets in two chains, for their latency."""
        square = self.builder.fmul(x, x)
        even, odd = self._chain(square, factors[1::2]), self._chain(square, factors[2::2])
        return self.multiply_add(x, self.multiply_add(odd, x, even), self.number(factors[0]))

    def _chain(self, x: Value, factors: list[float]) -> Value:
        total = self.number(factors[-1])
        for factor in reversed(factors[:-1]):
            total = self.multiply_add(total, x, self.number(factor))
        return total

    def where(self, condition: Value, value: float, otherwise: Value) -> Value:
        return self.builder.select(condition, self.number(value), otherwise)


def _exp(formula: _Formula, x: Value) -> Value:
    """exp(x) = 2^k exp(x - k log 2)."""
    builder, bits = formula.builder, formula.bits
    magic = formula.number(1.5 * 2.0 ** MANTISSA[bits])  # added to a number, it leaves the nearest integer below
    shifted = formula.multiply_add(x, formula.number(1 / math.log(2)), magic)
    k = builder.fsub(shifted, magic)
    rest = x
    for piece in LN2[bits]:
        rest = formula.multiply_add(k, formula.number(-piece), rest)
    series = formula.series(rest, [1 / math.factorial(i) for i in range(EXP_TERMS[bits])])
    half_as_exponent = formula.integer((2 ** (bits - 2 - MANTISSA[bits]) - 2) << MANTISSA[bits])
    exponent = builder.shl(builder.bitcast(shifted, formula.integer), formula.integer(MANTISSA[bits]))
    half = builder.bitcast(builder.add(exponent, half_as_exponent), formula.type)  # 2^(k - 1): 2^k may be too large
    product = builder.fmul(builder.fmul(series, half), formula.number(2))
    lowest, highest = map(formula.number, EXP_RANGE[bits])
    product = formula.where(builder.fcmp_ordered("<", x, lowest), 0.0, product)
    return formula.where(builder.fcmp_ordered(">", x, highest), math.inf, product)


def _log1p(formula: _Formula, x: Value) -> Value:
    """log(1 + x) = 2 artanh(x / (2 + x))."""
    builder = formula.builder
    z = builder.fdiv(x, builder.fadd(x, formula.number(2)))
    series = formula.series(builder.fmul(z, z), [2 / (2 * i + 1) for i in range(LOG_TERMS[formula.bits])])
    return builder.fmul(z, series)


def _function(build: Any, doc: str) -> Any:
    def typed(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return build(_Formula(builder, signature.return_type.bitwidth), arguments[0])

        kind = x if isinstance(x, types.Float) else types.float64
        return kind(kind), generate

    typed.__doc__ = doc
    return intrinsic(typed)


exp = _function(_exp, "exp(x); 0 where that is smaller than any normal number.")
log1p = _function(_log1p, "log(1 + x) for x from 0 to 1.")
