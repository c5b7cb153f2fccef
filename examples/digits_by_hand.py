"""A training function of one's own: samples and labels in, loss and gradients out, both summed over the samples."""

import numpy as np


def loss_gradient(params, samples, labels):
    """Softmax regression in plain NumPy. ``samples`` (n, D); ``labels`` (n,), class numbers from 0."""
    scores = samples @ params["weight"].T + params["bias"]
    scores -= scores.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(scores).sum(axis=1))
    picked = scores[np.arange(len(labels)), labels]
    loss = (log_sums - picked).sum()

    residual = np.exp(scores - log_sums[:, None])
    residual[np.arange(len(labels)), labels] -= 1
    return loss, {"weight": residual.T @ samples, "bias": residual.sum(axis=0)}


def scores(params, samples):
    """What prediction needs: (n, K) scores."""
    return samples @ params["weight"].T + params["bias"]
