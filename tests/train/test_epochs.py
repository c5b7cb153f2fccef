"""Every sample of an epoch comes once, wherever in it a run is left and however many workers and threads go on.

Sample i has feature i alone, and its loss (Huber's, far from the label) has a slope of 1: each visit adds the same to
weight i. What a run has learned tells how often it has seen each sample, and what it forgets with a checkpoint does
not count.
"""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest

import hpcps
from hpcps import parts, run_folder
from hpcps.checkpoint.manifest import MANIFEST, decode, encode
from hpcps.comm.topology import proportional_bounds
from hpcps.config import from_tree
from hpcps.data.blocks import Block, Csr, Place, Places
from hpcps.data.stream import chained, streamed
from hpcps.errors import CheckpointError

BATCH, STEPS = 12, 25
VISIT = 2.0**-8
"""What a visit adds to a weight"""
LEAVES = ((3, 1, 4), (5, 1, 8), (1, 3, 16), (2, 2, 20), (1, 1, None))
"""Workers, threads of each, and the step after which they leave an epoch of 25 steps to the next"""
SERVER = {"train.strategy": "server"}
WAYS = {
    "ring": {"train.strategy": "ring"},
    "synchronous": SERVER,
    "two shards": {**SERVER, "server.count": 2},
    "colocated": {**SERVER, "server.colocated": True},
    "stale": {**SERVER, "server.staleness": 2},
    "asynchronous": {**SERVER, "server.staleness": "async"},
    "averaging": {"train.strategy": "averaging", "train.average_every": 2},
    "online": {"train.strategy": "online"},
}


def config(path, epochs=1, **more):
    features = len(path.read_text().splitlines())
    tree = {
        "data": {"path": str(path), "format": "libsvm", "features": features},
        "model": {"kind": "linear", "loss": "huber"},
        "optimizer": {"kind": "sgd", "learning_rate": BATCH * VISIT},
        "train": {"epochs": epochs, "batch": BATCH, "report_every": 4},
        "checkpoint": {"every_steps": 1, "keep": 99},
    }
    if more.get("train.strategy") == "online":  # a step is not of a mean
        tree["optimizer"]["learning_rate"] = VISIT
    for key, value in more.items():
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = value
    return from_tree(tree)


@pytest.fixture(scope="module")
def one_hot(tmp_path_factory):
    """Makes a file of so many samples, of which each has a feature of its own."""
    folder = tmp_path_factory.mktemp("data")

    def make(count):
        path = folder / f"{count}.svm"
        path.write_text("".join(f"1000 {number + 1}:1\n" for number in range(count)))
        return path

    return make


def train(out, workers, told):
    servers = told.server.count if told.train.strategy == "server" and not told.server.colocated else 0
    return hpcps.train(told, ranks=workers + servers, out=out).summary


def leave(out, step):
    """As if the run had been killed after the checkpoint of this step."""
    for left in ("summary.json", "model.safetensors"):
        (out / left).unlink()
    for path in (out / "checkpoint").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def visits(out):
    """How often each sample was seen."""
    counts = run_folder.read_model(out).params["weight"].reshape(-1) / np.float32(VISIT)
    assert np.allclose(counts, counts.round(), atol=1e-3)
    return counts.round().astype(int)


def manifest(out, step):
    return json.loads((out / "checkpoint" / f"step-{step:09d}" / "manifest.json").read_bytes())["manifest"]


@pytest.mark.parametrize(
    ("way", "window"), [*((way, 0) for way in WAYS), ("ring", 16), ("asynchronous", 16), ("online", 16)]
)
def test_an_epoch_that_many_take_up_visits_each_sample_once(tmp_path, one_hot, way, window):
    """Of 300 features, which are tables' rows."""
    path, out = one_hot(BATCH * STEPS), tmp_path / "run"
    more = {**WAYS[way], "data.window": window, "checkpoint.every_steps": 4}
    for workers, threads, step in LEAVES:
        train(out, workers, config(path, **more, **{"run.threads": threads}))
        assert visits(out).tolist() == [1] * BATCH * STEPS
        if step is not None:
            leave(out, step)


@pytest.mark.parametrize("way", ["ring", "asynchronous", "averaging"])
def test_dense_samples_and_epochs_after_that(tmp_path, one_hot, way):
    """Of 100 samples four sit an epoch out; which, is what the cut at its beginning has said."""
    path, out = one_hot(8 * BATCH + 4), tmp_path / "run"
    more = {**WAYS[way], "run.threads": 1}
    train(tmp_path / "whole", 3, config(path, **more))
    train(out, 3, config(path, 3, **more))
    leave(out, 5)
    train(out, 2, config(path, **{**more, "run.threads": 2}))
    assert visits(out).tolist() == visits(tmp_path / "whole").tolist()
    leave(out, 6)
    train(out, 5, config(path, 3, **more))
    assert visits(out).sum() == 3 * 8 * BATCH
    assert visits(out).max() == 3
    three, five = [0, 4, 8, 12], [0, 3, 6, 8, 10, 12]
    assert [manifest(out, step)["position"]["cut"] for step in (6, 8, 10)] == [three, three, five]
    leave(out, 8)  # between two epochs any cut will do
    train(out, 4, config(path, 3, **more))
    assert manifest(out, 10)["position"]["cut"] == [0, 3, 6, 9, 12]
    assert visits(out).max() == 3


