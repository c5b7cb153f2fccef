"""What gradients become on the wire: half precision, int8 with scales, the largest elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from families.case import MIB, Array, Case, Verdict, differing, floats, kernel, numpy, torch

BLOCK = 1024
PART = 100  # top_k sends one element of so many


def cases(quick: bool) -> list[Case]:
    n = (2 if quick else 64) * MIB // 4
    half = [_half(name, way, n) for name in ("bfloat16", "float16") for way in ("to", "from")]
    return [*half, _quantize(n), _dequantize(n), _top_k(n)]


def _half(name: str, way: str, n: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        if way == "to":
            return [(np.empty(n, np.uint16), floats(0, n))]
        bits = (
            floats(0, n).view(np.uint32) >> 16
            if name == "bfloat16"
            else floats(0, n).astype(np.float16).view(np.uint16)
        )
        return [(np.empty(n, np.float32), bits.astype(np.uint16))]

    def with_torch(torch, out, x) -> Any:
        dtype = getattr(torch, name)
        if way == "to":
            out.view(dtype).copy_(x)
            return out
        return out.copy_(x.view(dtype))

    peers = {"torch": torch(operands, with_torch)}
    if name == "float16":
        to = lambda out, x: (np.copyto(out.view(np.float16), x, casting="unsafe"), out)[1]  # noqa: E731
        back = lambda out, x: (np.copyto(out, x.view(np.float16)), out)[1]  # noqa: E731
        peers["NumPy"] = numpy(operands, to if way == "to" else back)
    kernel_name = f"{way}_{name}"
    return Case(kernel_name, f"{n * 4 // MIB} MiB", 6 * n, kernel(kernel_name, operands), peers)


def _quantize(n: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        return [(np.empty(n, np.int8), np.empty(n // BLOCK, np.float32), floats(0, n))]

    def with_torch(torch, codes, scales, x) -> Any:
        blocks = x.view(-1, BLOCK)
        scale = blocks.abs().amax(1) / 127
        codes.view(-1, BLOCK).copy_((blocks / scale[:, None]).round_())
        return codes, scales.copy_(scale)

    def verify(ours: Any, peer: Any) -> Verdict:
        """A code may be off by one, where the quotient is half way between two."""
        far = np.abs(ours[0].astype(np.int16) - np.asarray(peer[0])) > 1
        return Verdict(int(far.sum()) + differing(ours[1], peer[1]))

    ours = kernel("quantize_int8", operands, BLOCK, "nearest", 0, 0)
    peers = {"torch": torch(operands, with_torch)}
    return Case(f"quantize_int8, blocks of {BLOCK}", f"{n * 4 // MIB} MiB", 5 * n, ours, peers, verify=verify)


def _dequantize(n: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        codes = np.random.default_rng(0).integers(-127, 128, n, np.int8)
        return [(np.empty(n, np.float32), codes, np.abs(floats(1, n // BLOCK)))]

    def with_torch(torch, out, codes, scales) -> Any:
        return torch.mul(codes.view(-1, BLOCK), scales[:, None], out=out.view(-1, BLOCK)).view(-1)

    ours = kernel("dequantize_int8", operands, BLOCK)
    peers = {"torch": torch(operands, with_torch)}
    return Case(f"dequantize_int8, blocks of {BLOCK}", f"{n * 4 // MIB} MiB", 5 * n, ours, peers)


def _top_k(n: int) -> Case:
    """The largest 1 % of residual + gradient, which the residual then lacks."""
    k = n // PART

    def operands() -> list[tuple[Array, ...]]:
        return [(np.empty(k, np.int64), np.empty(k, np.float32), np.zeros(n, np.float32), floats(0, n))]

    def with_torch(torch, index, values, residual, gradient) -> Any:
        residual += gradient
        torch.topk(residual.abs(), k, sorted=False, out=(values, index))
        torch.take(residual, index, out=values)
        residual[index] = 0
        return index, values, residual

    def with_numpy(index, values, residual, gradient) -> Any:
        residual += gradient
        index[:] = np.argpartition(np.abs(residual), n - k)[n - k :]
        np.take(residual, index, out=values, mode="clip")
        residual[index] = 0
        return index, values, residual

    def verify(ours: Any, peer: Any) -> Verdict:
        """The same elements in any order."""
        order, theirs = np.argsort(ours[0]), np.argsort(np.asarray(peer[0]))
        picked = [
            (np.asarray(side[0])[o], np.asarray(side[1])[o], side[2]) for side, o in ((ours, order), (peer, theirs))
        ]
        return Verdict(differing(*picked))

    peers = {"torch": torch(operands, with_torch), "NumPy": numpy(operands, with_numpy)}
    return Case("top_k, 1 %", f"{n * 4 // MIB} MiB", 12 * n, kernel("top_k", operands), peers, verify=verify)
