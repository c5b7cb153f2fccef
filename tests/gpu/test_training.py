"""Training with ``run.device = "cuda"``: hpcps's own code, with a device that is none in the place of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hpcps_kernels.gpu.found import look
from trainings import (
    DENSE,
    FEW,
    OF_MLP,
    REPRODUCIBLE,
    SPARSE,
    as_on_a_cpu,
    changed,
    goes_on_elsewhere,
    of_sparse,
    told,
    train,
)

from hpcps import config, inference, joining, starter
from hpcps.errors import ConfigError, DataError, HpcpsError


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("kind", DENSE)
def test_dense(tmp_path, data, gpus, kind, ranks) -> None:
    devices = gpus(2)
    summary = as_on_a_cpu(tmp_path, told(data, kind, *[OF_MLP] * (kind == "mlp")), ranks)
    assert summary["device"] == "GPU 0"
    assert inference.evaluate(tmp_path / "gpu")["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-4)
    assert [bool(device.done) for device in devices] == [True, ranks > 1]  # taken in turn


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.kind=adam", "optimizer.momentum=0", "optimizer.epsilon=0.1"),
        ("optimizer.kind=ftrl", "optimizer.momentum=0", "optimizer.l1=0.01"),
        ("optimizer.clip_norm=0.1",),
        ("train.dtype=float64", "data.scale=standard"),
        ("train.algorithm=ring",),
        ("compress.kind=int8",),
    ],
    ids=" ".join,
)
def test_ways_to_train(tmp_path, data, gpus, settings) -> None:
    gpus()
    as_on_a_cpu(tmp_path, told(data, "mlp", OF_MLP, *settings), 2)


def test_gradients_go_to_the_host_while_others_are_computed(tmp_path, data, gpus, monkeypatch) -> None:
    gpus()
    monkeypatch.setattr(joining, "BUCKET_BYTES", 8)
    summary = as_on_a_cpu(tmp_path, told(data, "mlp", OF_MLP), 3)
    assert "through the host's memory, 3 buckets" in summary["exchange"]


def test_samples_that_do_not_fit_are_sent_batch_by_batch(tmp_path, data, gpus) -> None:
    (gpu,) = gpus()
    gpu.free = 0
    as_on_a_cpu(tmp_path, told(data, "softmax"), 1)
    assert not [name for name in gpu.done if name.startswith("gather")]


def test_sparse_samples_of_few_features_are_made_dense_on_the_gpu(tmp_path, data, gpus) -> None:
    (gpu,) = gpus()
    (tmp_path / "few.libsvm").write_text(FEW)
    as_on_a_cpu(tmp_path, told(data, "logistic", f"data.path={tmp_path / 'few.libsvm'}", "data.labels="), 1)
    assert [name for name in gpu.done if name.startswith("gather_csr")]


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, ()),
        (3, ()),
        (4, ("server.count=2", "server.replicas=1")),
        (3, ("server.colocated=true",)),
        (2, ("server.staleness=async",)),
        (3, ("compress.kind=int8", "model.activation=tanh")),
        (3, ("train.reproducible=true",)),
        (3, ("optimizer.kind=adam", "optimizer.momentum=0", "optimizer.epsilon=0.1")),
    ],
    ids=str,
)
def test_shards_in_the_memory_of_the_host(tmp_path, data, gpus, ranks, settings) -> None:
    (gpu,) = gpus()
    asked = told(data, "mlp", OF_MLP, "train.strategy=server", *settings)
    summary = as_on_a_cpu(tmp_path, asked, ranks)
    assert summary["strategy"] == "server"
    assert "through the host's memory" in summary["exchange"]
    assert gpu.done


def test_through_shards_the_bits_are_those_of_an_all_reduce(tmp_path, data, gpus) -> None:
    gpus(2)
    asked = told(data, "softmax", *REPRODUCIBLE)
    wanted, _ = train(tmp_path / "ring", asked, 2)
    for ranks, settings in ((1, {}), (3, {}), (2, {"colocated": True}), (5, {"count": 2})):
        other = changed(changed(asked, "train", strategy="server"), "server", **settings)
        found, _ = train(tmp_path / f"{ranks}", other, ranks)
        assert found["params_sha256"] == wanted["params_sha256"]


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("name", SPARSE)
def test_tables(tmp_path, data, gpus, name, ranks) -> None:
    gpus(2)
    as_on_a_cpu(tmp_path, of_sparse(data, name), ranks)


@pytest.mark.parametrize("reproducible", ["false", "true"])
@pytest.mark.parametrize("name", ["logistic", "few features"])
def test_windows_of_a_stream(tmp_path, data, gpus, name, reproducible) -> None:
    gpus()
    asked = of_sparse(data, "logistic", "data.window=8", f"train.reproducible={reproducible}")
    if name == "few features":
        (tmp_path / "few.libsvm").write_text(FEW)
        asked = changed(asked, "data", path=str(tmp_path / "few.libsvm"))
    as_on_a_cpu(tmp_path, asked, 2)


@pytest.mark.parametrize("kind", ["softmax", "logistic", "mlp", "sparse", "embedding"])
def test_the_same_bits_at_any_number_of_ranks_and_gpus(tmp_path, data, gpus, kind) -> None:
    """On devices whose threads run in other orders, as tables and as dense parameters."""
    tables = {"sparse": "logistic", "embedding": "embedding"}
    asked = of_sparse(data, tables[kind], *REPRODUCIBLE) if kind in tables else told(data, kind, *REPRODUCIBLE)
    found = set()
    for ranks in (1, 2, 3):
        gpus(ranks, seed=ranks)
        summary, _ = train(tmp_path / str(ranks), asked, ranks)
        found.add(tuple(summary[name] for name in ("params_sha256", "loss", "test_loss", "accuracy")))
    assert len(found) == 1
    as_on_a_cpu(tmp_path, asked, 1)


@pytest.mark.parametrize("kind", ["mlp", "logistic"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_run_goes_on_from_a_checkpoint_on_a_gpu_or_without(tmp_path, data, gpus, kind, device) -> None:
    gpus()
    settings = "checkpoint.every_steps=3", "optimizer.kind=adam", "optimizer.momentum=0", "optimizer.epsilon=0.1"
    asked = told(data, kind, OF_MLP, *settings) if kind == "mlp" else of_sparse(data, kind, *settings)
    goes_on_elsewhere(tmp_path, asked, device)


@pytest.mark.parametrize(
    ("kind", "more", "ranks"),
    [("softmax", (), 2), ("logistic", (), 2), ("softmax", ("train.strategy=server",), 4)],
    ids=["softmax", "logistic", "shards"],
)
def test_a_resumed_reproducible_run_has_the_same_bits(tmp_path, data, gpus, kind, more, ranks) -> None:
    gpus(2)
    settings = *REPRODUCIBLE, "checkpoint.every_steps=4", "train.epochs=2", *more
    asked = told(data, kind, *settings) if kind == "softmax" else of_sparse(data, kind, *settings)
    wanted, _ = train(tmp_path / "at once", asked)
    train(tmp_path / "run", changed(asked, "train", epochs=1), 3)
    summary, _ = train(tmp_path / "run", asked, ranks, resume=True)
    assert summary["params_sha256"] == wanted["params_sha256"]


def test_what_is_wrong_is_said_as_without_a_gpu(tmp_path, data, gpus) -> None:
    gpus()
    x = np.load(data / "x.npy")
    x[50, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    asked = told(data, "softmax", "run.device=cuda")
    with pytest.raises(DataError, match=r"x\.npy: sample 50, feature 2 is nan"):
        train(tmp_path / "run", changed(asked, "data", path=str(tmp_path / "x.npy")))


def test_memory_that_is_full_is_one_line(tmp_path, data, gpus, monkeypatch) -> None:
    (gpu,) = gpus()

    def full(array: np.ndarray) -> None:
        raise MemoryError("Out of memory allocating 1,024 bytes\n(allocated so far: 0)")

    monkeypatch.setattr(gpu, "put", full)
    with pytest.raises(HpcpsError, match=r"GPU 0: its memory is full \(Out of memory allocating 1,024 bytes \(all"):
        train(tmp_path / "run", told(data, "softmax", "run.device=cuda"))


@pytest.mark.skipif(not look().obstacle, reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_and_status_2(tmp_path, data) -> None:
    (tmp_path / "c.toml").write_text(config.to_toml(told(data, "softmax", "run.device=cuda")))
    command = [sys.executable, "-m", "hpcps", "train", tmp_path / "c.toml", "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"run.device = 'cuda': {look().obstacle}" in done.stderr
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"run\.device = 'cpu' trains without"):
        train(tmp_path / "run", told(data, "softmax", "run.device=cuda"), 2)


@pytest.mark.mpi
def test_over_mpi(tmp_path, data, gpus, compiled) -> None:
    """Ranks as processes, two to a GPU: staged, through shards, and by an MPI that takes the device's pointers."""
    library = starter.find()
    if library is None:
        pytest.skip("mpi4py finds no MPI library")
    compiled.finish()
    settings = "run.device=cuda", "train.reproducible=true"
    runs = {"staged": told(data, "mlp", OF_MLP, *settings), "direct": told(data, "mlp", "train.algorithm=mpi")}
    runs["direct"] = changed(runs["direct"], "run", device="cuda")
    runs["shards"] = of_sparse(data, "embedding", *settings, "train.strategy=server", "server.colocated=true")
    for name, asked in runs.items():
        (tmp_path / f"{name}.toml").write_text(config.to_toml(asked))
    program = Path(__file__).with_name("on_ranks.py")
    line = [*starter.command_line(library, 3), sys.executable, program, compiled.folder, tmp_path]
    done = subprocess.run(
        list(map(str, line)), env=starter.environment(os.environ, 3), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in runs}
    assert "through the host's memory" in found["staged"]["exchange"]
    assert found["direct"]["exchange"] == "all-reduce: MPI_Iallreduce on the GPU's memory"
    on_cpus = changed(changed(runs["direct"], "run", device="cpu", threads=1), "train", algorithm="auto")
    assert found["direct"]["loss"] == pytest.approx(train(tmp_path / "cpu", on_cpus, 3)[0]["loss"], rel=1e-4)
    gpus()
    for name in ("staged", "shards"):
        wanted, _ = train(tmp_path / "alone" / name, changed(runs[name], "server", colocated=False))
        assert found[name]["params_sha256"] == wanted["params_sha256"]
