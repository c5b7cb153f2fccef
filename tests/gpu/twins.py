"""Cases of the kernels that GPUs have, what the reference makes of them, and how near a twin must come."""

from __future__ import annotations

from typing import Any

import numpy as np
from hpcps_kernels import load
from hpcps_kernels.gpu import FAMILIES
from kernel_cases import Case, all_cases

CASES = [case for case in all_cases() if case.spec.module in FAMILIES]
TYPICAL = {case.kernel: case for case in CASES if case.arrays()[0].size}  # the last case of each


def arguments(case: Case, arrays: list[Any]) -> list[Any]:
    """The arrays and the case's numbers, in the order of the spec."""
    values = iter(arrays), iter(case.numbers())
    return [next(values[not a.is_array]) for a in case.spec.arguments]


def compare(case: Case, answer: Any, arrays: list[np.ndarray]) -> None:
    """What a twin returned, and its arrays afterwards, beside the reference's."""
    wanted = case.arrays()
    wanted_answer = getattr(load("reference"), case.kernel)(*arguments(case, wanted))
    dtype, tolerance = case.dtypes.get("F", "float64"), case.spec.tolerance_on_gpu
    assert type(answer) is type(wanted_answer)
    if answer is not None:
        near(answer, wanted_answer, dtype, tolerance, "what it returns")
    for argument, g, w in zip(case.spec.arrays, arrays, wanted, strict=True):
        near(*of_use(case, argument.name, g, w), dtype, tolerance if argument.is_written else 0, argument.name)


def near(got: Any, wanted: Any, dtype: str, tolerance: float, what: str) -> None:
    """As in the tests of the CPU's kernels: within so many epsilons of the largest magnitude, or the same bits."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if not tolerance or wanted.dtype.kind not in "f":
        np.testing.assert_array_equal(got, wanted, err_msg=what, strict=True)
        return
    epsilon = max(np.finfo(one).eps for one in (dtype, wanted.dtype))
    finite = np.abs(wanted[np.isfinite(wanted)])
    within = tolerance * epsilon * max(finite.max(initial=0), 1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=within, err_msg=what)


def of_use(case: Case, name: str, *arrays: np.ndarray) -> list[np.ndarray]:
    """Of a stack of grains the rows that are left; those above hold anything."""
    if name == "stack" and case.kernel != "layer_grains":
        adds = next(array for a, array in zip(case.spec.arrays, case.arrays(), strict=True) if a.name == "adds")
        return [array[: len(adds) - adds.sum()] for array in arrays]
    return list(arrays)
