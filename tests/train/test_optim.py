"""Optimisers as a run uses them: every kind, by rows, clipped, and on whole runs."""

import hpcps_kernels
import msgspec
import numpy as np
import pytest

import hpcps
from hpcps import config, optim
from hpcps.config import Optimizer

CPU = hpcps_kernels.load("cpu")
OPTIONS = {
    "sgd": Optimizer(kind="sgd", l1=0.01, l2=0.1),
    "momentum": Optimizer(kind="sgd", momentum=0.8),
    "nesterov": Optimizer(kind="sgd", momentum=0.8, nesterov=True),
    "adagrad": Optimizer(kind="adagrad", epsilon=1e-4),
    "rmsprop": Optimizer(kind="rmsprop", decay=0.7),
    "adam": Optimizer(kind="adam", beta1=0.8, beta2=0.9, l2=0.01),
    "adamw": Optimizer(kind="adamw", beta1=0.8, beta2=0.9, weight_decay=0.2),
    "ftrl": Optimizer(kind="ftrl", beta=0.5, l1=0.02, l2=0.1),
}
EACH = pytest.mark.parametrize("name", OPTIONS)


def start(name, shape=(12, 3)):
    params = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    optimizer = optim.make(OPTIONS[name], CPU)
    return params, optimizer, optimizer.init(params)


@EACH
def test_every_kind_goes_to_the_minimum(name):
    params, optimizer, state = start(name, (50,))
    target = np.linspace(0.5, 1, 50, dtype=np.float32)
    for step in range(1, 300):
        optimizer.update(params, state, 2 * (params - target), 0.5, step)
    assert np.abs(params - target).mean() < 0.2  # 0.9 at first


@EACH
def test_an_update_that_adds_up_itself_has_the_bits_of_a_sum_and_an_update(name):
    gradients = np.random.default_rng(2).normal(size=(3, 60)).astype(np.float32)
    found = []
    for is_summed in (False, True):
        params, optimizer, state = start(name, (50,))
        if is_summed:
            update = optimizer.prepare_summed(params, state, gradients, 7, 0.25)
        else:
            update = optimizer.prepare(params, state, sum(gradients[:, 7:57]), 0.25)
        for step in (1, 2, 3):
            update(step)
        found.append((params, state))
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert all(found[0][1][key].tobytes() == found[1][1][key].tobytes() for key in found[0][1])


def test_what_needs_the_sum_at_once_is_not_made_without():
    clipped = msgspec.structs.replace(OPTIONS["sgd"], clip_norm=1.0)
    assert optim.make(clipped, CPU).prepare_summed is None
    assert optim.make(OPTIONS["sgd"], CPU, threads=2).prepare_summed is None


@EACH
def test_rows_change_as_the_dense_update_changes_them_and_no_others(name):
    params, optimizer, state = start(name)
    dense, dense_state = params.copy(), {key: value.copy() for key, value in state.items()}
    assert all(value.shape == params.shape and value.dtype == params.dtype for value in state.values())
    index = np.array([7, 0, 11])
    rng = np.random.default_rng(2)
    for step in (1, 2, 3):
        gradient = rng.normal(size=(3, 3)).astype(np.float32)
        packed = np.concatenate([params, *state.values()], axis=1)
        optimizer.update_packed(packed, gradient, index, 0.25, step)
        rows = dense[index].reshape(-1), {key: value[index].reshape(-1) for key, value in dense_state.items()}
        optimizer.update(*rows, gradient.reshape(-1), 0.25, step)
        for table, picked in [(dense, rows[0]), *((dense_state[key], rows[1][key]) for key in state)]:
            table[index] = picked.reshape(3, 3)
        optimizer.update_rows(params, state, gradient, index, 0.25, step)
        assert params.tobytes() == dense.tobytes()
        assert all(state[key].tobytes() == dense_state[key].tobytes() for key in state)
        assert np.array_equal(packed, np.concatenate([params, *state.values()], axis=1))


@EACH
@pytest.mark.parametrize(("clip_norm", "threads"), [(0.0, 1), (0.0, 2), (1.0, 1)])
def test_a_prepared_update_has_the_bits_of_an_update(name, clip_norm, threads):
    optimizer = optim.make(config.from_tree(tree(name, clip_norm=clip_norm)).optimizer, CPU, threads)
    rng = np.random.default_rng(4)
    params = rng.normal(size=70).astype(np.float32)
    wanted, gradient = params.copy(), np.empty_like(params)
    state, wanted_state = optimizer.init(params), optimizer.init(wanted)
    update = optimizer.prepare(params, state, gradient, 0.25)
    for step in (1, 2, 3):
        gradient[:] = rng.normal(size=70)
        update(step)
        optimizer.update(wanted, wanted_state, gradient, 0.25, step)
        assert params.tobytes() == wanted.tobytes()
        assert all(state[key].tobytes() == wanted_state[key].tobytes() for key in state)


@EACH
def test_a_longer_gradient_is_scaled_down_to_the_norm(name):
    plain = optim.make(OPTIONS[name], CPU)
    limited = optim.make(config.from_tree(tree(name, clip_norm=2.0)).optimizer, CPU)
    for length, scale in ((1.5, 1.0), (8.0, 0.25)):  # of the mean gradient; the kernels are given twice that and half
        gradient = np.full(16, 2 * length / 4, np.float32)
        found, wanted = (np.ones(16, np.float32) for _ in range(2))
        limited.update(found, limited.init(found), gradient, 0.5, 1)
        plain.update(wanted, plain.init(wanted), gradient, 0.5 * scale, 1)
        assert found.tobytes() == wanted.tobytes()


def tree(name, **more):
    given = msgspec.to_builtins(OPTIONS[name])
    return {"data": {"path": "digits"}, "model": {"kind": "softmax"}, "optimizer": {**given, **more}}


def test_ftrl_keeps_a_parameter_without_a_gradient_and_zeroes_what_matters_little():
    params, optimizer, state = start("ftrl", (100,))
    before = params.copy()
    optimizer.update(params, state, np.zeros(100, np.float32), 1.0, 1)
    np.testing.assert_allclose(params, before, rtol=1e-5)
    options = Optimizer(kind="ftrl", l1=5.0)
    optimizer = optim.make(options, CPU)
    params = np.zeros(100, np.float32)
    state, rng = optimizer.init(params), np.random.default_rng(3)
    for step in range(1, 200):
        pull = np.where(np.arange(100) < 10, params - 1, 0) + 0.05 * rng.normal(size=100)
        optimizer.update(params, state, pull.astype(np.float32), 1.0, step)
    assert (params[:10] > 0.1).all()
    assert (params[10:] == 0).mean() > 0.9


@pytest.mark.parametrize("name", ["nesterov", "rmsprop", "adamw", "ftrl"])
def test_a_clipped_reproducible_run_gives_the_same_bits_by_all_reduce_and_through_a_server(tmp_path, name):
    text = config.to_toml(config.from_tree(tree(name, clip_norm=0.5, learning_rate=0.05)))
    (tmp_path / "c.toml").write_text(text)
    settings = ["train.epochs=1", "train.reproducible=true", "run.transport=threads", "data.scale=maxabs"]
    hashes = set()
    for ranks, more in ((1, []), (2, ["train.strategy=ring"]), (3, ["train.strategy=server"])):
        read = config.read(tmp_path / "c.toml", {}, settings + more)
        summary = hpcps.train(read, ranks=ranks, out=tmp_path / f"run{ranks}").summary
        hashes.add(summary["params_sha256"])
        assert summary["accuracy"] > 0.5
    assert len(hashes) == 1