def test_batches_stay_what_they_were(tmp_path):
    """Sums alone are rounded otherwise."""
    tree = {
        "data": {"path": "digits", "scale": "maxabs"},
        "model": {"kind": "softmax"},
        "train": {"epochs": 1, "batch": 100, "dtype": "float64"},
        "checkpoint": {"every_steps": 1, "keep": 99},
        "run": {"threads": 1},
    }
    whole = hpcps.train(from_tree(tree), ranks=3, out=tmp_path / "whole").summary
    others = hpcps.train(from_tree(tree), ranks=2, out=tmp_path / "others").summary
    assert whole["loss"] != pytest.approx(others["loss"], rel=1e-6)  # another cut holds other batches
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for ranks, threads, step in ((2, 1, 4), (5, 1, 9), (1, 3, 11)):
        leave(tmp_path / "run", step)
        found = hpcps.train(from_tree({**tree, "run": {"threads": threads}}), ranks=ranks, out=tmp_path / "run").summary
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-12)
        expected = run_folder.read_model(tmp_path / "whole").params
        for name, values in run_folder.read_model(tmp_path / "run").params.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-12)


def test_a_checkpoint_whose_cut_cannot_be_is_refused(tmp_path, one_hot):
    path, out = one_hot(5 * BATCH), tmp_path / "run"
    train(out, 2, config(path))
    leave(out, 3)
    file = out / "checkpoint" / "step-000000003" / MANIFEST
    good = decode(file.read_bytes())

    def with_cut(*cut):
        return encode(msgspec.structs.replace(good, position=replace(good.position, cut=cut)))

    for bad in ((1, 12), (0, 8, 6, 12)):
        with pytest.raises(ValueError, match="its position cannot be"):
            decode(with_cut(*bad))
    file.write_bytes(with_cut(0, 5, 13))
    with pytest.raises(CheckpointError, match="cuts batches of 13 samples, not 12"):
        train(out, 2, config(path))
    file.write_bytes(with_cut())  # of an earlier version: what is left is cut anew
    train(out, 2, config(path))


@pytest.mark.parametrize(("was", "now"), [([3, 2, 7], [12]), ([12], [1] * 12), ([5, 7], [4, 4, 4]), ([1, 11], [11, 1])])
def test_parts_take_over_what_others_would_have_visited(was, now):
    """Place by place of the batch, from orders drawn at once and in windows."""
    count, steps = 12 * 9 + 5, 9
    bounds = [np.cumsum([0, *sizes]).tolist() for sizes in (was, now)]
    starts = proportional_bounds(count, bounds[0])
    for window in (0, 7):
        orders = [parts.order(1, 2, part, high - low, window) for part, (low, high) in enumerate(pairwise(starts))]
        for step in range(steps):
            batch = np.concatenate(
                [start + order[step * n : (step + 1) * n] for start, order, n in zip(starts, orders, was, strict=False)]
            )
            for (low, high), size in zip(pairwise(bounds[1]), now, strict=True):
                own = parts.stretches(bounds[0], low, high)
                visits = parts.DealtOrder(own, [orders[one.part] for one in own], [starts[one.part] for one in own])
                assert visits[step * size : (step + 1) * size].tolist() == batch[low:high].tolist()
                assert visits[0 : (step + 1) * size][step * size :].tolist() == batch[low:high].tolist()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_chain_of_streamed_blocks_has_the_samples_of_all(sparse):
    samples, labels = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32), np.arange(17)
    stored = Csr(np.arange(18) * 3, np.tile(np.arange(3, dtype=np.int32), 17), samples.reshape(-1), 3)

    def read(rows):
        low, high = rows.start, rows.stop
        places = Places((Place("data", "labels", "sample", rows),))
        return Block(stored.rows(low, high) if sparse else samples[low:high], labels[low:high], places)

    blocks = streamed([range(4), range(4, 5), range(5, 17)], 3, read, read(range(0)))
    whole = chained(blocks)
    assert (len(whole), whole.window) == (17, 3)
    for index in (np.array([16, 0, 4, 3, 5, 0]), np.array([7, 6]), np.empty(0, np.int64)):
        found, own, near = whole.near(index)
        assert own[near].tolist() == index.tolist()
        rows = found.take(near).values.reshape(-1, 3) if isinstance(found, Csr) else found[near]
        assert np.array_equal(rows, samples[index])
    assert (whole.where(4), whole.where_label(16)) == ("data: sample 4", "labels: sample 16")
    assert chained(blocks[:1]) is blocks[0]
