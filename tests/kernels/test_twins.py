"""Every kernel of the CPU back end against the reference: what it returns, what it writes, what it leaves alone.

The calls are those of `kernel_cases`; a new kernel without any fails here.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hpcps_kernels import SPECS, Kernels, load
from hpcps_kernels.specs import FAMILIES
from hpcps_kernels.split import split
from kernel_cases import FLOATS, OWN_FILES, Case, all_cases

REFERENCE, CPU = load("reference"), load("cpu")
CASES = all_cases()
TYPICAL = {case.kernel: case for case in CASES if case.arrays()[0].size}  # the last case of each


def call(kernels: Kernels, case: Case, arrays: list[np.ndarray]):
    """Call the kernel with the arrays and the case's numbers, in the order of the spec."""
    values = iter(arrays), iter(case.numbers())
    return getattr(kernels, case.kernel)(*[next(values[not a.is_array]) for a in case.spec.arguments])


def near(got, wanted, dtype, tolerance: float, what: str) -> None:
    """Equal to the last bit, or within so many epsilons (the coarser dtype's) of the largest magnitude (at least 1)."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if not tolerance or wanted.dtype.kind not in "f":
        np.testing.assert_array_equal(got, wanted, err_msg=what, strict=True)
        return
    epsilon = max(np.finfo(one).eps for one in (dtype, wanted.dtype))
    finite = np.abs(wanted[np.isfinite(wanted)])
    within = tolerance * epsilon * max(finite.max(initial=0), 1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=within, err_msg=what)


def test_every_kernel_has_a_spec_and_a_case() -> None:
    assert {family.__name__.rpartition(".")[2] for family in FAMILIES} == {spec.module for spec in SPECS.values()}
    assert {case.kernel for case in CASES} == {name for name, spec in SPECS.items() if spec.module not in OWN_FILES}
    assert set(TYPICAL) == {case.kernel for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_does_as_the_reference_does(case: Case) -> None:
    wanted, got, before = (case.arrays() for _ in range(3))
    dtype = case.dtypes.get("F", "float64")
    answer, result = call(REFERENCE, case, wanted), call(CPU, case, got)
    assert type(result) is type(answer)
    if answer is not None:
        near(result, answer, dtype, case.spec.tolerance, "what it returns")
    for argument, g, w, b in zip(case.spec.arrays, got, wanted, before, strict=True):
        if argument.is_written:
            near(g, w, dtype, case.spec.tolerance, argument.name)
        else:
            np.testing.assert_array_equal(g, b, err_msg=f"{argument.name} was only to be read", strict=True)


@pytest.mark.parametrize(
    "case", [c for c in TYPICAL.values() if any(a.role == "out" for a in c.spec.arrays)], ids=lambda c: c.kernel
)
def test_an_out_argument_is_overwritten_whatever_it_held(case: Case) -> None:
    for kernels in (REFERENCE, CPU):
        clean, dirty = case.arrays(), case.arrays()
        for argument, array in zip(case.spec.arrays, dirty, strict=True):
            if argument.role == "out":
                array[...] = np.nan if array.dtype.kind == "f" else 77
        for arrays in (clean, dirty):
            call(kernels, case, arrays)
        for c, d in zip(clean, dirty, strict=True):
            np.testing.assert_array_equal(c, d)


@pytest.mark.parametrize("case", TYPICAL.values(), ids=lambda c: c.kernel)
def test_an_array_with_gaps_is_refused(case: Case) -> None:
    for kernels in (REFERENCE, CPU):
        for number, argument in enumerate(case.spec.arrays):
            arrays = case.arrays()
            shape = arrays[number].shape
            if arrays[number].size < 2:
                continue
            arrays[number] = np.zeros((*shape, 2), arrays[number].dtype)[..., 0]
            with pytest.raises(ValueError, match=f"{case.kernel}: {argument.name} must be C-contiguous"):
                call(kernels, case, arrays)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.splits])
def test_a_kernel_that_splits_gives_the_same_bits_for_any_slices(name: str, dtype: str) -> None:
    case = next(c for c in reversed(CASES) if c.kernel == name and dtype in (*c.dtypes.values(), dtype))
    spec, kernel = case.spec, getattr(CPU, name)
    whole, sliced, threaded = (case.arrays() for _ in range(3))
    call(CPU, case, whole)
    cut = [a.shape[:1] == (spec.splits,) for a in spec.arrays]
    length = next(len(array) for array, is_cut in zip(sliced, cut, strict=True) if is_cut)
    for lo, hi in pairwise([*(b for b in (0, 1, 2, 4, 7, 12, 28, 45, 108, 203) if b < length), length]):
        call(CPU, case, [array[lo:hi] if is_cut else array for array, is_cut in zip(sliced, cut, strict=True)])
    values = iter(threaded), iter(case.numbers())
    kernel(*[next(values[not a.is_array]) for a in spec.arguments], threads=3)
    for w, s, t in zip(whole, sliced, threaded, strict=True):
        assert w.tobytes() == s.tobytes() == t.tobytes()


def test_slices_cover_everything_and_an_error_in_one_is_raised() -> None:
    x = np.zeros(1_000_003)
    CPU.add_into(x, np.ones_like(x), threads=7)
    assert (x == 1).all()
    seen = []

    def fail(out, y):
        seen.append(len(out))
        if out[0] == 2:
            raise IndexError("bad")

    x[len(x) * 2 // 3] = 2
    with pytest.raises(IndexError, match="bad"):
        split(SPECS["add_into"], fail, 3, (x, x))
    assert sum(seen) == len(x)
    assert len(seen) == 3


def moved(array: np.ndarray, elements: int) -> np.ndarray:
    """A copy that begins `elements` into a buffer, so that vectors lie across other cache lines."""
    room = np.empty(array.size + elements, array.dtype)
    copy = room[elements:].reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("case", TYPICAL.values(), ids=lambda c: c.kernel)
def test_the_same_bits_wherever_the_arrays_lie(case: Case) -> None:
    seen = set()
    for elements in (0, 1, 3, 8):
        arrays = [moved(a, elements) for a in case.arrays()]
        result = call(CPU, case, arrays)
        seen.add((repr(result), *(a.tobytes() for a in arrays)))
    assert len(seen) == 1


@pytest.mark.parametrize("kernels", [REFERENCE, CPU], ids=["reference", "cpu"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_max_abs_tells_of_nan_before_inf(kernels: Kernels, dtype) -> None:
    for at in (0, 50, 99):
        x = np.linspace(-3, 2, 100, dtype=dtype)
        assert kernels.max_abs(x) == 3
        x[at] = -np.inf
        assert kernels.max_abs(x) == np.inf
        x[(at + 7) % 100] = -np.nan
        assert np.isnan(kernels.max_abs(x))
    assert kernels.max_abs(np.zeros(3, dtype)) == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_fixed_point_holds_large_values_and_rounds_half_to_even(dtype) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.0**61, -(2.0**61), 2.0**40 + 2.0**20], dtype)
    out = np.arange(x.size)
    CPU.add_fixed(out, x, 1.0)
    assert (out - np.arange(x.size)).tolist() == [0, 2, 2, 0, -2, 2**61, -(2**61), 2**40 + 2**20]
    CPU.from_fixed(x, out, 0.5)
    np.testing.assert_array_equal(x, (out * 0.5).astype(dtype), strict=True)
