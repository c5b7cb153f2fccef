"""Tables on shards, which are in the host's memory, while a device that is none computes their rows' gradients."""

from __future__ import annotations

import numpy as np
import pytest
from trainings import REPRODUCIBLE, SPARSE, as_on_a_cpu, changed, goes_on_elsewhere, of_sparse, told, train

from hpcps import trial
from hpcps.trial import Timings

SHARDS = "train.strategy=server"
FTRL = "optimizer.kind=ftrl", "optimizer.momentum=0", "optimizer.l1=0.01"
ADAM = "optimizer.kind=adam", "optimizer.momentum=0", "optimizer.epsilon=0.1"


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", SPARSE)
def test_tables(tmp_path, data, gpus, name, ranks) -> None:
    (gpu,) = gpus()
    summary = as_on_a_cpu(tmp_path, of_sparse(data, name, SHARDS), ranks)
    assert summary["exchange"].endswith("; staleness 0, through the host's memory")
    assert not [name for name in gpu.done if name.startswith("gather_rows")]  # rows come as they are picked


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, FTRL),
        (3, ("server.colocated=true", *FTRL)),
        (2, ("server.staleness=async",)),
        (2, ("server.staleness=2", "server.warmup_steps=1", *ADAM)),
        (4, ("server.count=2", "server.replicas=1", "data.window=8")),
        (3, ("server.colocated=true", "train.dtype=float64")),
        (2, ("server.threshold=0.001",)),
        (2, ("server.kkt=0.5", *FTRL)),
    ],
    ids=str,
)
def test_ways_to_train(tmp_path, data, gpus, ranks, settings) -> None:
    gpus(2)
    summary = as_on_a_cpu(tmp_path, of_sparse(data, "logistic", SHARDS, *settings), ranks)
    assert summary["strategy"] == "server"


def test_a_table_for_each_field(tmp_path, data, gpus) -> None:
    gpus()
    as_on_a_cpu(tmp_path, told(data, "matrix-factorization", SHARDS, "server.colocated=true"), 2)


@pytest.mark.parametrize("name", ["logistic", "embedding"])
def test_the_bits_are_those_of_an_all_reduce(tmp_path, data, gpus, name) -> None:
    """On devices whose threads run in other orders; shards do on the host what each GPU does with gathered rows."""
    gpus(2)
    asked = of_sparse(data, name, *REPRODUCIBLE, *FTRL)
    wanted, _ = train(tmp_path / "ring", asked, 2)
    for ranks, settings in ((1, {}), (3, {}), (2, {"colocated": True}), (5, {"count": 2})):
        gpus(2, seed=ranks)
        other = changed(changed(asked, "train", strategy="server"), "server", **settings)
        found, _ = train(tmp_path / f"{ranks}", other, ranks)
        assert found["params_sha256"] == wanted["params_sha256"]
        assert found["test_loss"] == wanted["test_loss"]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_run_goes_on_from_a_checkpoint_on_a_gpu_or_without(tmp_path, data, gpus, device) -> None:
    gpus()
    asked = of_sparse(data, "fm", SHARDS, "server.colocated=true", "checkpoint.every_steps=3", *ADAM)
    goes_on_elsewhere(tmp_path, asked, device)


def test_from_shards_to_an_all_reduce_and_back(tmp_path, data, gpus) -> None:
    gpus()
    asked = of_sparse(data, "logistic", *REPRODUCIBLE, *FTRL, "checkpoint.every_steps=4", "train.epochs=3")
    wanted, _ = train(tmp_path / "at once", asked)
    for epochs, ranks, strategy in ((1, 2, "ring"), (2, 3, "server"), (3, 2, "ring")):
        part = changed(asked, "train", epochs=epochs, strategy=strategy)
        summary, _ = train(tmp_path / "run", part, ranks, resume=epochs > 1)
    assert summary["params_sha256"] == wanted["params_sha256"]


@pytest.mark.parametrize("on_shards", [False, True])
@pytest.mark.parametrize("more", [("train.reproducible=true",), ADAM], ids=["reproducible", "adam"])
def test_a_trial_of_both_ways(tmp_path, data, gpus, monkeypatch, on_shards, more) -> None:
    """Beside dense parameters that are all-reduced on the GPUs."""
    gpus(2)
    found, compare = [], trial.compare

    def noted(*given):
        found.append(compare(*given))
        return Timings(2.0, 1.0) if on_shards else Timings(1.0, 2.0)

    monkeypatch.setattr(trial, "FEW_STEPS", 0)
    monkeypatch.setattr(trial, "compare", noted)
    summary = as_on_a_cpu(tmp_path, of_sparse(data, "embedding", *more), 2)
    where = "push to shards of all ranks, pull from there, through the host's memory" if on_shards else "all-gather"
    assert f"rows of tables: {where}" in summary["exchange"]
    assert min(found[0].gathered_s, found[0].sharded_s) > 0


def test_tables_that_a_gpu_cannot_hold_are_on_shards(tmp_path, data, gpus) -> None:
    (gpu,) = gpus()
    gpu.free = 1000
    summary = as_on_a_cpu(tmp_path, of_sparse(data, "fm"), 2)
    assert "GiB of a GPU's memory" in summary["why"]
    assert "push to shards of all ranks" in summary["exchange"]


def test_small_rows_are_kept_back_beside_an_all_reduce(tmp_path, data, gpus) -> None:
    gpus()
    summary = as_on_a_cpu(tmp_path, of_sparse(data, "embedding", "server.threshold=0.001"), 2)
    assert "push (threshold 0.001) to shards of all ranks" in summary["exchange"]


def test_without_the_latest_worker(tmp_path, data, gpus) -> None:
    gpus()
    asked = of_sparse(data, "logistic", SHARDS, "train.backup=1", "run.device=cuda")
    summary, params = train(tmp_path / "run", asked, 4)
    assert "without the latest worker of a step, through the host's memory" in summary["exchange"]
    assert all(np.isfinite(array).all() for array in params.values())


def test_a_shard_alone_needs_no_gpu(tmp_path, data, gpus) -> None:
    devices = gpus(3)
    train(tmp_path / "run", of_sparse(data, "logistic", SHARDS, "server.count=2", "run.device=cuda"), 3)
    assert [bool(device.done) for device in devices] == [True, False, False]
