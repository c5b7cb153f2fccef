"""Layers of a network: what follows the matrix product, forward and backward.

n samples, H units; F is float32 or float64, the same for all arrays of one call. A nan gives a nan.
"""

from __future__ import annotations

import math

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.spec import ACTIVATIONS


def bias_activation(out: Array, z: Array, bias: Array, activation: int) -> None:
    """z += bias; out = f(z). out, z (n, H) F; bias (H,) F; activation: a position in ACTIVATIONS.

    relu: max(z, 0). gelu: z P(X <= z) of a standard normal X (Hendrycks & Gimpel 2016), by erf, not by tanh.
    """
    z += bias
    name = ACTIVATIONS[activation]
    if name == "identity":
        out[:] = z
    elif name == "relu":
        out[:] = np.where(z <= 0, 0, z)
    elif name == "tanh":
        out[:] = np.tanh(z)
    else:
        out[:] = z * _normal(z)


def activation_gradient(delta: Array, bias_gradient: Array, z: Array, out: Array, activation: int) -> None:
    """delta *= f'(z); bias_gradient = the column sums of delta.

    delta, z, out (n, H) F, the latter two as bias_activation left them; bias_gradient (H,) F. relu'(0) = 0;
    tanh' = 1 - tanh^2; gelu' = P(X <= z) + z p(z) with the density p of a standard normal X.
    """
    name = ACTIVATIONS[activation]
    if name == "relu":
        delta *= np.where(np.isnan(z), z, z > 0)
    elif name == "tanh":
        delta *= 1 - out * out
    elif name == "gelu":
        delta *= (_normal(z) + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)).astype(z.dtype)
    bias_gradient[:] = delta.sum(axis=0)


def _normal(z: Array) -> Array:
    """P(X <= z) of a standard normal X, in float64."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    probability: Array = 0.5 * (1 + erf(z / math.sqrt(2)))
    return probability
