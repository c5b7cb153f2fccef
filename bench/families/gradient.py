"""Dense samples: linear models' gradients in one pass, and whole steps of softmax regression."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

from families.case import MIB, Array, Call, Case, floats, kernel, numpy, torch, within

NOTHING = np.empty(0, np.float32)
FEATURES, CLASSES, BATCH = 784, 10, 256
BATCHES = 64  # 50 MB as float32, that take turns
LEARNING_RATE = {"float32": 0.01, "uint8": 1e-6}


def cases(quick: bool) -> list[Case]:
    samples_bytes = (2 if quick else 64) * MIB
    dense = [_dense(loss, dtype, samples_bytes) for loss in ("logistic", "squared") for dtype in LEARNING_RATE]
    return dense + [_softmax_step(dtype) for dtype in LEARNING_RATE]


def _samples(dtype: str, *shape: int) -> Array:
    if dtype == "uint8":
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return floats(0, *shape)


def _dense(loss: str, dtype: str, samples_bytes: int) -> Case:
    d = 512
    n = samples_bytes // d // np.dtype(dtype).itemsize

    def operands() -> list[tuple[Array, ...]]:
        labels = np.random.default_rng(1).integers(0, 2, n).astype(np.float32)
        weight = floats(2, d) * np.float32(0.05 if dtype == "float32" else 0.0005)
        gradients = np.empty(d, np.float32), np.empty(1, np.float32)
        return [(*gradients, _samples(dtype, n, d), labels, NOTHING, weight, np.zeros(1, np.float32))]

    def with_numpy(weight_gradient, bias_gradient, samples, labels, _, weight, bias) -> Any:
        samples = samples.astype(np.float32, copy=False)
        scores = samples @ weight + bias
        if loss == "logistic":
            (np.logaddexp(0, scores) - labels * scores).sum()
            scores = 1 / (1 + np.exp(-scores))
        residual = scores - labels
        if loss == "squared":
            residual @ residual
        return residual @ samples, residual.sum()

    def with_torch(torch, weight_gradient, bias_gradient, samples, labels, _, weight, bias) -> Any:
        samples = samples.float()
        scores = torch.addmv(bias, samples, weight)
        if loss == "logistic":
            torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
            residual = torch.sigmoid(scores).sub_(labels)
        else:
            residual = scores - labels
            residual.dot(residual)
        return samples.T @ residual, residual.sum()

    ours = kernel("dense_loss_gradient", operands, loss, 1.0)
    peers = {"NumPy": numpy(operands, with_numpy), "torch": torch(operands, with_torch)}
    name = f"dense_loss_gradient, {loss}, {dtype}"
    return Case(name, f"{n} x {d}", samples_bytes, ours, peers, verify=within(1e-4))


def _softmax_step(dtype: str) -> Case:
    """Forward, backward and SGD on the next batch."""
    rate = LEARNING_RATE[dtype]

    def batches() -> list[tuple[Array, Array]]:
        samples = _samples(dtype, BATCHES, BATCH, FEATURES)
        labels = np.random.default_rng(1).integers(0, CLASSES, (BATCHES, BATCH))
        return list(zip(samples, labels, strict=True))

    def ours(kernels: Any) -> Call:
        gradient, sgd = kernels.softmax_loss_gradient, kernels.sgd
        params, gradients = (np.zeros(CLASSES * (FEATURES + 1), np.float32) for _ in range(2))
        views = [
            (x[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), x[CLASSES * FEATURES :]) for x in (params, gradients)
        ]
        turn = cycle(batches())

        def call() -> tuple[Array, ...]:
            samples, labels = next(turn)
            gradient(*views[1], samples, labels, NOTHING, *views[0])
            sgd(params, gradients, rate, 0.0, 0.0, 1 / BATCH)
            return views[0]

        return call

    def torch_step(how: dict[str, bool]) -> Callable[[], Call]:
        def make() -> Call:
            import torch

            model = torch.nn.Linear(FEATURES, CLASSES)
            torch.nn.init.zeros_(model.weight)
            torch.nn.init.zeros_(model.bias)
            optimizer = torch.optim.SGD(model.parameters(), lr=rate, **how)
            turn = cycle([[torch.from_numpy(x) for x in batch] for batch in batches()])

            def call() -> Any:
                samples, labels = next(turn)
                optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.cross_entropy(model(samples.float()), labels).backward()
                optimizer.step()
                return model.weight.detach(), model.bias.detach()

            return call

        return make

    peers = {"torch, fused SGD": torch_step({"fused": True}), "torch, foreach SGD": torch_step({"foreach": True})}
    size = f"{FEATURES} x {CLASSES}, batch {BATCH}"
    name = f"softmax step, {dtype}"
    return Case(name, size, BATCH, ours, peers, "M rows/s", "none", 3.0, within(1e-4))
