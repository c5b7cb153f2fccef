"""What every back end offers: the types of the kernels, the table that holds them, and what text becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]


class SparseRows(NamedTuple):
    """Labelled samples as compressed sparse rows: sample i owns entries indptr[i] .. indptr[i + 1] - 1."""

    labels: NDArray[np.float64]  # (n,)
    indptr: NDArray[np.int64]  # (n + 1,)
    indices: NDArray[np.int32]  # (nnz,), from 0, rising within a sample
    values: Array  # (nnz,) float32 or float64


class ParseError(ValueError):
    """Malformed text; `line` (in the data) and byte `column` count from 1, `kind` is an index of `KINDS`."""

    KINDS = (
        "",
        "the line does not begin with a number as its label",
        "expected INDEX:VALUE",
        "the index is outside the range of int32",
        "indices must rise within a line",
        "the value is not a number",
    )

    def __init__(self, line: int, column: int, kind: int) -> None:
        self.line, self.column, self.kind = line, column, kind
        self.reason = self.KINDS[kind]
        super().__init__(f"line {line}, column {column}: {self.reason}")


class LossGradient(Protocol):
    def __call__(
        self,
        weight_gradient: Array,
        bias_gradient: Array,
        samples: Array,
        labels: Array,
        weight: Array,
        bias: Array,
        /,
    ) -> float: ...


class Scores(Protocol):
    def __call__(self, scores: Array, samples: Array, weight: Array, bias: Array, /) -> None: ...


class Loss(Protocol):
    def __call__(self, scores: Array, labels: Array, /) -> float: ...


class AddInto(Protocol):
    def __call__(self, out: Array, x: Array, /) -> None: ...


class MaxAbs(Protocol):
    def __call__(self, x: Array, /) -> float: ...


class FixedPoint(Protocol):
    def __call__(self, out: Array, x: Array, scale: float) -> None: ...


class Sgd(Protocol):
    def __call__(self, params: Array, gradient: Array, learning_rate: float, gradient_scale: float) -> None: ...


class Momentum(Protocol):
    def __call__(
        self,
        params: Array,
        velocity: Array,
        gradient: Array,
        learning_rate: float,
        momentum: float,
        gradient_scale: float,
    ) -> None: ...


class Adagrad(Protocol):
    def __call__(
        self,
        params: Array,
        accumulator: Array,
        gradient: Array,
        learning_rate: float,
        epsilon: float,
        gradient_scale: float,
    ) -> None: ...


class Adam(Protocol):
    def __call__(
        self,
        params: Array,
        first: Array,
        second: Array,
        gradient: Array,
        learning_rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        step: int,
        gradient_scale: float,
    ) -> None: ...


class Gather(Protocol):
    def __call__(self, out: Array, source: Array, index: Array, shift: Array, scale: Array, /) -> None: ...


class GatherCsr(Protocol):
    def __call__(
        self,
        out: Array,
        indptr: Array,
        indices: Array,
        values: Array,
        index: Array,
        shift: Array,
        scale: Array,
        /,
    ) -> None: ...


class Deposit(Protocol):
    def __call__(self, slot: Array, flags: Array, x: Array, rank: int, round: int) -> None: ...


class Collect(Protocol):
    def __call__(self, out: Array, slots: Array, flags: Array, round: int, spins: int) -> bool: ...


class ParseLibsvm(Protocol):
    def __call__(self, data: Array, zero_based: bool = False, dtype: DTypeLike = np.float32) -> SparseRows: ...


@dataclass(frozen=True)
class Kernels:
    """The kernels of one back end; what each does stands in `reference`, what it takes in `spec.py`."""

    name: str

    linear_loss_gradient: LossGradient
    logistic_loss_gradient: LossGradient
    softmax_loss_gradient: LossGradient
    linear_scores: Scores
    softmax_scores: Scores
    linear_loss: Loss
    logistic_loss: Loss
    softmax_loss: Loss

    add_into: AddInto
    max_abs: MaxAbs
    add_fixed: FixedPoint
    from_fixed: FixedPoint

    sgd: Sgd
    momentum: Momentum
    adagrad: Adagrad
    adam: Adam

    gather: Gather
    gather_csr: GatherCsr

    deposit: Deposit
    collect: Collect

    parse_libsvm: ParseLibsvm
