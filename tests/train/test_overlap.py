"""Large models: gradients sent off in buckets while the rest is computed, updates shared out. The bits are those of one
sum and one update."""

import numpy as np
import pytest

import hpcps
from hpcps import faster, joining, machine
from hpcps.config import from_tree
from hpcps.joining import BUCKET_BYTES, bucket_bounds
from hpcps.params import Params
from hpcps.published import Kept
from hpcps.reduction import Sharded

MODEL = {"kind": "mlp", "hidden": [512, 256]}  # 670 KB in float32


def train(tmp_path, ranks, **train):
    tree = {"data": {"path": "digits"}, "model": MODEL, "train": {"epochs": 1, "batch": 96, **train}}
    if train.get("strategy") == "server":
        tree["server"] = {"count": 1}
    tree |= {"run": {"threads": 1}, "optimizer": {"kind": "adam", "learning_rate": 0.002}}
    out = tmp_path / "-".join(map(str, [ranks, *train.values()]))
    return hpcps.train(from_tree(tree), ranks=ranks, out=out).summary


@pytest.mark.parametrize("is_seen", [True, False])
@pytest.mark.parametrize("algorithm", ["auto", "memory", "ring", "doubling"])
def test_two_workers_end_with_the_same_bits_by_every_way(tmp_path, monkeypatch, algorithm, is_seen):
    """The sum of two is the same in any order; the update of an element does not depend on who makes it."""
    if not is_seen:
        monkeypatch.setattr(joining, "adds_in_memory", lambda *given: False)
    plain = train(tmp_path, 3, strategy="server")
    found = train(tmp_path, 2, algorithm=algorithm)
    assert plain["workers"] == found["workers"] == 2
    assert found["params_sha256"] == plain["params_sha256"]
    assert ("2 buckets" in found["exchange"]) == (algorithm == "doubling" or not is_seen)
    assert ("update sharded" in found["exchange"]) == (algorithm != "doubling")


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_others_read_has_the_same_bits_written_past_the_caches(tmp_path, monkeypatch, ranks):
    changes, change = [], Kept.change
    monkeypatch.setattr(Kept, "change", lambda self, *slices: (changes.append(slices), change(self, *slices)))
    monkeypatch.setattr(faster, "TRY_EVERY", 2)
    found = []
    for worth in (np.inf, 0.0):  # the way past the caches is never the faster one, or from the first try on
        monkeypatch.setattr(faster, "WORTH", worth)
        found.append(train(tmp_path / str(worth), ranks, algorithm="memory"))
        assert len(changes) == (0 if worth else ranks)  # one bucket is large enough
    assert found[0]["params_sha256"] == found[1]["params_sha256"]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("reproducible", [False, True])
def test_an_update_that_adds_up_itself_has_the_bits_of_a_sum_and_an_update(tmp_path, monkeypatch, ranks, reproducible):
    shown, show = [], Sharded.show

    def shows(self, x, is_wanted):
        shown.append(show(self, x, is_wanted))
        return shown[-1]

    how = {"algorithm": "memory", "reproducible": reproducible, **({"grains": ranks} if reproducible else {})}
    monkeypatch.setattr(Sharded, "show", shows)
    together = train(tmp_path / "together", ranks, **how)
    assert len(shown) == ranks
    assert all(shown) == (not reproducible or ranks == 2)  # the tree of three adds in another order
    monkeypatch.setattr(Sharded, "show", lambda self, x, is_wanted: None)
    apart = train(tmp_path / "apart", ranks, **how)
    assert together["params_sha256"] == apart["params_sha256"]
    assert together["exchange"] == apart["exchange"]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_reproducible_runs_share_out_the_update_and_keep_the_bits(tmp_path, ranks):
    alone = train(tmp_path, 1, reproducible=True, grains=8)
    found = train(tmp_path, ranks, reproducible=True, grains=8)
    assert found["params_sha256"] == alone["params_sha256"]
    assert "update sharded" in found["exchange"]


def test_a_norm_to_clip_takes_one_bucket_and_a_whole_update(tmp_path):
    tree = {"data": {"path": "digits"}, "model": MODEL, "train": {"epochs": 1, "batch": 96}, "run": {"threads": 1}}
    tree["optimizer"] = {"kind": "sgd", "learning_rate": 0.1, "clip_norm": 0.5}
    summary = hpcps.train(from_tree(tree), ranks=2, out=tmp_path / "clipped").summary
    assert summary["exchange"] == "all-reduce: shared memory"


def test_workers_of_which_one_has_more_threads_send_one_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "threads", lambda seats, rank: rank + 1)
    tree = {"data": {"path": "digits"}, "model": MODEL, "train": {"epochs": 1, "batch": 96}, "run": {"timeout_s": 20}}
    summary = hpcps.train(from_tree(tree), ranks=2, out=tmp_path / "uneven").summary
    assert "buckets" not in summary["exchange"]
    assert "update sharded" in summary["exchange"]  # of a sum, which threads share out: so do those that have none
    assert summary["accuracy"] > 0.8


def test_buckets_are_neighbouring_stages_from_the_end():
    count = BUCKET_BYTES // 4
    shapes = {"a": (7,), "b": (count - 1,), "c": (1,), "d": (5,), "e": (count,)}
    dense = Params.zeros(shapes, np.float32)
    stages = [["e"], ["d"], ["c"], ["b"], ["a"]]
    end = len(dense.flat)
    assert bucket_bounds(dense, stages) == [
        (0, slice(end - count, end)),
        (3, slice(7, end - count)),
        (4, slice(0, 7)),
    ]
    assert bucket_bounds(dense, []) == [(-1, slice(0, end))]
