"""Ranks that go on without those that die: threads of one process, and who may go on at all."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import hpcps
from hpcps import survival
from hpcps.checkpoint import Keeper
from hpcps.comm.local import LocalTransport, LocalWorld
from hpcps.config import from_tree
from hpcps.errors import CommTimeout, ConfigError, DataError, ModelError, PeerLost
from hpcps.launch import with_checkpoints
from hpcps.run_folder import read_model
from hpcps.server.serve import Server

OWN = '''
import threading
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent
calls = threading.local()


def f(params, samples, labels):
    """Least squares; on its 40th call one thread raises, once."""
    calls.count = getattr(calls, "count", 0) + 1
    mark = HERE / "failed"
    if calls.count == 40 and threading.current_thread().name.endswith("VICTIM") and not mark.exists():
        mark.touch()
        raise RuntimeError("this rank fails")
    errors = samples @ params["weight"] - labels
    return float(errors @ errors) / 2, {"weight": samples.T @ errors}
'''


def config(folder: Path, victim: int, **run):
    data = folder / "data.csv"
    data.write_text("\n".join(f"{i % 7},{(3 * i) % 5},{2 * (i % 7) - (3 * i) % 5}" for i in range(200)) + "\n")
    (folder / "own.py").write_text(OWN.replace("VICTIM", f"rank {victim}"))
    return from_tree(
        {
            "data": {"path": str(data), "label_column": "-1"},
            "model": {"kind": f"{folder / 'own.py'}:f", "task": "regression", "parameters": {"weight": [2]}},
            "optimizer": {"kind": "sgd", "learning_rate": 0.01},
            "train": {"epochs": 40, "batch": 40, "reproducible": True, "grains": 4},
            "checkpoint": {"every_steps": 7},
            "run": {"threads": 1, **run},
        }
    )


COUNTS = """
import threading
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent
calls = threading.local()


def f(params, samples, labels):
    '''Sample i has a one in column i: its gradient counts a visit. Twice a thread raises.'''
    calls.count = getattr(calls, "count", 0) + 1
    if calls.count == 1:  # of this attempt
        calls.lost = len(list(HERE.glob("failed *")))
    at = (29, "rank VICTIM"), (11, "rank 1"), (0, "")
    if (calls.count, threading.current_thread().name[-6:]) == at[calls.lost]:
        (HERE / f"failed {calls.lost}").touch()
        raise RuntimeError("this rank fails")
    return 0.0, {"weight": -samples.sum(0)}
