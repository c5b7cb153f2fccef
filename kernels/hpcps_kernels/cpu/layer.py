"""Layers of a network: what follows the matrix product, forward and backward.

relu is bound by memory, or by the cache where a batch fits one; tanh and gelu by arithmetic.
"""

from __future__ import annotations

from hpcps_kernels.cpu._functions import normal, one, tanh, wide_vectors, zero
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.interface import Array
from hpcps_kernels.spec import ACTIVATIONS

RELU, TANH, GELU = map(ACTIVATIONS.index, ("relu", "tanh", "gelu"))


@kernel
def bias_activation(out: Array, z: Array, bias: Array, activation: int) -> None:
    wide_vectors()
    for i in range(z.shape[0]):
        into, row = out[i], z[i]
        if activation == RELU:
            for j in range(bias.shape[0]):
                x = row[j] + bias[j]
                row[j] = x
                into[j] = zero(x) if x <= zero(x) else x
        elif activation == TANH:
            for j in range(bias.shape[0]):
                x = row[j] + bias[j]
                row[j] = x
                into[j] = tanh(x)
        elif activation == GELU:
            for j in range(bias.shape[0]):
                x = row[j] + bias[j]
                row[j] = x
                into[j] = x * normal(x)[0]
        else:
            for j in range(bias.shape[0]):
                x = row[j] + bias[j]
                row[j] = x
                into[j] = x


@kernel
def activation_gradient(delta: Array, bias_gradient: Array, z: Array, out: Array, activation: int) -> None:
    wide_vectors()
    bias_gradient[:] = 0
    for i in range(delta.shape[0]):
        row = delta[i]
        if activation == RELU:
            _relu_back(row, bias_gradient, z[i])
        elif activation == TANH:
            _tanh_back(row, bias_gradient, out[i])
        elif activation == GELU:
            _gelu_back(row, bias_gradient, z[i])
        else:
            for j in range(row.shape[0]):
                bias_gradient[j] += row[j]


@part
def _relu_back(delta: Array, bias_gradient: Array, z: Array) -> None:
    for j in range(delta.shape[0]):
        passed = zero(z[j]) if z[j] <= zero(z[j]) else z[j]  # nan of nan
        slope = one(z[j]) if z[j] > zero(z[j]) else passed
        d = delta[j] * slope
        delta[j] = d
        bias_gradient[j] += d


@part
def _tanh_back(delta: Array, bias_gradient: Array, out: Array) -> None:
    for j in range(delta.shape[0]):
        d = delta[j] * (one(out[j]) - out[j] * out[j])
        delta[j] = d
        bias_gradient[j] += d


@part
def _gelu_back(delta: Array, bias_gradient: Array, z: Array) -> None:
    for j in range(delta.shape[0]):
        below, density = normal(z[j])
        d = delta[j] * (below + z[j] * density)
        delta[j] = d
        bias_gradient[j] += d
