"""The exponential function, tanh and the normal distribution for loops over arrays.

libm takes one number a call; these are straight-line code, of which LLVM makes vectors. The polynomials interpolate at
Chebyshev points. `Each` constant stands for a float32 and a float64; polynomials begin with their constant term.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import part
from hpcps_kernels.cpu._vectors import multiply_add


class Each(NamedTuple):
    """What a calculation takes in float32, and in float64."""

    single: Any
    double: Any


def _typed(x: Any, generate: Any) -> Any:
    """A function of one float, built by ``generate(builder, float type, value, index into Each)``."""
    if not isinstance(x, types.Float):
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return generate(builder, context.get_value_type(x), arguments[0], int(x.bitwidth == 64))

    return x(x), code


def polynomial(coefficients: Each) -> Any:
    """x -> c0 + c1 x + c2 x^2 ..., by Horner's rule with fused multiply-adds where the CPU has them."""

    def typed(typing_context: Any, x: Any) -> Any:
        def generate(builder: Any, kind: Any, value: Any, which: int) -> Any:
            *lower, highest = [ir.Constant(kind, c) for c in coefficients[which]]
            total = highest
            for c in reversed(lower):
                total = multiply_add(builder, total, value, c)
            return total

        return _typed(x, generate)

    return intrinsic(typed)


def constant(values: Each) -> Any:
    """x -> the constant, in the dtype of x."""

    def typed(typing_context: Any, x: Any) -> Any:
        return _typed(x, lambda builder, kind, value, which: ir.Constant(kind, values[which]))

    return intrinsic(typed)


def number(value: float) -> Any:
    """The same for both dtypes: a Python number would make float64 of a float32."""
    return constant(Each(value, value))


def _two_to(typing_context: Any, shifted: Any) -> Any:
    """2^n of n + SHIFT, whose last bits are n: they become the exponent."""

    def generate(builder: Any, kind: Any, value: Any, which: int) -> Any:
        mantissa, bias = ((23, 127), (52, 1023))[which]
        whole = ir.IntType((32, 64)[which])
        bits = builder.add(builder.bitcast(value, whole), whole(bias))
        return builder.bitcast(builder.shl(bits, whole(mantissa)), kind)

    return _typed(shifted, generate)


def _fused(typing_context: Any, x: Any, y: Any, total: Any) -> Any:
    """x y + total."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return multiply_add(builder, *arguments)

    return x(x, x, x), code


def _wide_vectors(typing_context: Any) -> Any:
    """In a kernel bound by arithmetic: take 512-bit vectors where there are any; LLVM by itself takes 256."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add knows no strings
        return context.get_dummy_value()

    return types.void(), code


wide_vectors: Any = intrinsic(_wide_vectors)
fused: Any = intrinsic(_fused)
two_to: Any = intrinsic(_two_to)

shift = constant(Each(1.5 * 2.0**23, 1.5 * 2.0**52))  # adding it rounds to a whole number
lowest = constant(Each(-87.0, -708.0))  # exp of less is taken for 0
log2_e = number(1.4426950408889634)
ln_2_high = constant(Each(0.693115234375, 0.6931471805582987))  # times an exponent without rounding
ln_2_low = constant(Each(3.1946183e-05, 1.6465949582897082e-12))
zero, fifth, half, centre, one, two = map(number, (0, 1 / 5, 1 / 2, 11 / 16, 1, 2))
density_at_0 = number(0.3989422804014327)  # 1 / sqrt(2 pi)

# (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, to 0.5 and 0.01 ulp of exp.
_exp_rest = polynomial(
    Each(
        (0.5, 0.16666576, 0.041666552, 0.008363233, 0.001392625),
        (
            0.5,
            0.1666666666666667,
            0.04166666666666667,
            0.008333333333326084,
            0.0013888888888883711,
            0.0001984126987500228,
            2.480158732567746e-05,
            2.755725517000089e-06,
            2.755727347871858e-07,
            2.5105312729622103e-08,
            2.09147553258932e-09,
        ),
    )
)

# P(X > a) exp(a^2 / 2) / t of a standard normal X, as a polynomial in t - 0.6875 where t = 1 / (1 + a / 5), to 0.2 ulp
# up to a = 7 and 0.1 ulp up to a = 9; what is above is below an ulp of 1.
_tail = polynomial(
    Each(
        (
            0.22174686,
            0.48470068,
            0.8242139,
            1.0908808,
            1.0956005,
            0.77462107,
            0.29514813,
            -0.059140235,
            -0.12288627,
        ),
        (
            0.22174685654750076,
            0.48470066027449665,
            0.8242136635758672,
            1.0908856468362165,
            1.0956121537669548,
            0.7743836716877154,
            0.2950932193313315,
            -0.05476398631357838,
            -0.12663432513212014,
            -0.02841566162742363,
            0.04120714750605223,
            0.019622816226561472,
            -0.01560932728073603,
            -0.00945016790011398,
            0.00759130044893677,
            0.0038955649321367864,
            -0.004267943338893155,
            -0.0011313224218043982,
            0.001980070830750332,
        ),
    )
)


@part
def exp_parts(x: float) -> tuple[float, float]:
    """exp(x) = a + b for lowest <= x <= 0, where a is a power of two and |b| < a / 2 (Cody & Waite 1980)."""
    shifted = fused(x, log2_e(x), shift(x))
    n = shifted - shift(x)
    r = fused(-n, ln_2_low(x), fused(-n, ln_2_high(x), x))
    scale = two_to(shifted)
    return scale, scale * fused(r * r, _exp_rest(r), r)


@part
def tanh(x: float) -> float:
    """To 3 ulp; nan stays nan.

    tanh(|x|) = -m / (2 + m) of m = exp(-2 |x|) - 1, which loses nothing near 0.
    """
    y = -two(x) * abs(x)
    power, rest = exp_parts(lowest(x) if y < lowest(x) else y)
    m = (power - one(x)) + rest
    value = -m / (m + two(x))
    signed: float = -value if x < zero(x) else value
    return signed


@part
def normal(x: float) -> tuple[float, float]:
    """P(X <= x) of a standard normal X and its density at x, to 2 ulp of 1; nan stays nan."""
    a = abs(x)
    y = -half(x) * (a * a)
    power, rest = exp_parts(lowest(x) if y < lowest(x) else y)
    bell = zero(x) if y < lowest(x) else power + rest
    t = one(x) / fused(a, fifth(x), one(x))
    beyond = bell * (t * _tail(t - centre(x)))
    return (beyond if x < zero(x) else one(x) - beyond), bell * density_at_0(x)
