"""Gradients of several grains of a batch in one call, added in tree order.

Grain g has the samples bounds[g] .. bounds[g + 1] - 1. Its gradient is pushed on a stack; then adds[g] times the two
uppermost entries are replaced by their sum. What is left at the end lies in the stack's first rows; the rows above
hold what is of no use. With the adds of a tree, the order of all additions is that of the tree, so sums of grains have
the same bits wherever the tree is cut.

n samples, D features, K classes, H units; F is float32 or float64. stack (T, N) F, T at least what the adds need;
losses (G,) float64, one a grain; bounds (G + 1,) int64, rising from 0 to n; adds (G,) int64. ValueError is raised
where bounds, adds or the stack do not fit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.reference.gradient import dense_loss_gradient, softmax_loss_gradient
from hpcps_kernels.reference.reduce import depth_and_left


def dense_grains(
    stack: Array,
    losses: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    bounds: Array,
    adds: Array,
    loss: int,
    delta: float,
) -> None:
    """A grain's gradient is that of `dense_loss_gradient`: the weight's D numbers, then the bias; N = D + 1."""
    if stack.shape[1] != weight.size + 1:
        raise ValueError("dense_grains: a row of the stack is not a weight and a bias")

    def push(row: Array, part: slice) -> float:
        outs, chosen = (row[:-1], row[-1:]), (samples[part], labels[part], sample_weight[part])
        return dense_loss_gradient(*outs, *chosen, weight, bias, loss, delta)

    _add_up(stack, losses, len(samples), bounds, adds, push)


def softmax_grains(
    stack: Array,
    losses: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    bounds: Array,
    adds: Array,
) -> None:
    """A grain's gradient is that of `softmax_loss_gradient`: the weight's K * D numbers, then the bias; N = K (D + 1).

    Its bits are those of a call for the grain alone.
    """
    if stack.shape[1] != weight.size + bias.size:
        raise ValueError("softmax_grains: a row of the stack is not a weight and a bias")

    def push(row: Array, part: slice) -> float:
        outs = row[: weight.size].reshape(weight.shape), row[weight.size :]
        return softmax_loss_gradient(*outs, samples[part], labels[part], sample_weight[part], weight, bias)

    _add_up(stack, losses, len(samples), bounds, adds, push)


def layer_grains(stack: Array, delta: Array, x: Array, bounds: Array, adds: Array, at: int) -> None:
    """A layer's gradient delta.T @ x (H, D), and after it the column sums of delta (H,), in the columns of the stack
    from ``at`` on. Nothing else of the stack is written: only the sums that are left, not those on the way.

    delta (n, H), x (n, D). Element (h, d) of a grain is a sum in the order of its samples, each product fused with
    its addition where the CPU can do so.
    """
    _, left = _checked(stack, len(x), bounds, adds, depth_matters=False)
    end = at + delta.shape[1] * x.shape[1]
    if at < 0 or end + delta.shape[1] > stack.shape[1]:
        raise ValueError("layer_grains: the layer does not fit a row of the stack")
    sums: list[Array] = []
    for g, count in enumerate(adds):
        part = slice(bounds[g], bounds[g + 1])
        sums.append(np.concatenate([(delta[part].T @ x[part]).reshape(-1), delta[part].sum(axis=0)]))
        for _ in range(count):
            last = sums.pop()
            sums[-1] = sums[-1] + last
    for row in range(left):
        stack[row, at : end + delta.shape[1]] = sums[row]


def _add_up(
    stack: Array, losses: Array, samples: int, bounds: Array, adds: Array, push: Callable[[Array, slice], float]
) -> None:
    _checked(stack, samples, bounds, adds)
    top = 0
    for g, count in enumerate(adds):
        losses[g] = push(stack[top], slice(bounds[g], bounds[g + 1]))
        top += 1
        for _ in range(count):
            stack[top - 2] += stack[top - 1]
            top -= 1


def _checked(stack: Array, samples: int, bounds: Array, adds: Array, depth_matters: bool = True) -> tuple[int, int]:
    """How many rows the adds need, and how many sums they leave."""
    depth, left = depth_and_left(adds)
    if (depth if depth_matters else left) > len(stack):
        raise ValueError("tree: the stack has too few rows")
    if bounds[0] != 0 or bounds[-1] != samples or (np.diff(bounds) < 0).any():
        raise ValueError("grains: bounds must rise from 0 to the number of samples")
    return depth, left
