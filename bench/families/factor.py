"""Factorization machines, bags of embeddings and matrix factorisation, beside NumPy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from generate import FIELDS, criteo

from families.case import Array, Call, Case, floats, kernel, numpy, torch, within

NOTHING = np.empty(0, np.float32)
FACTORS = 16
BATCHES = 8  # that take turns
USERS, ITEMS = 6040, 3706  # as in MovieLens-1M


def cases(quick: bool) -> list[Case]:
    n = 256 if quick else 4096
    return [_fm(n), _bag(n, "sum"), _bag(n, "mean"), _mf(16 * n)]


def _batches(n: int) -> list[tuple[Array, Array, Array, int]]:
    """indptr, indices renumbered within the batch, labels, and how many features the batch has."""
    rows = criteo(n * BATCHES)
    found = []
    for i in range(BATCHES):
        batch = rows.cut(i * n, (i + 1) * n)
        keys, local = np.unique(batch.indices, return_inverse=True)
        found.append((batch.indptr, local.astype(np.int32), batch.labels, len(keys)))
    return found


def _fm(n: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        sets = []
        for indptr, indices, labels, features in _batches(n):
            table = floats(1, features, 1 + FACTORS) * np.float32(0.05)
            gradients = np.empty_like(table), np.empty(1, np.float32)
            sets.append((*gradients, indptr, indices, NOTHING, labels, NOTHING, table, np.zeros(1, np.float32)))
        return sets

    def with_numpy(table_gradient, bias_gradient, indptr, indices, _, labels, __, table, bias) -> Any:
        entries = table[indices].reshape(n, FIELDS, -1)
        factors = entries[:, :, 1:]
        sums = factors.sum(axis=1)
        scores = bias + entries[:, :, 0].sum(axis=1) + ((sums**2).sum(axis=1) - (factors**2).sum(axis=(1, 2))) / 2
        (np.logaddexp(0, scores) - labels * scores).sum()
        residual = 1 / (1 + np.exp(-scores)) - labels
        by_entry = np.empty_like(entries)
        by_entry[:, :, 0] = residual[:, None]
        np.multiply(residual[:, None, None], sums[:, None] - factors, out=by_entry[:, :, 1:])
        table_gradient[:] = 0
        np.add.at(table_gradient, indices, by_entry.reshape(-1, 1 + FACTORS))
        bias_gradient[0] = residual.sum()
        return table_gradient, bias_gradient

    def with_torch(module, table_gradient, bias_gradient, indptr, indices, _, labels, __, table, bias) -> Any:
        entries = table.index_select(0, indices).view(n, FIELDS, -1)
        factors = entries[:, :, 1:]
        sums = factors.sum(1)
        scores = bias + entries[:, :, 0].sum(1) + (sums.square().sum(1) - factors.square().sum((1, 2))) / 2
        module.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
        residual = module.sigmoid(scores).sub_(labels)
        by_entry = module.empty_like(entries)
        by_entry[:, :, 0] = residual[:, None]
        module.mul(residual[:, None, None], sums[:, None] - factors, out=by_entry[:, :, 1:])
        table_gradient.zero_().index_add_(0, indices, by_entry.view(-1, 1 + FACTORS))
        return table_gradient, residual.sum()

    ours = kernel("fm_loss_gradient", operands, "logistic", 1.0)
    peers = {"NumPy": numpy(operands, with_numpy), "torch": torch(operands, with_torch)}
    size = f"{n} rows of {FIELDS}, {FACTORS} factors"
    return Case("fm_loss_gradient", size, n, ours, peers, "M rows/s", "none", verify=within(1e-4))


def _bag(n: int, mode: str) -> Case:
    """Bags forward and, with a gradient of the same shape, backward."""

    def ours(kernels: Any) -> Call:
        out, gradient = np.empty((n, FACTORS), np.float32), floats(2, n, FACTORS)
        turn = cycle(
            [(*batch, floats(1, batch[3], FACTORS), np.empty((batch[3], FACTORS), np.float32)) for batch in _batches(n)]
        )
        forward, backward = kernels.bag_forward, kernels.bag_backward

        def call() -> tuple[Array, Array]:
            indptr, indices, _, _, table, table_gradient = next(turn)
            forward(out, indptr, indices, NOTHING, table, mode)
            backward(table_gradient, indptr, indices, NOTHING, gradient, mode)
            return out, table_gradient

        return call

    def with_torch() -> Call:
        import torch as module

        gradient = module.from_numpy(floats(2, n, FACTORS))
        sets = []
        for indptr, indices, _, features in _batches(n):
            table = module.from_numpy(floats(1, features, FACTORS)).requires_grad_()
            sets.append((table, module.from_numpy(indices.astype(np.int64)), module.from_numpy(indptr[:-1].copy())))
        turn = cycle(sets)

        def call() -> tuple[Any, Any]:
            table, indices, offsets = next(turn)
            table.grad = None
            out = module.nn.functional.embedding_bag(indices, table, offsets, mode=mode)
            out.backward(gradient)
            return out.detach(), table.grad

        return call

    size = f"{n} bags of {FIELDS} x {FACTORS}"
    peers = {"torch embedding_bag": with_torch}
    return Case(f"bag_forward + bag_backward, {mode}", size, n, ours, peers, "M rows/s", "none", verify=within(1e-4))


def _mf(n: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        rng = np.random.default_rng(0)
        user, item = (floats(i, count, 1 + FACTORS) * np.float32(0.1) for i, count in enumerate((USERS, ITEMS)))
        gradients = np.empty_like(user), np.empty_like(item), np.empty(1, np.float32)
        bias = np.zeros(1, np.float32)
        return [
            (
                *gradients,
                *(rng.integers(0, count, n, np.int32) for count in (USERS, ITEMS)),
                rng.integers(1, 6, n).astype(np.float32),
                NOTHING,
                user,
                item,
                bias,
            )
            for _ in range(BATCHES)
        ]

    def learner(add: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
        """The same for arrays and tensors but for ``add(table, rows, added)``."""

        def learn(by_user, by_item, by_bias, users, items, labels, _, user, item, bias) -> Any:
            a, b = user[users], item[items]
            residual = bias + a[:, 0] + b[:, 0] + (a[:, 1:] * b[:, 1:]).sum(1) - labels
            residual @ residual
            a[:, 0], b[:, 0] = 1, 1
            a *= residual[:, None]
            b *= residual[:, None]
            by_user[:], by_item[:] = 0, 0
            add(by_user, users, b)
            add(by_item, items, a)
            by_bias[0] = residual.sum()
            return by_user, by_item, by_bias

        return learn

    in_torch = learner(lambda table, rows, added: table.index_add_(0, rows, added))
    peers = {
        "NumPy": numpy(operands, learner(np.add.at)),
        "torch": torch(operands, lambda module, *tensors: in_torch(*tensors)),
    }
    ours = kernel("mf_loss_gradient", operands, "squared", 1.0)
    size = f"{n} ratings, {USERS} x {ITEMS}, {FACTORS} factors"
    return Case("mf_loss_gradient", size, n, ours, peers, "M ratings/s", "none", verify=within(1e-4))
