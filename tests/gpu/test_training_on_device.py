"""Training on a GPU, beside training without. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hpcps_kernels.gpu.found import look
from safetensors.numpy import load_file
from trainings import DENSE, OF_MLP, REPRODUCIBLE, SPARSE, alike, as_on_a_cpu, changed, of_sparse, told, train

from hpcps import config, device, staging, starter

if look().obstacle:
    pytest.skip(f"GPU: {look().line()}", allow_module_level=True)
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("kind", DENSE)
def test_dense(tmp_path: Path, data: Path, kind: str, ranks: int) -> None:
    summary = as_on_a_cpu(tmp_path, told(data, kind, *[OF_MLP] * (kind == "mlp")), ranks)
    assert summary["device"] == "GPU 0"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", SPARSE)
def test_tables(tmp_path: Path, data: Path, name: str, ranks: int) -> None:
    as_on_a_cpu(tmp_path, of_sparse(data, name), ranks)


@pytest.mark.parametrize("kind", ["softmax", "logistic", "mlp", "sparse", "embedding"])
def test_the_same_bits_at_any_number_of_ranks(tmp_path: Path, data: Path, kind: str) -> None:
    tables = {"sparse": "logistic", "embedding": "embedding"}
    asked = of_sparse(data, tables[kind], *REPRODUCIBLE) if kind in tables else told(data, kind, *REPRODUCIBLE)
    found = {train(tmp_path / str(ranks), asked, ranks)[0]["params_sha256"] for ranks in (1, 2, 3)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, ()),
        (3, ()),
        (2, ("server.colocated=true",)),
        (2, ("server.staleness=async",)),
        (2, ("server.threshold=0.001",)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SPARSE)
def test_tables_on_shards(tmp_path: Path, data: Path, name: str, ranks: int, settings: tuple[str, ...]) -> None:
    as_on_a_cpu(tmp_path, of_sparse(data, name, "train.strategy=server", *settings), ranks)


@pytest.mark.parametrize("name", ["logistic", "embedding"])
def test_the_same_bits_on_shards(tmp_path: Path, data: Path, name: str) -> None:
    asked = of_sparse(data, name, *REPRODUCIBLE)
    found = {train(tmp_path / "ring", asked, 2)[0]["params_sha256"]}
    for ranks, settings in ((1, {}), (3, {}), (2, {"colocated": True})):
        other = changed(changed(asked, "train", strategy="server"), "server", **settings)
        found.add(train(tmp_path / str(ranks), other, ranks)[0]["params_sha256"])
    assert len(found) == 1


def test_tables_on_shards_go_on_without_a_gpu(tmp_path: Path, data: Path) -> None:
    asked = of_sparse(data, "fm", "train.strategy=server", "checkpoint.every_steps=4", "run.threads=1")
    train(tmp_path / "run", changed(changed(asked, "run", device="cuda"), "train", epochs=1), 2)
    alike(train(tmp_path / "run", asked, 2, resume=True)[1], train(tmp_path / "cpu", asked, 2)[1])


@pytest.mark.skipif(len(look().gpus) < 2, reason="NCCL: there is one GPU, and each rank needs its own")
@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_sums_from_gpu_to_gpu(tmp_path: Path, data: Path, kind: str) -> None:
    """Over MPI's ranks, for each needs a process of its own."""
    if starter.find() is None:
        pytest.skip("NCCL: mpi4py finds no MPI library, and ranks that are threads go without")
    asked = told(data, kind, *[OF_MLP] * (kind == "mlp"), "run.device=cuda", "train.algorithm=nccl")
    (tmp_path / "nccl.toml").write_text(config.to_toml(asked))
    words = "train", tmp_path / "nccl.toml", "--ranks", "2", "--out", tmp_path / "gpus"
    command = [sys.executable, "-m", "hpcps", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NCCL, from GPU to GPU" in json.loads((tmp_path / "gpus" / "summary.json").read_text())["exchange"]
    on_cpus = changed(changed(asked, "run", device="cpu", threads=1), "train", algorithm="auto")
    alike(load_file(tmp_path / "gpus" / "model.safetensors"), train(tmp_path / "cpu", on_cpus, 2)[1])


def test_a_run_goes_on_without_a_gpu(tmp_path: Path, data: Path) -> None:
    asked = told(data, "mlp", OF_MLP, "checkpoint.every_steps=4", "run.threads=1")
    train(tmp_path / "run", changed(changed(asked, "run", device="cuda"), "train", epochs=1), 2)
    alike(train(tmp_path / "run", asked, 2, resume=True)[1], train(tmp_path / "cpu", asked, 2)[1])


def test_many_uploads_arrive_in_their_order() -> None:
    """Each is sent while kernels still read the one before."""
    gpu = device.open_gpu(0, 1)
    numbers, total = staging.Upload(gpu, np.float32), gpu.zeros(1 << 20, np.float32)
    for number in range(20):
        gpu.kernels.add_into(total, numbers.send(np.full(1 << 20, number, np.float32)))
    assert (gpu.read(total) == sum(range(20))).all()


def test_products() -> None:
    gpu, rng = device.open_gpu(0, 1), np.random.default_rng(0)
    a, b = rng.standard_normal((70, 33)), rng.standard_normal((33, 17))
    there, out = gpu.put(a), gpu.empty((70, 17), np.float64)
    gpu.matmul(out, there, gpu.put(b))
    np.testing.assert_allclose(gpu.read(out), a @ b, rtol=1e-12, atol=1e-12)
    gpu.matmul(out, there, gpu.put(np.ascontiguousarray(b.T)).T)
    np.testing.assert_allclose(gpu.read(out), a @ b, rtol=1e-12, atol=1e-12)
    whole = gpu.empty((9, 17), np.float64)
    gpu.matmul_grains(whole, there[:9], gpu.put(b), np.array([0, 5, 9]))
    alone = gpu.empty((4, 17), np.float64)
    gpu.matmul_grains(alone, gpu.put(a[5:9]), gpu.put(b), np.array([0, 4]))
    assert gpu.read(alone).tobytes() == gpu.read(whole)[5:].tobytes()
