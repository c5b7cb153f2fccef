"""Optimiser steps over flat buffers and over rows of tables, beside torch.optim and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hpcps_kernels import load

from families.case import MIB, Array, Call, Case, Operands, Verdict, differing, floats, kernel

IMPLEMENTATIONS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}
ROWS, WIDTH = 10**6, 16
BATCHES = 8  # sets of row numbers that take turns


class Optimizer(NamedTuple):
    """A kernel's states and scalars, and what PyTorch calls the same; ``sparse``: its class for sparse gradients."""

    states: int
    scalars: tuple[float, ...]
    torch: str = ""
    options: dict[str, Any] = {}  # noqa: RUF012
    sparse: str = ""


NO_PENALTY = (0.0, 0.0, 1.0)  # l1, l2, gradient_scale
OPTIMIZERS = {
    "sgd": Optimizer(0, (0.01, *NO_PENALTY), "SGD", {"lr": 0.01}, "SGD"),
    "momentum": Optimizer(1, (0.01, 0.9, *NO_PENALTY), "SGD", {"lr": 0.01, "momentum": 0.9}),
    "nesterov": Optimizer(1, (0.01, 0.9, *NO_PENALTY), "SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adagrad": Optimizer(1, (0.01, 1e-8, *NO_PENALTY), "Adagrad", {"lr": 0.01, "eps": 1e-8}, "Adagrad"),
    "rmsprop": Optimizer(1, (0.01, 0.9, 1e-8, *NO_PENALTY), "RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-8}),
    "adam": Optimizer(2, (0.01, 0.9, 0.999, 1e-8, 1, *NO_PENALTY), "Adam", {"lr": 0.01, "eps": 1e-8}, "SparseAdam"),
    "adamw": Optimizer(2, (0.01, 0.9, 0.999, 1e-8, 0.1, 1, 1.0), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "ftrl": Optimizer(2, (0.1, 1.0, *NO_PENALTY)),
}


def cases(quick: bool) -> list[Case]:
    n, rows = (MIB // 2, ROWS // 10) if quick else (16 * MIB, ROWS)
    return [
        *(_dense(name, optimizer, n) for name, optimizer in OPTIMIZERS.items()),
        *(_rows(name, optimizer, rows) for name, optimizer in OPTIMIZERS.items()),
    ]


def _params(ours: Any, peer: Any) -> Verdict:
    """The parameters, without the states."""
    mine, theirs = (x[0] if isinstance(x, tuple) else x for x in (ours, peer))
    return Verdict(differing(mine, theirs))


def _numpy(name: str, operands: Operands, scalars: tuple[float, ...]) -> Callable[[], Call]:
    return lambda: kernel(name, operands, *scalars)(load("reference"))


def _dense(name: str, optimizer: Optimizer, n: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        states = (np.zeros(n, np.float32) for _ in range(optimizer.states))
        return [(floats(0, n), *states, floats(1, n))]

    def torch(implementation: dict[str, bool]) -> Callable[[], Call]:
        def make() -> Call:
            import torch

            params, *_, gradient = map(torch.from_numpy, operands()[0])
            params.requires_grad_().grad = gradient
            step = getattr(torch.optim, optimizer.torch)([params], **optimizer.options, **implementation).step
            return lambda: (step(), params.detach())[1]

        return make

    peers = {"NumPy": _numpy(name, operands, optimizer.scalars)}
    for how, implementation in IMPLEMENTATIONS.items():
        if optimizer.torch and (how != "fused" or optimizer.torch != "RMSprop"):
            peers[f"torch {how}"] = torch(implementation)
    work = 4 * n * (2 * (1 + optimizer.states) + 1)
    return Case(
        name, f"{n * 4 // MIB} MiB each", work, kernel(name, operands, *optimizer.scalars), peers, verify=_params
    )


def _rows(name: str, optimizer: Optimizer, rows: int) -> Case:
    """Steps on a sixteenth of the table's rows at a time, in any order."""
    k = rows // 16

    def operands() -> list[tuple[Array, ...]]:
        states = [np.zeros((rows, WIDTH), np.float32) for _ in range(optimizer.states)]
        order = np.random.default_rng(2).permutation(rows)[: BATCHES * k].reshape(BATCHES, k)
        table, gradient = floats(0, rows, WIDTH), floats(1, BATCHES, k, WIDTH)
        return [(table, *states, gradient[i], order[i]) for i in range(BATCHES)]

    def torch() -> Call:
        import torch

        sets = [[torch.from_numpy(x) for x in arrays] for arrays in operands()]
        table = sets[0][0].requires_grad_()
        options = dict(optimizer.options)
        if optimizer.sparse == "SparseAdam":  # adds epsilon before the correction of the bias, others after it
            options["eps"] *= (1 - 0.999) ** 0.5
        step = getattr(torch.optim, optimizer.sparse)([table], **options).step
        turn = iter(range(2**60))

        def call() -> Any:
            *_, gradient, index = sets[next(turn) % BATCHES]
            table.grad = torch.sparse_coo_tensor(
                index[None], gradient, table.shape, is_coalesced=True, check_invariants=False
            )
            step()
            return table.detach()

        return call

    peers = {"NumPy": _numpy(f"{name}_rows", operands, optimizer.scalars)}
    if optimizer.sparse:
        peers[f"torch {optimizer.sparse}, sparse"] = torch
    work = k * (4 * WIDTH * (2 * (1 + optimizer.states) + 1) + 8)
    size = f"{k} of {rows} x {WIDTH}"
    ours = kernel(f"{name}_rows", operands, *optimizer.scalars)
    return Case(f"{name}_rows", size, work, ours, peers, verify=_params)
