"""Layers of a network and whole steps of a multilayer perceptron, beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, pairwise
from typing import Any

import numpy as np

from families.case import MIB, Array, Call, Case, floats, kernel, torch, within

ACTIVATIONS = ("identity", "relu", "tanh", "gelu")
LAYERS, BATCH = (784, 512, 256, 10), 256
BATCHES = 64  # 50 MB, that take turns
RATE = 0.01
SMALL = np.float32(0.1)  # keeps repeated calls, which work in place, away from overflow and denormal numbers


def cases(quick: bool) -> list[Case]:
    rows = (2 if quick else 64) * MIB // 4096
    kinds = (_forward, _backward)
    return [make(activation, rows) for make in kinds for activation in ACTIVATIONS] + [_step()]


def _forward(activation: str, rows: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        return [(np.empty((rows, 1024), np.float32), floats(0, rows, 1024), floats(1, 1024) * SMALL)]

    def with_torch(torch, out, z, bias) -> Any:
        z += bias
        if activation == "relu":
            torch.clamp_min(z, 0, out=out)
        elif activation == "gelu":
            torch.ops.aten.gelu.out(z, out=out)
        else:
            torch.tanh(z, out=out) if activation == "tanh" else out.copy_(z)
        return out, z

    ours = kernel("bias_activation", operands, activation)
    peers = {"torch": torch(operands, with_torch)}
    return Case(f"bias_activation, {activation}", f"{rows} x 1024", 12 * 1024 * rows, ours, peers)


def _backward(activation: str, rows: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        z = floats(1, rows, 1024) * SMALL
        outputs = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0)}
        out = outputs.get(activation, np.copy)(z)
        return [(floats(0, rows, 1024), np.empty(1024, np.float32), z, out)]

    def with_torch(torch, delta, bias_gradient, z, out) -> Any:
        aten = torch.ops.aten
        if activation == "relu":
            aten.threshold_backward.grad_input(delta, out, 0, grad_input=delta)
        elif activation == "tanh":
            aten.tanh_backward.grad_input(delta, out, grad_input=delta)
        elif activation == "gelu":
            aten.gelu_backward.grad_input(delta, z, grad_input=delta)
        torch.sum(delta, 0, out=bias_gradient)
        return delta, bias_gradient

    ours = kernel("activation_gradient", operands, activation)
    work = (4 if activation == "identity" else 12) * 1024 * rows
    peers = {"torch": torch(operands, with_torch)}
    name = f"activation_gradient, {activation}"
    return Case(name, f"{rows} x 1024", work, ours, peers, verify=within(1e-4))


def _step() -> Case:
    """Forward, backward and SGD on the next batch, with ReLU; the largest products are the limit's kind of work."""
    pairs = list(pairwise(LAYERS))

    def batches() -> list[tuple[Array, Array]]:
        labels = np.random.default_rng(1).integers(0, LAYERS[-1], (BATCHES, BATCH))
        return list(zip(floats(0, BATCHES, BATCH, LAYERS[0]), labels, strict=True))

    def weights() -> list[Array]:
        return [floats(2 + i, to, of) * np.float32((2 / of) ** 0.5) for i, (of, to) in enumerate(pairs)]

    def ours(kernels: Any) -> Call:
        from hpcps.config import Model as Options
        from hpcps.models import Batch, Facts, make
        from hpcps.params import Params

        options = Options(kind="mlp", hidden=LAYERS[1:-1], activation="relu")
        model = make(options, Facts(LAYERS[0], LAYERS[-1]), "float32", kernels)
        params = model.init(np.random.default_rng(0))
        gradients = Params.zeros(params.shapes, np.float32)
        matrices = [params[name] for name in params if params[name].ndim == 2]
        for matrix, weight in zip(matrices, weights(), strict=True):
            matrix[:] = weight if matrix.shape == weight.shape else weight.T
        turn = cycle([Batch(*batch) for batch in batches()])

        def call() -> tuple[Array, ...]:
            model.loss_gradient(params, next(turn), gradients)
            kernels.sgd(params.flat, gradients.flat, RATE, 0.0, 0.0, 1 / BATCH)
            return tuple(matrices)

        return call

    def torch_step(how: dict[str, bool]) -> Callable[[], Call]:
        def make() -> Call:
            import torch

            layers = [torch.nn.Linear(of, to) for of, to in pairs]
            for layer, weight in zip(layers, weights(), strict=True):
                layer.weight.data.copy_(torch.from_numpy(weight))
                torch.nn.init.zeros_(layer.bias)
            model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE, **how)
            turn = cycle([[torch.from_numpy(x) for x in batch] for batch in batches()])

            def call() -> Any:
                samples, labels = next(turn)
                optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.cross_entropy(model(samples), labels).backward()
                optimizer.step()
                return tuple(layer.weight.detach() for layer in layers)

            return call

        return make

    products = sum(of * to for of, to in pairs) * 3 - LAYERS[0] * LAYERS[1]  # no gradient by the samples
    peers = {"torch, fused SGD": torch_step({"fused": True}), "torch, foreach SGD": torch_step({"foreach": True})}
    size = f"{'-'.join(map(str, LAYERS))}, batch {BATCH}"
    return Case("MLP step", size, 2 * BATCH * products, ours, peers, "GFLOP/s", "gemm", 1.2, within(1e-4))
