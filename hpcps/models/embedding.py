"""Features as learned vectors, combined and fed to a multilayer perceptron: for categories, words, ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcps import device
from hpcps.config import Model as Options
from hpcps.errors import ConfigError
from hpcps.first import First, FirstRows, draw_seed, whole
from hpcps.models import Array, Arrays, Batch, Facts, Model, Sparse, Task
from hpcps.models.mlp import MLP
from hpcps.params import Params, Shapes

TABLE = "embedding"
DEVIATION = 0.1
"""Of the vectors at the start."""


def make(options: Options, task: Task, facts: Facts, dtype: str, kernels: Any) -> Model:
    """The model for data of these facts. Raises ConfigError where ``concat`` meets samples of various lengths."""
    if options.combine == "concat" and not facts.entries:
        raise ConfigError("model.combine = 'concat': the samples differ in their number of entries; use sum or mean")
    return Embedding(options, task, facts, dtype, kernels)


class Embedding:
    """The vectors of a sample's features, summed, averaged or side by side, are the samples of an MLP."""

    can_predict = True
    tables: tuple[str, ...] = (TABLE,)
    fields = 1

    def __init__(self, options: Options, task: Task, facts: Facts, dtype: str, kernels: Any) -> None:
        self.task = task
        self._kernels = kernels
        self._device = device.of(kernels)
        self._dtype = np.dtype(dtype)
        self._features = facts.features
        self._width = options.width
        self._entries = facts.entries if options.combine == "concat" else 1
        self._mode = "mean" if options.combine == "mean" else "sum"
        inputs = Facts(self._entries * options.width, facts.classes)
        self._network = MLP(options, task, inputs, dtype, kernels)
        self.shapes: Shapes = {**self._network.shapes, TABLE: (facts.features, options.width)}

    def first(self, rng: np.random.Generator) -> First:
        """Normal vectors; the network begins as an MLP does."""
        network = self._network.init(rng)
        return First(network, {TABLE: FirstRows((self._features, self._width), draw_seed(rng), DEVIATION)})

    def init(self, rng: np.random.Generator) -> Params:
        return whole(self.first(rng), self._kernels)

    def loss_gradient(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> float:
        bags = self._bags(batch.samples)
        inputs = self._inputs(params, bags, len(batch.samples))
        inputs_gradient = self._device.scratch(inputs.shape, inputs.dtype)
        loss = self._network.loss_gradient(params, Batch(inputs, batch.labels), gradient_out, inputs_gradient)
        rows = inputs_gradient.reshape(-1, self._width)
        self._kernels.bag_backward(gradient_out[TABLE], *bags, rows, self._mode)
        return loss

    def loss(self, params: Arrays, batch: Batch) -> float:
        inputs = self._inputs(params, self._bags(batch.samples), len(batch.samples))
        return self._network.loss(params, Batch(inputs, batch.labels))

    def scores(self, params: Arrays, samples: Any) -> Array:
        return self._network.scores(params, self._inputs(params, self._bags(samples), len(samples)))

    def _bags(self, samples: Sparse) -> tuple[Array, Array, Array]:
        """The features whose vectors are added up: a sample's, or each alone where they stand side by side."""
        indptr, columns, values = samples.indptr, samples.columns[0], samples.values
        return (indptr if self._entries == 1 else self._device.put(np.arange(len(columns) + 1))), columns, values

    def _inputs(self, params: Arrays, bags: tuple[Array, Array, Array], samples: int) -> Array:
        inputs = self._device.scratch((samples, self._entries * self._width), self._dtype)
        self._kernels.bag_forward(inputs.reshape(-1, self._width), *bags, params[TABLE], self._mode)
        return inputs
