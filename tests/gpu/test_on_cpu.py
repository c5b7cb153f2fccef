"""Every GPU kernel's source, run on the CPU, against the reference: the calls of `kernel_cases`, threads in any order."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hpcps_kernels import SPECS, load
from hpcps_kernels.gpu import FAMILIES
from hpcps_kernels.gpu._launch import Use
from kernel_cases import Case, all_cases
from on_cpu import Compiled, OnCpu, margins_are_untouched, on_device

REFERENCE = load("reference")
CASES = [case for case in all_cases() if case.spec.module in FAMILIES]
TYPICAL = {case.kernel: case for case in CASES if case.arrays()[0].size}  # the last case of each


def call(case: Case, device: OnCpu, misaligned: int = 0, dirty: bool = False) -> tuple[Any, list[np.ndarray]]:
    """The twin's answer, and its arrays afterwards."""
    spec = case.spec
    kernel = getattr(importlib.import_module(f"hpcps_kernels.gpu.{spec.module}"), case.kernel)
    arrays = [on_device(array, misaligned) for array in case.arrays()]
    for argument, array in zip(spec.arrays, arrays, strict=True):
        if dirty and argument.role == "out":
            array.view_on_host.reshape(-1).view(np.uint8)[:] = 0x77
    values = iter(arrays), iter(case.numbers())
    given = [next(values[not a.is_array]) for a in spec.arguments]
    codes = [a.choices.index(x) if a.choices else x for a, x in zip(spec.arguments, given, strict=True)]
    with Use(device):
        answer = kernel(*codes)
    assert all(map(margins_are_untouched, arrays))
    return answer, [array.view_on_host for array in arrays]


def expected(case: Case) -> tuple[Any, list[np.ndarray]]:
    arrays = case.arrays()
    values = iter(arrays), iter(case.numbers())
    answer = getattr(REFERENCE, case.kernel)(*[next(values[not a.is_array]) for a in case.spec.arguments])
    return answer, arrays


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


def test_there_are_cases_for_every_kernel() -> None:
    assert set(TYPICAL) == {name for name, spec in SPECS.items() if spec.module in FAMILIES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_source_does_as_the_reference_does(case: Case, compiled: Compiled) -> None:
    wanted_answer, wanted = expected(case)
    answer, got = call(case, OnCpu(compiled))
    dtype, tolerance = case.dtypes.get("F", "float64"), case.spec.tolerance_on_gpu
    assert type(answer) is type(wanted_answer)
    if answer is not None:
        near(answer, wanted_answer, dtype, tolerance, "what it returns")
    for argument, g, w in zip(case.spec.arrays, got, wanted, strict=True):
        near(*of_use(case, argument.name, g, w), dtype, tolerance if argument.is_written else 0, argument.name)


@pytest.mark.parametrize("case", TYPICAL.values(), ids=lambda case: case.kernel)
def test_the_same_bits_in_any_order_at_any_place_on_any_device(case: Case, compiled: Compiled) -> None:
    seen = set()
    for multiprocessors, seed, misaligned in ((1, 1, 0), (2, 7, 1), (7, 99, 3)):
        answer, arrays = call(case, OnCpu(compiled, multiprocessors, seed), misaligned, dirty=True)
        seen.add((repr(answer), *(array.tobytes() for array in arrays)))
    assert len(seen) == 1
