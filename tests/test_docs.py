"""What the documents say is true: their examples run."""

import doctest
import importlib.util
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import hpcps
from hpcps.config import HELP, read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(hpcps.__path__, "hpcps.")
    if name not in ("hpcps.__main__", "hpcps.comm.mpi") and (name != "hpcps.torch" or importlib.util.find_spec("torch"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples_in_docstrings():
    tried = sum(doctest.testmod(importlib.import_module(name)).attempted for name in MODULES)
    assert tried >= 8


def test_every_key_is_documented_and_no_other():
    assert set(re.findall(r"^\| `(\w+\.\w+)` \|", (ROOT / "docs" / "CONFIG.md").read_text(), re.M)) == set(HELP)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_readmes_configuration_trains(tmp_path):
    (tmp_path / "digits.toml").write_text(blocks("toml")[0])
    config = read(tmp_path / "digits.toml", {}, ["train.epochs=1"])
    assert hpcps.train(config, ranks=2, out=tmp_path / "run").summary["accuracy"] > 0.8


def test_the_readmes_sum_of_an_array():
    names = {}
    exec(blocks("python")[1], names)
    assert (names["x"] == sum(range(names["ranks"].size))).all()


def test_the_readmes_own_function_trains(tmp_path):
    (tmp_path / "mine.py").write_text(blocks("python")[0])
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(200, 4))
    np.savez(tmp_path / "d.npz", samples=samples, labels=samples @ [1.0, 2.0, 3.0, 4.0])
    text = 'data.path = "d.npz"\ntrain.batch = 20\ntrain.epochs = 40\n' + blocks("toml")[2]
    (tmp_path / "own.toml").write_text(text)
    config = read(tmp_path / "own.toml", {}, ["optimizer.learning_rate=0.5"])
    run = hpcps.train(config, ranks=2, out=tmp_path / "run")
    assert run.summary["loss"] < 0.01


def test_the_readmes_sparse_configuration_trains(tmp_path):
    rng = np.random.default_rng(2)
    truth = rng.normal(size=1000)
    rows = [np.sort(rng.choice(1000, 20, replace=False)) for _ in range(3000)]
    lines = [f"{int(truth[row].sum() > 0)} " + " ".join(f"{column + 1}:1" for column in row) for row in rows]
    (tmp_path / "clicks.svm").write_text("\n".join(lines))
    (tmp_path / "clicks.toml").write_text(blocks("toml")[1])
    config = read(tmp_path / "clicks.toml", {}, ["train.epochs=20", "train.batch=64", "data.window=500"])
    assert hpcps.train(config, ranks=2, out=tmp_path / "run").summary["accuracy"] > 0.78


QUALITY = {
    "digits": 0.93,
    "digits_by_hand": 0.93,
    "mlp": 0.95,
    "logistic": 0.8,
    "linear": -20.0,
    "matrix_factorization": -0.45,
}  # accuracy, or minus the rmse


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_trains(example, tmp_path):
    config = read(example)
    if example.stem == "fashion-mnist" and not Path(config.data.path).exists():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    summary = hpcps.train(config, ranks=2, out=tmp_path / "run").summary
    assert summary.get("accuracy", -summary.get("rmse", 0)) >= QUALITY.get(example.stem, 0.83)
