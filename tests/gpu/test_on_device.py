"""The GPU kernels on a GPU, against the reference. Skipped, with the reason, where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hpcps_kernels import load
from hpcps_kernels.gpu.found import look
from kernel_cases import Case
from twins import CASES, TYPICAL, arguments, compare

if not look().gpus:
    pytest.skip(f"GPU: {look().line()}", allow_module_level=True)
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def kernels() -> Any:
    try:
        return load("gpu")
    except RuntimeError as error:
        pytest.skip(str(error))


def call(kernels: Any, case: Case, misaligned: int = 0) -> tuple[Any, list[np.ndarray]]:
    """What the kernel returns, and its arrays afterwards."""
    import cupy

    arrays = []
    for array in case.arrays():
        room = cupy.empty(array.size + misaligned, array.dtype)
        arrays.append(room[misaligned:].reshape(array.shape))
        arrays[-1].set(array)
    answer = getattr(kernels, case.kernel)(*arguments(case, arrays))
    return answer, [cupy.asnumpy(array) for array in arrays]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_does_as_the_reference_does(kernels: Any, case: Case) -> None:
    compare(case, *call(kernels, case))


@pytest.mark.parametrize("case", TYPICAL.values(), ids=lambda case: case.kernel)
def test_the_same_bits_again_and_wherever_the_arrays_lie(kernels: Any, case: Case) -> None:
    seen = set()
    for misaligned in (0, 0, 0, 1, 3):
        answer, arrays = call(kernels, case, misaligned)
        seen.add((repr(answer), *(array.tobytes() for array in arrays)))
    assert len(seen) == 1


def test_small_numbers_are_not_flushed_to_zero(kernels: Any) -> None:
    import cupy

    x, out = cupy.full(100, 1e-40, "float32"), cupy.full(100, 1e-40, "float32")
    kernels.add_into(out, x)
    assert (cupy.asnumpy(out) == np.float32(1e-40) * 2).all()
    every = np.arange(0x7C00).astype(np.uint16)  # halves from 0 to the largest
    numbers, codes = cupy.empty(every.size, "float32"), cupy.empty(every.size, "uint16")
    kernels.from_float16(numbers, cupy.asarray(every))
    np.testing.assert_array_equal(cupy.asnumpy(numbers), every.view(np.float16).astype(np.float32))
    kernels.to_float16(codes, numbers)
    np.testing.assert_array_equal(cupy.asnumpy(codes), every)


def test_sorting_and_running_sums_of_nothing(kernels: Any) -> None:
    import cupy

    nothing, numbers = cupy.empty(0, "int64"), cupy.empty(0, "int32")
    assert kernels.unique(nothing, numbers, cupy.empty(0, "int64")) == 0
    table = cupy.ones((3, 2))
    kernels.scatter_add_rows(table, cupy.empty((0, 2)), nothing)
    assert (cupy.asnumpy(table) == 1).all()
