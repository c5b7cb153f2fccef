"""A multilayer perceptron: dense layers with an activation between them.

Matrix products are the kernels', on a GPU cuBLAS's, each a single call that writes where its result belongs.

In a reproducible run the products of several grains' samples with a weight are one call, for the bits of a sample do
not depend on others; on a GPU they are a call a grain. Gradients of weights are sums over samples: for these a kernel
adds up grain by grain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hpcps import device
from hpcps.config import Model as Options
from hpcps.models import Array, Arrays, Batch, Facts, Model, Task
from hpcps.params import Params, Shapes

Make = Callable[..., Callable[[], Any]]
SIZES_KEPT = 4
"""Batch sizes whose memory a thread keeps."""


class _Space(NamedTuple):
    """What a batch leaves in memory between the way forward and the way back; a list has an array (n, H) a layer."""

    z: list[Array]  # before the activation, with the bias
    out: list[Array]  # after it; the scores at the end, which become residuals
    delta: list[Array]  # the gradient by z, of all layers but the last
    labels: Array  # (n,) as floats


class _Spaces(threading.local):
    """Memory by batch size, each thread its own."""

    def __init__(self) -> None:
        self.by_size: dict[int, _Space] = {}


def make(options: Options, task: Task, facts: Facts, dtype: str, kernels: Any) -> Model:
    """The model for data of these facts."""
    return MLP(options, task, facts, dtype, kernels)


class MLP:
    """samples @ weight1.T + bias1, activation, ... @ weightL.T + biasL; ``task`` decides the outputs and the loss.

    A multiclass model has an output a class and softmax's cross-entropy, a binary one an output and the logistic loss,
    a regression an output and half the squared error. Weights are (outputs, inputs), which made a step some percent
    shorter than (inputs, outputs).
    """

    can_predict = True
    tables: tuple[str, ...] = ()
    fields = 1

    def __init__(self, options: Options, task: Task, facts: Facts, dtype: str, kernels: Any) -> None:
        self.task = task
        self._activation = options.activation
        self._kernels = kernels
        self._device = device.of(kernels)
        self._dtype = np.dtype(dtype)
        self._widths = [facts.features, *options.hidden, facts.classes if self.task == "multiclass" else 1]
        self._layers = len(self._widths) - 1
        self.shapes: Shapes = _shapes(self._widths)
        self.stages = [[f"weight{layer}", f"bias{layer}"] for layer in range(self._layers, 0, -1)]
        self._unweighted = self._device.empty(0, self._dtype)
        self._mine = _Spaces()

    def init(self, rng: np.random.Generator) -> Params:
        """Uniform weights: He et al. 2015 before relu and gelu, else Glorot & Bengio 2010; biases are zero."""
        params = Params.zeros(self.shapes, self._dtype)
        for layer in range(1, self._layers + 1):
            weight = params[f"weight{layer}"]
            outputs, inputs = weight.shape
            is_rectified = layer < self._layers and self._activation != "tanh"
            limit = np.sqrt(6 / inputs if is_rectified else 6 / (inputs + outputs))
            weight[:] = rng.uniform(-limit, limit, weight.shape)
        return params

    def loss_gradient(
        self,
        params: Arrays,
        batch: Batch,
        gradient_out: Arrays,
        samples_gradient: Array | None = None,
        ready: Callable[[int], None] | None = None,
    ) -> float:
        """Overwrites also ``samples_gradient`` (n, D), the gradient by the samples, where it is given."""
        space = self._space(len(batch.samples))
        loss = self._made(partial, params, batch, gradient_out, space, ready)()
        if samples_gradient is not None:
            self._device.matmul(samples_gradient, (space.delta + space.out[-1:])[0], params["weight1"])
        return loss

    def prepare(
        self,
        params: Arrays,
        batch: Batch,
        gradient_out: Arrays,
        ready: Callable[[int], None] | None = None,
        kept: Arrays | None = None,
    ) -> Callable[[], float]:
        return self._made(_bound, params, batch, gradient_out, self._new_space(len(batch.samples)), ready, kept)

    def _made(
        self,
        make: Make,
        params: Arrays,
        batch: Batch,
        gradient_out: Arrays,
        space: _Space,
        ready: Callable[[int], None] | None,
        kept: Arrays | None = None,
    ) -> Callable[[], float]:
        """What :meth:`loss_gradient` does with these arrays; ``make`` makes its calls of functions and arguments."""
        scores, z = space.out[-1], space.z[-1]
        forward = [make(*call) for call in self._forward_calls(params, batch.samples, space, scores)]
        residual = partial(self._residual, scores, batch.labels, space.labels)
        last = make(self._kernels.activation_gradient, scores, gradient_out[f"bias{self._layers}"], z, z, "identity")
        backward = self._backward_calls(params, batch, space, gradient_out, kept or {})
        stages = [[make(*call) for call in calls] for calls in backward]

        def loss_gradient() -> float:
            for call in forward:
                call()
            loss = residual()
            last()
            for stage, calls in enumerate(stages):
                for call in calls:
                    call()
                if ready is not None:
                    ready(stage)
            return loss

        return loss_gradient

    def grain_gradients(self, params: Arrays, batch: Batch, bounds: Array, adds: Array, stack: Array) -> Array:
        return self.prepare_grains(params, batch, bounds, adds, stack)()

    def prepare_grains(
        self, params: Arrays, batch: Batch, bounds: Array, adds: Array, stack: Array
    ) -> Callable[[], Array]:
        tree = self._device.constant(bounds), self._device.constant(adds)
        return partial(self._grain_gradients, params, batch, bounds, tree, stack)

    def _grain_gradients(
        self, params: Arrays, batch: Batch, bounds: Array, tree: tuple[Array, Array], stack: Array
    ) -> Array:
        """``tree``: bounds and adds where the kernels take them."""
        samples, space = batch.samples, self._space(len(batch.samples))
        scores = space.out[-1]
        self._forward(params, samples, space, scores, bounds)
        losses = np.array(
            [
                self._residual(scores[low:high], batch.labels[low:high], space.labels[low:high])
                for low, high in pairwise(bounds)
            ]
        )
        end = stack.shape[1]
        delta = scores
        for layer in range(self._layers, 0, -1):
            x, weight = space.out[layer - 2] if layer > 1 else samples, params[f"weight{layer}"]
            end -= weight.size + len(weight)
            self._kernels.layer_grains(stack, delta, x, *tree, end)
            if layer > 1:
                below = space.delta[layer - 2]
                self._device.matmul_grains(below, delta, weight, bounds)
                z, unused = space.z[layer - 2], self._device.scratch(below.shape[1], self._dtype)
                self._kernels.activation_gradient(below, unused, z, x, self._activation)
                delta = below
        return losses

    def loss(self, params: Arrays, batch: Batch) -> float:
        space = self._space(len(batch.samples))
        scores = space.out[-1]
        self._forward(params, batch.samples, space, scores)
        if self.task == "multiclass":
            return float(self._kernels.softmax_loss(scores, batch.labels, self._unweighted))
        labels = self._floats(batch.labels, space.labels)
        return float(self._kernels.point_loss(scores[:, 0], labels, self._unweighted, *self._point_loss()))

    def scores(self, params: Arrays, samples: Array) -> Array:
        scores = self._device.scratch((len(samples), self._widths[-1]), self._dtype)
        self._forward(params, samples, self._space(len(samples)), scores)
        return scores if self.task == "multiclass" else scores[:, 0]

    def _forward(
        self, params: Arrays, samples: Array, space: _Space, scores: Array, bounds: Array | None = None
    ) -> None:
        for function, *arguments in self._forward_calls(params, samples, space, scores, bounds):
            function(*arguments)

    def _forward_calls(
        self, params: Arrays, samples: Array, space: _Space, scores: Array, bounds: Array | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Functions and their arguments. With ``bounds`` of grains the products of each have the bits of a call of
        their own."""
        x = samples
        for layer in range(1, self._layers + 1):
            z, is_last = space.z[layer - 1], layer == self._layers
            out, weight = scores if is_last else space.out[layer - 1], params[f"weight{layer}"].T
            if bounds is None:
                yield self._device.product(z, x, weight)
            else:
                yield self._device.matmul_grains, z, x, weight, bounds
            activation = "identity" if is_last else self._activation
            yield self._kernels.bias_activation, out, z, params[f"bias{layer}"], activation
            x = out

    def _residual(self, scores: Array, labels: Array, floats: Array) -> float:
        """Scores become the gradient by them; returns the loss. ``floats`` (n,) is memory for labels."""
        if self.task == "multiclass":
            return float(self._kernels.softmax_residual(scores, labels, self._unweighted))
        labels = self._floats(labels, floats)
        return float(self._kernels.point_residual(scores[:, 0], labels, self._unweighted, *self._point_loss()))

    def _floats(self, labels: Array, floats: Array) -> Array:
        """Labels in the dtype of the parameters, in ``floats`` where they are not."""
        if labels.dtype == self._dtype:
            return labels
        floats[:] = labels
        return floats

    def _point_loss(self) -> tuple[str, float]:
        return ("logistic" if self.task == "binary" else "squared", 1.0)

    def _backward_calls(
        self, params: Arrays, batch: Batch, space: _Space, gradient_out: Arrays, kept: Arrays
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Functions and their arguments, by stage."""
        delta = space.out[-1]
        for layer in range(self._layers, 0, -1):
            x = space.out[layer - 2] if layer > 1 else batch.samples
            name = f"weight{layer}"
            calls = [self._device.product(gradient_out[name], delta.T, x, kept.get(name))]
            if layer > 1:
                below, z = space.delta[layer - 2], space.z[layer - 2]
                calls.append(self._device.product(below, delta, params[name]))
                outs = below, gradient_out[f"bias{layer - 1}"]
                calls.append((self._kernels.activation_gradient, *outs, z, x, self._activation))
                delta = below
            yield calls

    def _space(self, n: int) -> _Space:
        """This thread's memory for n samples."""
        spaces = self._mine.by_size
        if n not in spaces:
            if len(spaces) >= SIZES_KEPT:
                spaces.clear()
            spaces[n] = self._new_space(n)
        return spaces[n]

    def _new_space(self, n: int) -> _Space:
        empty = self._device.empty
        z, out, delta = ([empty((n, width), self._dtype) for width in self._widths[1:]] for _ in range(3))
        return _Space(z, out, delta[:-1], empty(n, self._dtype))


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The call, its arguments checked once if it is a kernel's."""
    bind: Make = getattr(function, "bind", None) or partial(partial, function)
    return bind(*arguments)


def _shapes(widths: Sequence[int]) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, outputs) in enumerate(pairwise(widths), 1):
        shapes[f"weight{layer}"], shapes[f"bias{layer}"] = (outputs, inputs), (outputs,)
    return shapes
