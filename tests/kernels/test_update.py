"""Optimisers against their formulas written out number by number; rows against dense; penalties; nan and inf."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hpcps_kernels import SPECS, Kernels, load
from kernel_cases import FLOATS
from kernel_cases.update import PENALTY, SCALARS

CPU = load("cpu")
BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
EACH = pytest.mark.parametrize("name", SCALARS)
DTYPES = pytest.mark.parametrize("dtype", FLOATS)


def plain(name: str, p: float, states: list[float], g: float, o: dict[str, float]) -> tuple[float, list[float]]:
    """One step of one parameter, as the papers and PyTorch's documentation have it; o holds the numbers."""
    rate = o["learning_rate"]
    g *= o["gradient_scale"]
    if name not in ("adamw", "ftrl"):
        g += o["l2"] * p + o["l1"] * float(np.sign(p))
    if name == "sgd":
        return p - rate * g, []
    if name in ("momentum", "nesterov"):
        v = o["momentum"] * states[0] + g
        return p - rate * (v if name == "momentum" else g + o["momentum"] * v), [v]
    if name == "adagrad":
        total = states[0] + g * g
        return p - rate * g / (math.sqrt(total) + o["epsilon"]), [total]
    if name == "rmsprop":
        mean = o["decay"] * states[0] + (1 - o["decay"]) * g * g
        return p - rate * g / (math.sqrt(mean) + o["epsilon"]), [mean]
    if name == "ftrl":
        z, squares = states
        sigma = (math.sqrt(squares + g * g) - math.sqrt(squares)) / rate
        z, squares = z + g - sigma * p, squares + g * g
        divisor = (o["beta"] + math.sqrt(squares)) / rate + o["l2"]
        return 0.0 if abs(z) <= o["l1"] else -(z - math.copysign(o["l1"], z)) / divisor, [z, squares]
    p -= rate * o["weight_decay"] * p if name == "adamw" else 0
    first = o["beta1"] * states[0] + (1 - o["beta1"]) * g
    second = o["beta2"] * states[1] + (1 - o["beta2"]) * g * g
    corrected = first / (1 - o["beta1"] ** o["step"]), second / (1 - o["beta2"] ** o["step"])
    return p - rate * corrected[0] / (math.sqrt(corrected[1]) + o["epsilon"]), [first, second]


def numbers(name: str, step: int = 1, **more: float) -> list[float]:
    given = {**SCALARS[name], **dict.fromkeys(PENALTY, 0.0), "step": step, **more}
    return [given[a.name] for a in SPECS[name].scalars]


def states_of(name: str) -> int:
    return len(SPECS[name].arrays) - 2


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("penalty", [{}, PENALTY, {"l1": 0.3}, {"l2": 0.2}], ids=str)
@EACH
def test_ten_steps_are_those_of_the_formula(kernels: Kernels, name: str, penalty: dict[str, float]) -> None:
    rng = np.random.default_rng(4)
    params = rng.normal(size=20)
    params[3] = 0
    states = [np.zeros(20) for _ in range(states_of(name))]
    wanted = [(float(p), [0.0] * len(states)) for p in params]
    for step in range(1, 11):
        gradient = rng.normal(size=20)
        getattr(kernels, name)(params, *states, gradient, *numbers(name, step, **penalty))
        options = {"l1": 0.0, "l2": 0.0, **SCALARS[name], **penalty, "step": step}
        wanted = [plain(name, p, s, float(g), options) for (p, s), g in zip(wanted, gradient, strict=True)]
    np.testing.assert_allclose(params, [p for p, _ in wanted], rtol=1e-9, atol=1e-12)
    for number, state in enumerate(states):
        np.testing.assert_allclose(state, [s[number] for _, s in wanted], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 5, 16, 64])
