"""Quick runs on small data, with GPUs and without, and how near they must come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from safetensors.numpy import load_file

from hpcps import config, launch

REPRODUCIBLE = "train.reproducible=true", "train.epochs=1", "run.device=cuda"
DENSE = {
    "softmax": ("x.npy", "classes.npy"),
    "logistic": ("x.npy", "binary.npy"),
    "linear": ("x.npy", "values.npy"),
    "mlp": ("x.npy", "classes.npy"),
    "matrix-factorization": ("ids.npy", "values.npy"),
}
FEW = "".join(f"{n % 2} {n % 5 + 1}:{n / 70:.2f} 9:1\n" for n in range(110))
OF_MLP = "model.hidden=[5,4]"


def told(data: Path, kind: str, *settings: str) -> config.Config:
    """A quick run of a model of this kind."""
    samples, labels = DENSE.get(kind, ("sparse.libsvm", ""))
    given = ["train.epochs=2", "train.batch=24", "train.grains=4", "data.test_fraction=0.1", "run.timeout_s=60"]
    given += ["optimizer.kind=sgd", "optimizer.momentum=0.9"]  # no rule that makes steps of what rounding leaves
    given += [f"data.path={data / samples}", f"model.kind={kind}"] + [f"data.labels={data / labels}"] * bool(labels)
    return config.read(None, {}, [*given, *settings])


def train(out: Path, asked: config.Config, ranks: int = 1, **how: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a run says in the end, and its parameters."""
    run = launch.train(asked, ranks=ranks, out=out, **how)
    return json.loads((out / "summary.json").read_text()), load_file(run.folder / "model.safetensors")


def alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=2e-4, atol=2e-5, err_msg=name)


def goes_on_elsewhere(tmp_path, asked: config.Config, device: str) -> None:
    """Two workers go on from a checkpoint made on GPUs without them, or the other way round, as if on CPUs alone."""
    first = changed(changed(asked, "run", device=device), "train", epochs=1)
    train(tmp_path / "run", first, 2)
    other = changed(asked, "run", device="cpu" if device == "cuda" else "cuda", threads=device == "cuda")
    summary, got = train(tmp_path / "run", other, 2, resume=True)
    assert summary["resumed_from"] == [4]
    alike(got, train(tmp_path / "cpu", changed(asked, "run", threads=1), 2)[1])


def as_on_a_cpu(tmp_path, asked: config.Config, ranks: int) -> dict[str, Any]:
    """Train on GPUs and on CPUs, compare; returns what the first run says."""
    summary, got = train(tmp_path / "gpu", changed(asked, "run", device="cuda"), ranks)
    wanted_summary, wanted = train(tmp_path / "cpu", changed(asked, "run", threads=1), ranks)
    alike(got, wanted)
    for name in {"loss", "test_loss", "accuracy", "rmse"} & wanted_summary.keys():
        assert summary[name] == pytest.approx(wanted_summary[name], rel=1e-4)
    return summary


def changed(asked: config.Config, section: str, **values: Any) -> config.Config:
    """The same with other values in one section."""
    return structs.replace(asked, **{section: structs.replace(getattr(asked, section), **values)})


def write_data(folder: Path) -> None:
    """Small sets of samples: dense ones of three classes or two, sparse ones, and pairs of ids."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((110, 6)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "classes.npy", (x @ rng.standard_normal((6, 3))).argmax(axis=1))
    np.save(folder / "binary.npy", (x[:, 0] > x[:, 1]).astype(np.int64))
    np.save(folder / "values.npy", x @ rng.standard_normal(6))
    lines = []
    for _ in range(110):
        columns = np.sort(rng.choice(300, rng.integers(1, 9), replace=False)) + 1
        entries = " ".join(f"{column}:{value:.3f}" for column, value in zip(columns, rng.random(9), strict=False))
        lines.append(f"{int(columns[0] % 2)} {entries}\n")
    (folder / "sparse.libsvm").write_text("".join(lines))
    np.save(folder / "ids.npy", np.stack([rng.integers(0, 9, 110), rng.integers(0, 20, 110)], axis=1))


SPARSE = {
    "logistic": (),
    "logistic by hinge": ("model.loss=hinge",),
    "fm": ("model.task=binary", "model.factors=3"),
    "embedding": ("model.task=binary", "model.width=3", "model.hidden=[4]"),
}


def of_sparse(data: Path, name: str, *settings: str) -> config.Config:
    files = f"data.path={data / 'sparse.libsvm'}", "data.labels="
    return told(data, name.partition(" ")[0], *SPARSE[name], *files, *settings)
