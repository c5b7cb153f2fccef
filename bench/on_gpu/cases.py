"""What is timed: a kernel, operands several times as large as a second-level cache, and the same as an expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MIB = 2**20
NO_PENALTY = (0.0, 0.0, 1.0)  # l1, l2, gradient_scale
Expression = Callable[..., Any]  # of a library like NumPy and of the operands; gives what the kernel writes or returns


@dataclass(frozen=True)
class Case:
    """``bytes`` counts every array once if it is read and once if it is written. ``makes`` is what of the operands the
    kernel writes that is compared; none: what it returns."""

    name: str
    kernel: str
    size: str
    bytes: float
    operands: Callable[[], list[Any]]
    scalars: tuple[Any, ...] = ()
    makes: int | None = 0
    peers: Mapping[str, Expression] = field(default_factory=dict)
    tolerance: float = 1e-5


def cases(quick: bool) -> list[Case]:
    """All of them; ``quick``: small, to see that everything runs."""
    n, rows = (4096, 64) if quick else (64 * MIB, 128 * 1024)
    return [*flat(n), *updates(n), *layers(rows), *codecs(n), *linear(rows), *tables(rows)]


def floats(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def flat(n: int) -> list[Case]:
    size = f"{n * 4 / MIB:g} MiB each"

    def pair() -> list[Any]:
        return [floats(n), floats(n)[::-1].copy()]

    def four() -> list[Any]:
        return [np.empty(n // 4, np.float32), floats(4, n // 4)]

    return [
        Case("add_into", "add_into", size, 12 * n, pair, peers={"CuPy": lambda xp, out, x: out + x}),
        Case("axpy", "axpy", size, 12 * n, pair, (0.5,), peers={"CuPy": lambda xp, out, x: out + xp.float32(0.5) * x}),
        Case("sum_into, P = 4", "sum_into", size, 5 * n, four, peers={"CuPy": lambda xp, out, xs: xs.sum(axis=0)}),
        Case(
            "dot", "dot", size, 8 * n, pair, makes=None, peers={"CuPy": lambda xp, x, y: xp.dot(x, y)}, tolerance=1e-2
        ),
        Case(
            "max_abs",
            "max_abs",
            size,
            4 * n,
            lambda: [floats(n)],
            makes=None,
            peers={"CuPy": lambda xp, x: xp.abs(x).max()},
        ),
    ]


def updates(n: int) -> list[Case]:
    size = f"{n * 4 / MIB:g} MiB each"

    def case(kernel: str, states: int, scalars: tuple[Any, ...], peer: Expression) -> Case:
        def operands() -> list[Any]:
            return [floats(n), *(np.zeros(n, np.float32) for _ in range(states)), floats(n) + 1]

        work = 4 * n * (2 * (1 + states) + 1)
        return Case(kernel, kernel, size, work, operands, (*scalars, *NO_PENALTY), peers={"CuPy": peer})

    def adam(xp: Any, p: Any, first: Any, second: Any, g: Any) -> Any:
        first, second = 0.1 * g, 0.001 * g * g
        return p - 0.01 / (1 - 0.9) * first / (xp.sqrt(second) / (1 - 0.999) ** 0.5 + 1e-3)

    return [
        case("sgd", 0, (0.01,), lambda xp, p, g: p - xp.float32(0.01) * g),
        case("momentum", 1, (0.01, 0.9), lambda xp, p, v, g: p - xp.float32(0.01) * (xp.float32(0.9) * v + g)),
        case("adagrad", 1, (0.01, 1e-3), lambda xp, p, s, g: p - xp.float32(0.01) * g / (xp.sqrt(s + g * g) + 1e-3)),
        case("adam", 2, (0.01, 0.9, 0.999, 1e-3, 1), adam),
    ]


def layers(rows: int) -> list[Case]:
    units = 512
    size = f"{rows} x {units}"

    def forward() -> list[Any]:
        return [np.empty((rows, units), np.float32), floats(rows, units), floats(units)]

    def backward() -> list[Any]:
        z = floats(rows, units)
        return [z[::-1].copy(), np.empty(units, np.float32), z, np.maximum(z, 0)]

    return [
        Case(
            "bias_activation, relu",
            "bias_activation",
            size,
            12 * rows * units,
            forward,
            ("relu",),
            peers={"CuPy": lambda xp, out, z, bias: xp.maximum(z + bias, 0)},
        ),
        Case(
            "activation_gradient, relu",
            "activation_gradient",
            size,
            16 * rows * units,
            backward,
            ("relu",),
            makes=1,
            peers={"CuPy": lambda xp, delta, b, z, out: (delta * (z > 0)).sum(axis=0)},
            tolerance=1e-3,
        ),
    ]


def codecs(n: int) -> list[Case]:
    block = 1024
    size = f"{n * 4 / MIB:g} MiB"

    def halves() -> list[Any]:
        return [np.empty(n, np.uint16), floats(n)]

    def codes() -> list[Any]:
        return [np.empty(n, np.int8), np.empty(n // block, np.float32), floats(n)]

    def scales(xp: Any, _: Any, __: Any, x: Any) -> Any:
        return xp.abs(x.reshape(-1, block)).max(axis=1) / xp.float32(127)

    return [
        Case(
            "to_float16",
            "to_float16",
            size,
            6 * n,
            halves,
            peers={"CuPy": lambda xp, out, x: x.astype(np.float16).view(np.uint16)},
        ),
        Case(
            "quantize_int8, blocks of 1024",
            "quantize_int8",
            size,
            5 * n,
            codes,
            (block, "nearest", 0, 0),
            makes=1,
            peers={"CuPy, scales alone": scales},
        ),
    ]


def linear(rows: int) -> list[Case]:
    features, classes = 784, 10
    nothing = np.empty(0, np.float32)

    def point() -> list[Any]:
        gradients = np.empty(features, np.float32), np.empty(1, np.float32)
        return [*gradients, floats(rows, features), floats(rows), nothing, floats(features) / 100, floats(1)]

    def softmax() -> list[Any]:
        gradients = np.empty((classes, features), np.float32), np.empty(classes, np.float32)
        model = floats(classes, features) / 100, floats(classes)
        return [*gradients, floats(rows, features), np.arange(rows) % classes, nothing, *model]

    def by_products(xp: Any, g: Any, b: Any, x: Any, y: Any, _: Any, weight: Any, bias: Any) -> Any:
        return (x @ weight + bias - y) @ x

    def softmax_by_products(xp: Any, g: Any, b: Any, x: Any, y: Any, _: Any, weight: Any, bias: Any) -> Any:
        odds = x @ weight.T + bias
        odds = xp.exp(odds - odds.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        odds[xp.arange(len(y)), y] -= 1
        return odds.T @ x

    work, size = 4 * rows * features, f"{rows} x {features}"
    return [
        Case(
            "dense_loss_gradient, squared",
            "dense_loss_gradient",
            size,
            work,
            point,
            ("squared", 1.0),
            peers={"CuPy with cuBLAS": by_products},
            tolerance=1e-3,
        ),
        Case(
            "softmax_loss_gradient, 10 classes",
            "softmax_loss_gradient",
            size,
            work,
            softmax,
            peers={"CuPy with cuBLAS": softmax_by_products},
            tolerance=1e-3,
        ),
    ]


def tables(rows: int) -> list[Case]:
    width, k = 64, rows
    size = f"{k} of {4 * rows} x {width}"

    def index() -> Any:
        return np.random.default_rng(0).integers(0, 4 * rows, k)

    def gathered() -> list[Any]:
        return [np.empty((k, width), np.float32), floats(4 * rows, width), index()]

    def added() -> list[Any]:
        return [floats(4 * rows, width), floats(k, width), index()]

    def add_at(xp: Any, table: Any, given: Any, index: Any) -> Any:
        made = table.copy()
        (xp.add.at if hasattr(xp.add, "at") else xp.scatter_add)(made, index, given)
        return made

    return [
        Case(
            "gather_rows",
            "gather_rows",
            size,
            8 * k * width + 8 * k,
            gathered,
            peers={"CuPy": lambda xp, out, table, index: table[index]},
        ),
        Case(
            "scatter_add_rows", "scatter_add_rows", size, 12 * k * width + 8 * k, added, peers={"CuPy, atomics": add_at}
        ),
    ]
