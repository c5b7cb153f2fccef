"""Wrong arguments: one line that names the kernel, the argument, what was expected and what came."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import SPECS, Kernels, load

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
ONES = np.ones(6, np.float32)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ([1.0] * 6, TypeError, "sgd: gradient must be a NumPy array, not list"),
        (None, TypeError, "sgd: gradient must be a NumPy array, not NoneType"),
        (np.ones(6, np.int32), TypeError, "sgd: gradient must be float32 or float64, not int32"),
        (np.ones(6), TypeError, "sgd: gradient must be float32 as params is, not float64"),
        (np.ones(6, ">f4"), TypeError, "sgd: gradient must be float32 or float64, not byte-swapped float32"),
        (np.ones(5, np.float32), ValueError, "sgd: gradient must have shape (n,) with n = 6 as in params, not (5,)"),
        (np.ones((6, 1), np.float32), ValueError, "sgd: gradient must have shape (n,), not (6, 1)"),
        (np.ones(12, np.float32)[::2], ValueError, "sgd: gradient must be C-contiguous, not with strides (8,)"),
        (np.ones(25, np.uint8)[1:].view("f4"), ValueError, "sgd: gradient must be aligned to its dtype"),
    ],
)
def test_a_wrong_argument_is_named(kernels: Kernels, wrong, error, says: str) -> None:
    params = ONES.copy()
    for _ in range(2):  # a refused layout is not remembered
        with pytest.raises(error) as caught:
            kernels.sgd(params, wrong, 0.1, 0.0, 0.0, 1.0)
        assert str(caught.value).startswith(says)
        assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(params, ONES)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_destination_must_be_writeable_and_a_source_need_not(kernels: Kernels) -> None:
    fixed, x = ONES.copy(), ONES.copy()
    fixed.flags.writeable = False
    kernels.add_into(x, x.copy())
    with pytest.raises(ValueError, match="add_into: out must be writeable, not read-only"):
        kernels.add_into(fixed, x)
    kernels.add_into(x, fixed)
    np.testing.assert_array_equal(x, 3 * ONES)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_lengths_are_checked_across_arguments(kernels: Kernels) -> None:
    out, indptr = np.empty((2, 3), np.float32), np.zeros(0, np.int64)
    index, columns, values = np.zeros(2, np.int64), np.zeros(4, np.int32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"gather_csr: indptr must have shape \(N\+1,\).*not \(0,\)"):
        kernels.gather_csr(out, indptr, columns, values, index, ONES[:3], ONES[:3])
    with pytest.raises(ValueError, match=r"dense_loss_gradient: bias must have shape \(1,\), not \(2,\)"):
        kernels.dense_loss_gradient(ONES[:3], ONES[:1], out, ONES[:2], ONES[:0], ONES[:3], ONES[:2], "squared", 1.0)
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(n\?,\) with n = 2 as in scores, not \(3,\)"):
        kernels.point_loss(ONES[:2], ONES[:2], ONES[:3], "squared", 1.0)
    with pytest.raises(ValueError, match=r"point_loss: loss must be one of squared, huber, .*, not 'cubic'"):
        kernels.point_loss(ONES[:2], ONES[:2], ONES[:0], "cubic", 1.0)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_bound_kernel_has_had_its_arguments_checked(kernels: Kernels) -> None:
    params, wanted, gradient = np.ones(6), np.ones(6), np.arange(6.0)
    some, all_ = kernels.sgd.bind(params, gradient), kernels.sgd.bind(params, gradient, 1, 0, 0, 1)
    some(0.5, 0.0, 0.0, 1.0)
    gradient[:] = 2.0
    all_()
    kernels.sgd(wanted, np.arange(6.0), 0.5, 0.0, 0.0, 1.0)
    kernels.sgd(wanted, gradient, 1.0, 0.0, 0.0, 1.0)
    np.testing.assert_array_equal(params, wanted)
    scores, labels, unweighted = np.ones(3), np.zeros(3), np.empty(0)
    bound = kernels.point_loss.bind(scores, labels, unweighted, "huber", 0.5)
    assert bound() == kernels.point_loss(scores, labels, unweighted, "huber", 0.5)
    with pytest.raises(ValueError, match="sgd: gradient must have shape"):
        kernels.sgd.bind(params, gradient[:5])
    with pytest.raises(ValueError, match="point_loss: loss must be one of"):
        kernels.point_loss.bind(scores, labels, unweighted, "cubic", 0.5)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("bad", [-1, 3, 2**62])
def test_an_index_out_of_range_is_an_error(kernels: Kernels, bad: int) -> None:
    out, index = np.empty((2, 4), np.float32), np.array([0, bad])
    with pytest.raises(IndexError, match="index"):
        kernels.gather(out, np.zeros((3, 4), np.uint8), index, ONES[:4], ONES[:4])
    rows = (np.array([0, 1, 2, 2]), np.array([0, 1], np.int32), ONES[:2])
    with pytest.raises(IndexError, match="index"):
        kernels.gather_csr(out, *rows, index, ONES[:4], ONES[:4])


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(("indptr", "column"), [([0, 5], 0), ([2, 1], 0), ([-1, 1], 0), ([0, 1], 4), ([0, 1], -1)])
def test_a_malformed_sparse_row_is_an_error(kernels: Kernels, indptr: list[int], column: int) -> None:
    out, index = np.empty((1, 4), np.float32), np.zeros(1, np.int64)
    with pytest.raises(IndexError, match="entries outside"):
        kernels.gather_csr(out, np.array(indptr), np.full(3, column, np.int32), ONES[:3], index, ONES[:4], ONES[:4])


def test_a_back_end_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no back end 'quantum'; there are reference, cpu, gpu"):
        load("quantum")


def test_wrappers_keep_names_and_signatures() -> None:
    for kernels in (load("reference"), load("cpu")):
        for name, spec in SPECS.items():
            code = getattr(kernels, name).__code__
            assert code.co_name == name
            assert getattr(kernels, name).__doc__
            names = tuple(a.name for a in spec.arguments) + (("threads",) if spec.splits else ())
            assert code.co_varnames[: code.co_argcount] == names


def test_kernels_let_go_of_the_interpreter_lock() -> None:
    from hpcps_kernels.cpu._jit import KERNELS

    kernels = load("cpu")
    for name in SPECS:
        getattr(kernels, name)  # imports its family
    assert len(KERNELS) >= len(SPECS)
    for name, dispatcher in KERNELS.items():
        assert dispatcher.targetoptions["nogil"], name
        assert not dispatcher.targetoptions["fastmath"], name
