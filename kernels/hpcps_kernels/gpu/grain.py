"""Gradients of several grains of a batch, added in tree order.

A grain's samples are cut into pieces by their number alone, so that its gradient has the same bits in whatever company.
Pieces are added in their order and grains along the tree, by one program of a stack machine.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hpcps_kernels.gpu._launch import device
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.gpu.gradient import Parts, cuts, linear_parts
from hpcps_kernels.gpu.loss import check_delta, label_error
from hpcps_kernels.gpu.reduce import fold_rows, sum_columns
from hpcps_kernels.reference.reduce import depth_and_left


class Program(NamedTuple):
    """Pieces of grains, and the additions that follow each: of all, and within grains alone."""

    bounds: list[int]
    adds: list[int]
    adds_of_grains: list[int]


def dense_grains(
    stack: Any,
    losses: Any,
    samples: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    bias: Any,
    bounds: Any,
    adds: Any,
    loss: int,
    delta: float,
) -> None:
    check_delta(loss, delta)
    _linear_grains("dense", stack, losses, samples, labels, sample_weight, weight, bias, bounds, adds, loss, delta)


def softmax_grains(
    stack: Any,
    losses: Any,
    samples: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    bias: Any,
    bounds: Any,
    adds: Any,
) -> None:
    _linear_grains("softmax", stack, losses, samples, labels, sample_weight, weight, bias, bounds, adds, None, 0.0)


def layer_grains(stack: Any, delta: Any, x: Any, bounds: Any, adds: Any, at: int) -> None:
    here, (units, features) = device(), (delta.shape[1], x.shape[1])
    places, additions = _on_host(stack, len(x), bounds, adds, depth_matters=False)
    if at < 0 or at + units * (features + 1) > stack.shape[1]:
        raise ValueError("layer_grains: the layer does not fit a row of the stack")
    gradients = here.empty((len(additions), units * features), stack.dtype)
    biases = here.empty((len(additions), units), stack.dtype)
    for g, (begin, end) in enumerate(pairwise(places)):
        here.multiply_transposed(gradients[g].reshape(units, features), delta[begin:end], x[begin:end])
        sum_columns(biases[g], delta[begin:end])
    _add_up(stack, at, gradients, additions)
    _add_up(stack, at + units * features, biases, additions)


def _linear_grains(
    kind: str,
    stack: Any,
    losses: Any,
    samples: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    bias: Any,
    bounds: Any,
    adds: Any,
    loss: int | None,
    delta: float,
) -> None:
    if stack.shape[1] != weight.size + bias.size:
        raise ValueError(f"{kind}_grains: a row of the stack is not a weight and a bias")
    program = _program(*_on_host(stack, len(samples), bounds, adds), bias.size)
    told = Told()
    parts = linear_parts(told, samples, labels, sample_weight, weight, bias, program.bounds, loss, delta)
    _fold(stack, losses, parts, program)
    told.sum(label_error(loss))


def _fold(stack: Any, losses: Any, parts: Parts, program: Program) -> None:
    _add_up(stack, 0, parts.gradients, program.adds)
    _add_up(stack, parts.gradients.shape[1], parts.biases, program.adds)
    _add_up(losses.reshape(-1, 1), 0, parts.losses.reshape(-1, 1), program.adds_of_grains)


def _add_up(stack: Any, at: int, rows: Any, adds: list[int]) -> None:
    """Into columns ``at`` and on of the stack's first rows."""
    if adds and rows.shape[1]:
        depth, _ = depth_and_left(np.array(adds))
        program = device().constant(tuple(adds))
        fold_rows(stack.reshape(-1)[at:], stack.shape[1], rows, None, program, depth)


def _program(bounds: list[int], adds: list[int], classes: int) -> Program:
    program = Program([0], [], [])
    for (begin, end), count in zip(pairwise(bounds), adds, strict=True):
        pieces = cuts(begin, end, classes)[1:]
        program.bounds.extend(pieces)
        within = [0] + [1] * (len(pieces) - 1)
        program.adds_of_grains.extend(within)
        program.adds.extend([*within[:-1], within[-1] + count])
    return program


def _on_host(
    stack: Any, samples: int, bounds: Any, adds: Any, depth_matters: bool = True
) -> tuple[list[int], list[int]]:
    """Bounds and adds, looked over; waits for the device."""
    here = device()
    places, additions = here.read(bounds), here.read(adds)
    depth, left = depth_and_left(additions)
    if (depth if depth_matters else left) > len(stack):
        raise ValueError("tree: the stack has too few rows")
    if places[0] != 0 or places[-1] != samples or (np.diff(places) < 0).any():
        raise ValueError("grains: bounds must rise from 0 to the number of samples")
    return places.tolist(), additions.tolist()
