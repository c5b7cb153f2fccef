"""Sums, maxima and fixed point of flat buffers, beside NumPy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from families.case import MIB, Array, Case, Operands, floats, kernel, numpy, torch, within

SCALE = 2.0**20


def cases(quick: bool) -> list[Case]:
    n = (2 if quick else 64) * MIB // 4

    def case(
        name: str, bytes_each: int, operands: Operands, *scalars: float, of: Callable[..., Any], at: Callable[..., Any]
    ) -> Case:
        """``of`` is NumPy's function of the operands, ``at`` torch's."""
        peers = {"SciPy BLAS" if of is _saxpy else "NumPy": numpy(operands, of), "torch": torch(operands, at)}
        ours = kernel(name, operands, *scalars)
        return Case(name, f"{n * 4 // MIB} MiB each", bytes_each * n, ours, peers, verify=within(1e-4))

    def pair() -> list[tuple[Array, ...]]:
        return [(floats(0, n), floats(1, n))]

    def positive() -> list[tuple[Array, ...]]:
        return [(np.abs(floats(0, n)), np.abs(floats(1, n)))]

    def one() -> list[tuple[Array, ...]]:
        return [(floats(0, n),)]

    def fixed() -> list[tuple[Array, ...]]:
        return [(np.zeros(n, np.int64), floats(0, n))]

    def floating() -> list[tuple[Array, ...]]:
        return [(np.empty(n, np.float32), np.arange(n) * 4099)]

    return [
        case(
            "add_into",
            12,
            pair,
            of=lambda out, x: np.add(out, x, out=out),
            at=lambda torch, out, x: out.add_(x),
        ),
        *(_sum_into(n, parts) for parts in (2, 4, 8)),
        case("axpy", 12, pair, 1e-3, of=_saxpy, at=lambda torch, out, x: out.add_(x, alpha=1e-3)),
        case("dot", 8, positive, of=np.dot, at=lambda torch, x, y: torch.dot(x, y)),
        case("square_norm", 4, one, of=lambda x: np.dot(x, x), at=lambda torch, x: torch.dot(x, x)),
        case(
            "max_abs",
            4,
            one,
            of=lambda x: max(x.max(), -x.min()),
            at=lambda torch, x: torch.linalg.vector_norm(x, float("inf")),
        ),
        case(
            "add_fixed", 20, fixed, SCALE, of=_add_fixed, at=lambda torch, out, x: out.add_((x * SCALE).round_().long())
        ),
        case(
            "from_fixed",
            12,
            floating,
            1 / SCALE,
            of=lambda out, x: np.multiply(x, 1 / SCALE, out=out, casting="unsafe"),
            at=lambda torch, out, x: out.copy_(x).mul_(1 / SCALE),
        ),
    ]


def _sum_into(n: int, parts: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        return [(np.empty(n, np.float32), floats(0, parts, n))]

    peers = {
        "NumPy": numpy(operands, lambda out, xs: np.sum(xs, axis=0, out=out)),
        "torch": torch(operands, lambda torch, out, xs: torch.sum(xs, 0, out=out)),
    }
    size = f"{n * 4 // MIB} MiB each"
    return Case(f"sum_into, P = {parts}", size, 4 * (parts + 1) * n, kernel("sum_into", operands), peers)


def _saxpy(out: Array, x: Array) -> Array:
    from scipy.linalg.blas import saxpy

    return saxpy(x, out, a=1e-3)


def _add_fixed(out: Array, x: Array) -> Array:
    out += np.rint(x * SCALE).astype(np.int64)
    return out
