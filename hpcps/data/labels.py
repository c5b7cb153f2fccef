"""Labels: the classes that all ranks agree on, and the class number or value of each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from hpcps.data.blocks import Array, Ints
from hpcps.errors import DataError

Task = Literal["regression", "binary", "multiclass"]
Where = Callable[[int], str]
SHOWN = 6


def whole_labels(labels: Array, where: Where) -> Ints:
    """Labels (m,) of a classifier as int64; raises DataError naming the first that is not a whole number."""
    if labels.dtype.kind == "f":
        wide = labels.astype(np.float64)
        whole = (np.abs(wide) < 2.0**63) & (wide == np.trunc(wide))  # False for NaN and infinities
    elif labels.dtype.kind == "u":
        whole = labels < 2**63
    else:
        whole = np.ones(len(labels), bool)
    if not whole.all():
        i = int(np.argmin(whole))
        raise DataError(f"{where(i)}: the label {labels[i]} is not a whole number; classes are numbered by integers")
    return labels.astype(np.int64)


def finite_labels(labels: Array, where: Where) -> Array:
    """Labels (m,) of a regression as float64; raises DataError naming the first that is NaN or infinite."""
    finite = np.isfinite(labels)
    if not finite.all():
        i = int(np.argmin(finite))
        raise DataError(f"{where(i)}: the label is {labels[i]}")
    return labels.astype(np.float64)


def class_numbers(labels: Ints, classes: Ints, where: Where) -> Ints:
    """Positions (m,) of labels in the ascending classes; raises DataError naming one that is not there."""
    numbers = np.searchsorted(classes, labels)
    known = classes[np.minimum(numbers, len(classes) - 1)] == labels
    if not known.all():
        i = int(np.argmin(known))
        raise DataError(
            f"{where(i)}: the label {labels[i]} does not occur among the training labels ({listed(classes)})"
        )
    return numbers.astype(np.int64)


def check_classes(classes: Ints, task: Task, file: str) -> None:
    """Raise DataError where the number of classes does not fit the task."""
    count = len(classes)
    if count == 1:
        raise DataError(f"{file}: every label is {classes[0]}; a classifier needs at least 2 classes")
    if task == "binary" and count != 2:
        raise DataError(f"{file}: {count} classes ({listed(classes)}) do not fit a binary model; use softmax")


def listed(classes: Ints) -> str:
    """The first few classes in words."""
    shown = ", ".join(str(label) for label in classes[:SHOWN])
    return shown + (", …" if len(classes) > SHOWN else "")
