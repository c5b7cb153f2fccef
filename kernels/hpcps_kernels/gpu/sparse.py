"""Linear models of sparse samples: scores, gradients of losses, rows picked by number."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._groups import group_entries
from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, device, strides
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.gpu.loss import check_delta, label_error, point_into, softmax_into
from hpcps_kernels.gpu.reduce import lanes_for, sum_columns

WARPS = THREADS // 32  # of a block
MALFORMED = "csr: a row has entries outside the arrays or columns outside 0..D-1"

_T = {"T": FLOATS}
SCORES = Launch(
    "sparse",
    "scores",
    "T *, const i64 *, i64, const i32 *, const T *, i64, const T *, const T *, i64, i64, const double *",
    strides(WARPS),
    _T,
)
GRADIENT = Launch(
    "sparse",
    "gradient",
    "T *, const T *, const T *, i64, const i64 *, const i64 *, const i64 *, const i64 *, const i64 *, i64, i64, i64, "
    "i64, const double *",
    strides(WARPS),
    _T,
)
LENGTHS = Launch("sparse", "lengths", "i64 *, const i64 *, i64, const i64 *, i64, i64, double *", strides(THREADS))
TAKE = Launch(
    "sparse",
    "take",
    "i64 *, i32 *, T *, i64, const i64 *, const i64 *, const i32 *, const V *, i64, const i64 *, i64, const T *, i64, "
    "i64, i64, double *",
    strides(WARPS),
    {"T": FLOATS, "V": FLOATS},
)


def csr_scores(scores: Any, indptr: Any, indices: Any, values: Any, weight: Any, bias: Any) -> None:
    told = Told()
    _scores(told, scores, indptr, indices, values, weight, bias)
    told.sum(IndexError(MALFORMED))


def csr_softmax_scores(scores: Any, indptr: Any, indices: Any, values: Any, weight: Any, bias: Any) -> None:
    csr_scores(scores, indptr, indices, values, weight, bias)


def csr_loss_gradient(
    weight_gradient: Any,
    bias_gradient: Any,
    indptr: Any,
    indices: Any,
    values: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    bias: Any,
    loss: int,
    delta: float,
) -> float:
    check_delta(loss, delta)
    entries, losses, both = Told.pair()
    residual = device().empty((labels.size, 1), weight.dtype)
    _scores(entries, residual, indptr, indices, values, weight, bias)
    point_into(losses, residual, labels, sample_weight, loss, delta, residuals=True)
    _gradient(entries, weight_gradient, bias_gradient, residual, indptr, indices, values)
    return Told.sum_of_pair(both, IndexError(MALFORMED), label_error(loss))


def csr_softmax_loss_gradient(
    weight_gradient: Any,
    bias_gradient: Any,
    indptr: Any,
    indices: Any,
    values: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    bias: Any,
) -> float:
    entries, losses, both = Told.pair()
    residual = device().empty((labels.size, bias.size), weight.dtype)
    _scores(entries, residual, indptr, indices, values, weight, bias)
    softmax_into(losses, residual, labels, sample_weight, residuals=True)
    _gradient(entries, weight_gradient, bias_gradient, residual, indptr, indices, values)
    return Told.sum_of_pair(both, IndexError(MALFORMED), label_error(None))


def csr_take(
    indptr_out: Any,
    indices_out: Any,
    values_out: Any,
    indptr: Any,
    indices: Any,
    values: Any,
    index: Any,
    scale: Any,
    columns: int,
) -> None:
    here, told, m = device(), Told(), index.size
    length = here.empty(m, "int64")
    LENGTHS(m, length, indptr, indptr.size - 1, index, m, indices.size, told.array)
    ends = here.running_sum(length)

    def launch(writes: int) -> None:
        TAKE(
            m, indptr_out, indices_out, values_out, int(values_out.size > 0), ends, indptr, indices, values,
            int(values.size > 0), index, m, scale, int(scale.size > 0), columns, writes, told.array,
            T=scale.dtype, V=values.dtype,
        )  # fmt: skip

    launch(writes=0)
    told.sum(IndexError(f"csr_take: an index is outside 0..N-1, or {MALFORMED}"))
    if (int(here.read(ends[m - 1 :])[0]) if m else 0) != indices_out.size:
        raise ValueError("csr_take: the rows picked have more or fewer entries than the outputs")
    if m == 0:
        told.clear(indptr_out)
    launch(writes=1)


def _scores(told: Told, scores: Any, indptr: Any, indices: Any, values: Any, weight: Any, bias: Any) -> None:
    told.entries(indptr, indices, len(weight))
    n, classes = indptr.size - 1, bias.size
    SCORES(
        n, scores, indptr, n, indices, values, int(values.size > 0), weight, bias, classes, lanes_for(classes),
        told.array, T=weight.dtype,
    )  # fmt: skip


def _gradient(
    told: Told, weight_gradient: Any, bias_gradient: Any, residual: Any, indptr: Any, indices: Any, values: Any
) -> None:
    """By the residuals (n, K) that the loss has left."""
    nnz, columns, classes = indices.size, len(weight_gradient), bias_gradient.size
    told.clear(weight_gradient)
    sum_columns(bias_gradient, residual)
    entries = group_entries(told, indptr, indices, columns)
    _, starts, numbers, _ = groups = entries.groups
    GRADIENT(
        nnz, weight_gradient, residual, values, int(values.size > 0), entries.samples, entries.keys, groups.order,
        starts, numbers, nnz, columns, classes, lanes_for(classes), told.array, T=residual.dtype,
    )  # fmt: skip