@DTYPES
@EACH
def test_rows_get_the_bits_of_the_dense_kernel_and_others_keep_theirs(name: str, dtype: str, width: int) -> None:
    rng = np.random.default_rng(width)
    index = rng.permutation(40)[:23]
    tables = [rng.random((40, width)).astype(dtype) for _ in range(states_of(name) + 1)]
    gradient = rng.normal(size=(23, width)).astype(dtype)
    for more in ({}, PENALTY):
        picked, before = [table[index].reshape(-1) for table in tables], [table.copy() for table in tables]
        getattr(CPU, name)(*picked, gradient.reshape(-1), *numbers(name, 4, **more))
        getattr(CPU, f"{name}_rows")(*tables, gradient, index, *numbers(name, 4, **more))
        others = np.setdiff1d(np.arange(40), index)
        for table, rows, old in zip(tables, picked, before, strict=True):
            assert table[index].tobytes() == rows.tobytes()
            assert table[others].tobytes() == old[others].tobytes()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("bad", [-1, 6, 2**62, -(2**63)])
@EACH
def test_a_row_out_of_range_is_an_error_before_anything_is_written(kernels: Kernels, name: str, bad: int) -> None:
    tables = [np.ones((6, 3), np.float32) for _ in range(states_of(name) + 1)]
    with pytest.raises(IndexError, match=r"outside 0\.\.N-1"):
        getattr(kernels, f"{name}_rows")(*tables, np.ones((3, 3), np.float32), np.array([0, 1, bad]), *numbers(name, 1))
    assert all((table == 1).all() for table in tables)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_without_penalties_not_even_the_sign_of_zero_changes(kernels: Kernels) -> None:
    params, gradient = np.array([-0.0, -0.0, 0.0, 1.0]), np.array([-0.0, 0.0, -0.0, np.inf])
    wanted = params - 0.5 * gradient
    kernels.sgd(params, gradient, 0.5, 0.0, 0.0, 1.0)
    assert params.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@DTYPES
@EACH
def test_nan_and_inf_stay_in_their_element(kernels: Kernels, name: str, dtype: str, value: float) -> None:
    for at in (0, 17, 36):
        arrays = [np.ones(37, dtype) for _ in range(states_of(name) + 2)]
        arrays[-1][at] = value
        with np.errstate(invalid="ignore"):
            getattr(kernels, name)(*arrays, *numbers(name, 2, **PENALTY))
        assert not np.isfinite([state[at] for state in arrays[1:-1]]).any()
        if not (name == "rmsprop" and np.isinf(value)):
            assert not np.isfinite(arrays[0][at])
        for array in arrays:
            assert np.isfinite(np.delete(array, at)).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_without_decay_adamw_is_adam(kernels: Kernels) -> None:
    rng = np.random.default_rng(5)
    start = [rng.random(50).astype(np.float32) for _ in range(4)]
    one, other = ([array.copy() for array in start] for _ in range(2))
    kernels.adamw(*one, 0.1, 0.8, 0.9, 1e-6, 0.0, 3, 0.5)
    kernels.adam(*other, 0.1, 0.8, 0.9, 1e-6, 3, 0.0, 0.0, 0.5)
    assert one[0].tobytes() == other[0].tobytes()
    kernels.adamw(*one, 0.1, 0.8, 0.9, 1e-6, 0.5, 4, 0.0)
    assert (one[0] < other[0]).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@DTYPES
def test_ftrl_is_0_up_to_l1_and_beyond_it_not(kernels: Kernels, dtype: str) -> None:
    z = np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype)
    params = np.full(7, 9.0, dtype)
    kernels.ftrl(params, z.copy(), np.full(7, 0.25, dtype), np.zeros(7, dtype), 0.5, 0.25, 1.0, 3.0, 1.0)
    expected = 1 / ((0.25 + 0.5) / 0.5 + 3)
    np.testing.assert_allclose(params, [expected, 0, 0, 0, 0, 0, -expected], rtol=1e-6)
    assert not np.signbit(params[1:6]).any()
