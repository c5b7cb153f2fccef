"""The user's own optimiser, on workers and on shards."""

import json

import numpy as np
import pytest

import hpcps
from hpcps import config, optim
from hpcps.errors import ModelError, NotFiniteError

CODE = """
import numpy as np

def plain(params, gradient, step):
    params -= 0.5 * gradient

class Momentum:
    def init(self, params):
        return {"velocity": np.zeros(params.shape)}

    def update(self, params, gradient, state, step):
        state["velocity"] *= np.float32(0.9)
        state["velocity"] += gradient
        params -= np.float32(0.1) * state["velocity"]

def fails(params, gradient, step):
    raise ValueError("no")

def grows(params, gradient, step):
    params[...] = np.inf

class Wrong:
    def init(self, params):
        return {"velocity": np.zeros(3)}

    def update(self, params, gradient, state, step):
        pass

nothing = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def train(tmp_path, name, *settings, ranks=1):
    folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    told = ["train.epochs=2", "train.reproducible=true", f"optimizer.kind={name}", *settings]
    return hpcps.train(
        config.read(None, settings=["data.path=digits", "model.kind=softmax", *told]), ranks=ranks, out=folder
    )


@pytest.mark.parametrize("name", ["plain", "Momentum"])
def test_it_gives_the_same_bits_on_workers_and_shards(tmp_path, file, name):
    more = ["data.scale=bytes"]
    found = {
        train(tmp_path, f"{file}:{name}", *more, *settings, ranks=ranks).summary["params_sha256"]
        for ranks, *settings in (
            (1,),
            (3,),
            (3, "train.strategy=server"),
            (2, "train.strategy=server", "server.colocated=true"),
        )
    }
    assert len(found) == 1


def test_it_is_what_it_says(tmp_path, file):
    """Beside the built-in of the same formula."""
    kernels = __import__("hpcps_kernels").load("reference")
    builtin = optim.make(config.Optimizer(kind="sgd", learning_rate=0.1, momentum=0.9), kernels)
    own = optim.make(config.Optimizer(kind=f"{file}:Momentum"), kernels)
    rng = np.random.default_rng(0)
    for table in (False, True):
        a = rng.normal(size=(7, 3)).astype(np.float32) if table else rng.normal(size=21).astype(np.float32)
        b = a.copy()
        states = builtin.init(a), own.init(b)
        for step in range(1, 5):
            index = rng.permutation(7)[:4]
            gradient = rng.normal(size=(4, 3) if table else 21).astype(np.float32)
            rest = (gradient, index) if table else (gradient,)
            for one, params, state in ((builtin, a, states[0]), (own, b, states[1])):
                (one.update_rows if table else one.update)(params, state, *rest, 0.5, step)
        assert np.allclose(a, b, rtol=1e-6)


def test_a_model_with_tables(tmp_path, file):
    data = tmp_path / "data.libsvm"
    rng = np.random.default_rng(0)
    rows = [sorted(rng.choice(1000, 5, replace=False) + 1) for _ in range(120)]
    data.write_text("".join(f"{i % 2} " + " ".join(f"{c}:1" for c in row) + "\n" for i, row in enumerate(rows)))
    told = [f"data.path={data}", "model.kind=logistic", f"optimizer.kind={file}:Momentum", "train.batch=40"]
    found = set()
    for ranks, *settings in ((1,), (3,), (3, "train.strategy=server")):
        read = config.read(None, settings=[*told, "train.reproducible=true", *settings])
        found.add(hpcps.train(read, ranks=ranks, out=tmp_path / f"{ranks}{len(settings)}").summary["params_sha256"])
    assert len(found) == 1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("fails", r"mine\.py:17: ValueError: no"),
        ("grows", r"grows: a parameter is not finite after step 1"),
        ("Wrong", r"state 'velocity' has shape \(3,\), expected"),
        ("nothing", "is neither a function nor an object with update"),
        ("missing", "has no 'missing'"),
    ],
)
@pytest.mark.parametrize("strategy", ["ring", "server"])
def test_what_is_wrong_with_it_is_one_line(tmp_path, file, name, match, strategy):
    with pytest.raises((ModelError, NotFiniteError), match=match):
        train(tmp_path, f"{file}:{name}", f"train.strategy={strategy}", ranks=2)


def test_a_run_says_which(tmp_path, file):
    run = train(tmp_path, f"{file}:plain")
    assert json.dumps(f"{file}:plain") in (run.folder / "config.toml").read_text()
