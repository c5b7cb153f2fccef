"""Every GPU kernel's source, run on the CPU against the reference: calls of `kernel_cases`, threads in any order."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hpcps_kernels import SPECS
from hpcps_kernels.gpu import FAMILIES, loss, reduce
from hpcps_kernels.gpu._launch import TABLE
from hpcps_kernels.gpu.table import GpuKernels
from kernel_cases import Case
from on_cpu import Compiled, OnCpu, margins_are_untouched, on_device
from twins import CASES, TYPICAL, arguments, compare

NAN = np.float32(np.nan)


def call(case: Case, device: OnCpu, misaligned: int = 0, dirty: bool = False) -> tuple[Any, list[np.ndarray]]:
    """What the kernel returns, and its arrays afterwards."""
    arrays = [on_device(array, misaligned) for array in case.arrays()]
    for argument, array in zip(case.spec.arrays, arrays, strict=True):
        if dirty and argument.role == "out":
            array.view_on_host.reshape(-1).view(np.uint8)[:] = 0x77
    answer = getattr(GpuKernels(device), case.kernel)(*arguments(case, arrays))
    assert all(map(margins_are_untouched, arrays))
    return answer, [array.view_on_host for array in arrays]


def test_there_are_cases_for_every_kernel() -> None:
    assert set(TYPICAL) == {name for name, spec in SPECS.items() if spec.module in FAMILIES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_source_does_as_the_reference_does(case: Case, compiled: Compiled) -> None:
    compare(case, *call(case, OnCpu(compiled)))


@pytest.mark.parametrize("case", TYPICAL.values(), ids=lambda case: case.kernel)
def test_the_same_bits_in_any_order_at_any_place_on_any_device(case: Case, compiled: Compiled) -> None:
    seen = set()
    for multiprocessors, seed, misaligned in ((1, 1, 0), (2, 7, 1), (7, 99, 3)):
        answer, arrays = call(case, OnCpu(compiled, multiprocessors, seed), misaligned, dirty=True)
        seen.add((repr(answer), *(array.tobytes() for array in arrays)))
    assert len(seen) == 1


@pytest.mark.parametrize("case", TYPICAL.values(), ids=lambda case: case.kernel)
def test_sums_over_many_blocks(case: Case, compiled: Compiled, monkeypatch) -> None:
    """Blocks take little enough that small cases have many, and their shares are shared out again."""
    monkeypatch.setattr(reduce, "SHARE", 32)
    monkeypatch.setattr(reduce, "CHUNKS", 40)
    monkeypatch.setattr(loss, "SAMPLES", 16)
    compare(case, *call(case, OnCpu(compiled)))


def test_every_instance_of_the_table_is_there(compiled: Compiled) -> None:
    for launch in TABLE:
        for instance in launch.instances():
            assert compiled.function(instance) is not None


def test_a_missing_barrier_shows(tmp_path) -> None:
    """The harness is worth something only if it finds what a GPU would find, now and then."""
    case = next(case for case in CASES if case.kernel == "square_norm" and case.lengths["n"] == 4097)
    barriers = re.findall(r"__syncthreads\(\);", (Compiled(tmp_path).text("reduce")))
    assert len(barriers) == 3  # two in fold_block, one in column_sums
    wrong = Compiled(
        tmp_path, lambda text: text.replace("of_warps[warp] = x;\n    __syncthreads();", "of_warps[warp] = x;")
    )
    assert wrong.text("reduce") != Compiled(tmp_path).text("reduce")
    with pytest.raises(AssertionError):
        compare(case, *call(case, OnCpu(wrong)))


@pytest.mark.parametrize("seed", range(20))
def test_sums_over_blocks_do_not_depend_on_the_order_of_threads(compiled: Compiled, seed: int) -> None:
    case = next(case for case in CASES if case.kernel == "dot" and case.lengths["n"] == 4097)
    answer, _ = call(case, OnCpu(compiled, seed=seed * 1000))
    assert answer == call(case, OnCpu(compiled))[0]


def test_halves_of_all_kinds(compiled: Compiled) -> None:
    kernels = GpuKernels(OnCpu(compiled))
    every = np.arange(2**16).astype(np.uint16)
    numbers = on_device(np.empty(2**16, np.float32))
    for kind in ("float16", "bfloat16"):
        getattr(kernels, f"from_{kind}")(numbers, on_device(every))
        wanted = (
            every.view(np.float16).astype(np.float32) if kind == "float16" else (every.astype("u4") << 16).view("f4")
        )
        np.testing.assert_array_equal(numbers.view_on_host, wanted)
        back = on_device(np.zeros(2**16, np.uint16))
        getattr(kernels, f"to_{kind}")(back, numbers)
        np.testing.assert_array_equal(back.view_on_host[~np.isnan(wanted)], every[~np.isnan(wanted)])
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    edges = (2.0 ** np.arange(-27, 18, 0.25)).astype(np.float32)
    x = np.concatenate([anything, edges, -edges, np.nextafter(edges, 0), np.float32([0, -0.0, 65519.996, 65520])])
    codes = on_device(np.zeros(x.size, np.uint16))
    kernels.to_float16(codes, on_device(x))
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(np.float16)
    same = codes.view_on_host.view(np.float16)
    np.testing.assert_array_equal(same[~np.isnan(x)], wanted[~np.isnan(x)])
    assert np.isnan(same[np.isnan(x)]).all()


def test_a_nan_reaches_the_loss_and_its_element_alone(compiled: Compiled) -> None:
    kernels = GpuKernels(OnCpu(compiled))
    scores, labels = np.zeros(600, np.float32), np.zeros(600, np.float32)
    scores[77] = NAN
    for kind in ("squared", "huber", "logistic", "hinge", "squared_hinge", "poisson"):
        given = on_device(scores)
        answer = kernels.point_residual(given, on_device(labels), on_device(labels[:0]), kind, 1.0)
        assert np.isnan(answer)
        assert np.isnan(given.view_on_host).nonzero()[0].tolist() == [77]
    assert np.isnan(kernels.max_abs(on_device(scores)))
    assert kernels.all_finite(on_device(labels))
    assert not kernels.all_finite(on_device(scores))