"""


WAYS = {
    "ring": ({"strategy": "ring"}, {}),
    "averaging": ({"strategy": "averaging", "average_every": 3}, {}),
    "synchronous": ({"strategy": "server"}, {"staleness": 0}),
    "stale": ({"strategy": "server"}, {"staleness": 3}),
    "asynchronous": ({"strategy": "server"}, {"staleness": "async"}),
}


@pytest.mark.parametrize("victim", [0, 3])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_of_an_epoch_is_shared_out_when_ranks_are_lost(tmp_path, victim, way):
    """Twice, of three epochs of 20 steps; no reproducible run. Every sample is counted once an epoch."""
    samples, batch = 240, 12
    (tmp_path / "data.csv").write_text("\n".join(",".join(map(str, row)) + ",0" for row in np.eye(samples, dtype=int)))
    (tmp_path / "own.py").write_text(COUNTS.replace("VICTIM", str(victim)))
    told = from_tree(
        {
            "data": {"path": str(tmp_path / "data.csv"), "label_column": "-1"},
            "model": {
                "kind": f"{tmp_path / 'own.py'}:f",
                "task": "regression",
                "parameters": {"weight": [samples]},
            },
            "optimizer": {"kind": "sgd", "learning_rate": batch},
            "train": {"epochs": 3, "batch": batch, **WAYS[way][0]},
            "server": WAYS[way][1],
            "checkpoint": {"every_steps": 6, "keep": 9},
            "run": {"threads": 1, "survive": True},
        }
    )
    found = hpcps.train(told, ranks=5, out=tmp_path / "run").summary
    assert (found["ranks"], found["steps"]) == (3, 60)
    assert all(step % 20 for step in found["resumed_from"])
    weight = read_model(tmp_path / "run").params["weight"]
    np.testing.assert_allclose(weight, np.full(samples, 3.0), rtol=1e-5)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_threads_go_on_without_one_that_raises_and_end_with_the_same_bits(tmp_path, victim, capsys):
    alone = hpcps.train(config(tmp_path, victim), ranks=1, out=tmp_path / "alone").summary
    found = hpcps.train(config(tmp_path, victim, survive=True), ranks=3, out=tmp_path / "run").summary
    assert (tmp_path / "failed").exists()
    assert (found["ranks"], found["steps"]) == (2, alone["steps"])
    assert found["params_sha256"] == alone["params_sha256"]
    assert found["resumed_from"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 40  # none is lost, none is there twice
    assert "2 go on from the newest checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("restarts", "ranks"), [(1, 3), (0, 2)])
def test_a_thread_that_raises_is_replaced_as_often_as_it_is_allowed(tmp_path, restarts, ranks, capsys):
    alone = hpcps.train(config(tmp_path, 1), ranks=1, out=tmp_path / "alone").summary
    told = config(tmp_path, 1, survive=True, replace=True, restarts=restarts)
    found = hpcps.train(told, ranks=3, out=tmp_path / "run").summary
    assert (found["ranks"], found["steps"]) == (ranks, alone["steps"])
    assert found["params_sha256"] == alone["params_sha256"]
    assert ("with 1 fresh rank" in capsys.readouterr().err) == (restarts > 0)


def test_who_replaces_ranks_survives():
    with pytest.raises(ConfigError, match=r"run\.replace is for ranks that go on .* add run\.survive"):
        from_tree({"data": {"path": "digits"}, "model": {"kind": "softmax"}, "run": {"replace": True}})


@pytest.mark.parametrize("name", ["config.toml", "summary.json", "order-1.bin"])
def test_what_a_rank_was_writing_when_it_was_killed_is_in_nobodys_way(tmp_path, name):
    out = tmp_path / "run"
    out.mkdir()
    (out / f".{name}.4711").write_text("half")
    hpcps.train(config(tmp_path, 9), ranks=1, out=out)
    assert not list(out.glob(".*"))


def test_other_hidden_files_are_somebodys(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.toml.swp").write_text("an editor's")
    with pytest.raises(ConfigError, match="other things"):
        hpcps.train(config(tmp_path, 9), ranks=1, out=out)


def test_without_being_asked_nobody_goes_on(tmp_path):
    with pytest.raises(ModelError, match="this rank fails"):
        hpcps.train(config(tmp_path, 1), ranks=3, out=tmp_path / "run")


def test_what_is_wrong_on_all_ranks_ends_the_run(tmp_path):
    told = config(tmp_path, 1, survive=True)
    Path(told.data.path).unlink()
    with pytest.raises(Exception, match=r"data\.csv"):
        hpcps.train(told, ranks=3, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "left"),
    [("aab", "ab"), ("aabb", "ab"), ("abc", "ab"), ("aabbcc", "ac"), ("aa", "a"), ("abcde", "abc")],
)
def test_who_may_go_on(before, left):
    survival.check_majority(list(before), list(left))


@pytest.mark.parametrize(("before", "left"), [("ab", "a"), ("aab", "aa"), ("abc", "c"), ("aabbccdd", "aabb")])
def test_a_part_of_the_nodes_that_is_not_the_larger_one_ends(before, left):
    with pytest.raises(PeerLost, match="no more than half of the nodes are left") as caught:
        survival.check_majority(list(before), list(left))
    assert caught.value.known_to_all


def test_a_run_that_is_to_survive_has_checkpoints(tmp_path):
    tree = {"data": {"path": "digits"}, "model": {"kind": "softmax"}}
    assert with_checkpoints(from_tree(tree)).checkpoint.every_s == 0
    assert with_checkpoints(from_tree({**tree, "run": {"survive": True}})).checkpoint.every_s == 10
    asked = from_tree({**tree, "run": {"survive": True}, "checkpoint": {"every_steps": 5}})
    assert with_checkpoints(asked).checkpoint == asked.checkpoint


def test_recorded_runs_cannot_survive(tmp_path):
    tree = {
        "data": {"path": "digits"},
        "model": {"kind": "softmax"},
        "train": {"strategy": "server"},
        "server": {"staleness": "async", "record": True},
        "run": {"survive": True},
    }
    with pytest.raises(ConfigError, match=r"run\.survive with server\.record"):
        from_tree(tree)


@pytest.mark.parametrize("staleness", [0, 3, "async"])
def test_a_thread_with_a_shard_that_fails_is_taken_over_by_its_copy(tmp_path, monkeypatch, capfd, staleness):
    """Without a checkpoint, and with the same bits where steps are synchronous."""
    tree = {
        "data": {"path": "digits"},
        "model": {"kind": "softmax"},
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "train": {"strategy": "server", "epochs": 3, "reproducible": staleness == 0},
        "server": {"count": 2, "replicas": 1, "staleness": staleness},
        "run": {"survive": True, "threads": 1, "timeout_s": 20},
    }
    expected = hpcps.train(from_tree(tree), ranks=4, out=tmp_path / "alone").summary
    go_on, letters = Server.go_on, []

    def fails(server, position):
        if threading.current_thread().name == "hpcps rank 3":
            letters.append(position)
            if len(letters) == 60:
                raise RuntimeError("no memory left")
        go_on(server, position)

    monkeypatch.setattr(Server, "go_on", fails)
    found = hpcps.train(from_tree(tree), ranks=4, out=tmp_path / "run").summary
    said = capfd.readouterr().err
    assert "rank 3 failed: no memory left" in said
    assert "rank 3 lost; rank 2 goes on with its copy of shard 1" in said
    assert (found["steps"], found["lost_ranks"], found["resumed_from"]) == (expected["steps"], [3], [])
    assert found["shards"][0]["updates"] == expected["shards"][0]["updates"]
    if staleness == 0:
        assert found["params_sha256"] == expected["params_sha256"]


def test_a_shard_that_is_lost_while_it_writes_gives_up_the_checkpoint_alone(tmp_path, monkeypatch, capfd):
    """Nobody waits for its part until time is up, and the next checkpoint has that of its copy."""
    tree = {
        "data": {"path": "digits"},
        "model": {"kind": "softmax"},
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "train": {"strategy": "server", "epochs": 4, "reproducible": True},
        "server": {"count": 2, "replicas": 1},
        "checkpoint": {"every_steps": 10},
        "run": {"survive": True, "threads": 1, "timeout_s": 300},
    }
    expected = hpcps.train(from_tree(tree), ranks=4, out=tmp_path / "alone").summary
    go_on, write, asked = Server.go_on, Keeper._write, []

    def never_ends(keeper, step, pieces, then):
        if keeper.name == "shard-00001" and step == 20:
            asked.append(step)
            keeper._is_given_up.wait(60)
        else:
            write(keeper, step, pieces, then)

    def fails(server, position):
        if asked and threading.current_thread().name == "hpcps rank 3":
            raise RuntimeError("no memory left")
        go_on(server, position)

    monkeypatch.setattr(Keeper, "_write", never_ends)
    monkeypatch.setattr(Server, "go_on", fails)
    found = hpcps.train(from_tree(tree), ranks=4, out=tmp_path / "run").summary
    said = capfd.readouterr().err
    assert "step-000000020: cannot be written: shard-00001 wrote nothing before it was lost" in said
    assert (found["lost_ranks"], found["resumed_from"]) == ([3], [])
    assert found["params_sha256"] == expected["params_sha256"]
    assert found["checkpoints"] == expected["checkpoints"] - 1


class Left(LocalTransport):
    """Of three ranks of which one was lost before, and taken over; then a second is, unless nobody is."""

    def __init__(self, is_second_lost):
        (whole,) = LocalWorld(1).transports()
        self.__dict__.update(whole.__dict__, size=3)
        self.is_second_lost = is_second_lost

    def lost(self):
        return [] if self.is_second_lost else [2]

    def has_lost(self):
        return self.is_second_lost

    def survivors(self):
        return LocalWorld(1).transports()[0]


class Fails:
    """An attempt that ends with an error, and the next one well."""

    replacements = 0

    def __init__(self, error):
        self.errors = [error]

    def has_begun(self):
        return True

    def train(self, transport, is_begun):
        if self.errors:
            raise self.errors.pop()
        return transport.size


@pytest.mark.parametrize("error", [CommTimeout("nobody came"), PeerLost("it is gone"), DataError("line 3: no")])
@pytest.mark.parametrize("is_second_lost", [True, False])
def test_after_a_copy_has_taken_over_errors_of_something_else_are_no_loss(monkeypatch, error, is_second_lost):
    """Who stands still ends the job, and who fails alone dies, as ever."""

    class DiedError(Exception):
        pass

    def die(error):
        raise DiedError

    monkeypatch.setattr(survival, "die", die)
    call = partial(survival.train, Left(is_second_lost), ["a", "a", "a"], Fails(error))
    if is_second_lost or isinstance(error, PeerLost):
        assert call() == 1
    else:
        with pytest.raises(CommTimeout if isinstance(error, CommTimeout) else DiedError):
            call()
