"""Where rows of tables are with train.strategy = "auto"."""

import json

import numpy as np
import pytest

import hpcps
from hpcps import config, trial
from hpcps.gathered import GatheredTables
from hpcps.trial import Timings

FEATURES = 3000
SAMPLES = 400
BATCH = 20


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Samples of 20 out of 3,000 features, of which few are common."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(SAMPLES):
        features = np.unique((FEATURES * rng.random(20) ** 3).astype(int))
        lines.append(f"{rng.integers(2)} " + " ".join(f"{feature + 1}:1" for feature in features) + "\n")
    path = tmp_path_factory.mktemp("data") / "rows.svm"
    path.write_text("".join(lines))
    return path


def train(text, folder, *settings, ranks, model="fm", epochs=1, **how):
    tree = [f"data.path={text}", f"data.features={FEATURES}", f"model.kind={model}", "run.threads=2"]
    tree += [f"train.epochs={epochs}", f"train.batch={BATCH}", *settings]
    return hpcps.train(config.read(None, settings=tree), ranks=ranks, out=folder, **how).summary


@pytest.fixture
def always(monkeypatch):
    """Runs of any length have a trial; says which of them it is to find faster, and notes what was compared."""
    found = []

    def begin(on_shards):
        real = trial.compare

        def compare(*given):
            timings = real(*given)
            found.append((given[2], timings))
            return Timings(2.0, 1.0) if on_shards else Timings(1.0, 2.0)

        monkeypatch.setattr(trial, "FEW_STEPS", 0)
        monkeypatch.setattr(trial, "compare", compare)
        return found

    return begin


@pytest.mark.parametrize("on_shards", [False, True])
@pytest.mark.parametrize("kind", ["ftrl", "adam"])
def test_a_trial_changes_no_bit_wherever_rows_are(text, tmp_path, always, on_shards, kind):
    more = [f"optimizer.kind={kind}", "train.reproducible=true"]
    alone = train(text, tmp_path / "alone", *more, ranks=1)
    found = always(on_shards)
    run = train(text, tmp_path / "run", *more, ranks=3)
    assert run["params_sha256"] == alone["params_sha256"]
    assert ("push to shards of all ranks" in run["exchange"]) == on_shards
    assert ("rows of tables: all-gather" in run["exchange"]) != on_shards
    fast, slow = ("shards", "an all-gather") if on_shards else ("an all-gather", "shards")
    assert f"because a step of rows by {fast} takes 1e+03 ms, by {slow} 2e+03 ms" in run["why"]
    timings = [timings for _, timings in found]
    assert len(timings) == 3
    assert timings.count(timings[0]) == 3  # all ranks have found the same
    assert min(timings[0].gathered_s, timings[0].sharded_s) > 0


def test_it_takes_the_keys_of_the_first_batches(text, tmp_path, monkeypatch):
    tried, used, update = [], {}, GatheredTables.update
    monkeypatch.setattr(trial, "FEW_STEPS", 0)
    monkeypatch.setattr(trial, "compare", lambda *given: tried.append(given[2]) or Timings(1.0, 2.0))

    def noted(tables, step, summed):
        used.setdefault(id(tables), []).append({name: sorted(rows.keys) for name, rows in summed.rows.items()})
        update(tables, step, summed)

    monkeypatch.setattr(GatheredTables, "update", noted)
    train(text, tmp_path / "run", ranks=2)
    of_trial = [[{name: sorted(keys) for name, keys in batch.items()} for batch in batches] for batches in tried]
    of_run = [batches[: trial.BATCHES] for batches in used.values()]
    assert len(of_run) == 2
    assert of_trial in (of_run, of_run[::-1])


@pytest.mark.parametrize(
    ("settings", "ranks", "on_shards", "why"),
    [
        ((), 4, False, "workers are on one node, and 20 steps are too few for a trial"),
        (("server.threshold=0.01",), 2, True, "server.threshold is for rows that are pushed"),
    ],
)
def test_what_needs_no_trial(text, tmp_path, monkeypatch, settings, ranks, on_shards, why):
    monkeypatch.setattr(trial, "compare", None)
    run = train(text, tmp_path / "run", *settings, ranks=ranks)
    assert run["why"].endswith(f"because {why}")
    assert ("to shards of all ranks" in run["exchange"]) == on_shards


def test_tables_that_leave_too_little_memory_are_not_gathered(text, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "compare", None)
    monkeypatch.setattr(trial, "FEW_STEPS", 0)
    monkeypatch.setattr(trial, "MEMORY_PART", 0.0)
    run = train(text, tmp_path / "run", ranks=2)
    assert "whole tables take" in run["why"]
    assert "push to shards" in run["exchange"]


@pytest.mark.parametrize("on_shards", [False, True])
def test_a_run_goes_on_as_it_began(text, tmp_path, always, on_shards):
    more = ["checkpoint.every_steps=20"]
    found = always(on_shards)
    whole = train(text, tmp_path / "whole", *more, ranks=2, epochs=2)
    assert len(found) == 2
    first = tmp_path / "left"
    train(text, first, *more, ranks=2)
    found.clear()
    run = train(text, first, *more, ranks=2, epochs=2, resume=True)
    assert not found
    assert run["why"].endswith("because they were at the checkpoint")
    assert ("push to shards" in run["exchange"]) == on_shards
    assert run["params_sha256"] == whole["params_sha256"]
    other = train(text, first, *more, ranks=3, epochs=3, resume=True)  # with other workers it is tried again
    assert len(found) == 3
    assert other["resumed_from"] == [20, 40]


PLAIN = """
class Plain:
    def init(self, params):
        return {}
    def update(self, params, gradient, state, step):
        assert gradient.any() or gradient.size < 9  # those of a trial are zero; a bias's may be
        params -= 0.1 * gradient
"""


def test_an_optimizer_of_ones_own_sees_no_trial(text, tmp_path, always):
    (tmp_path / "own.py").write_text(PLAIN)
    found = always(True)
    run = train(text, tmp_path / "run", f"optimizer.kind={tmp_path}/own.py:Plain", ranks=2, model="logistic")
    assert len(found) == 2
    assert run["steps"] == SAMPLES // BATCH


def test_dense_models_have_no_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "FEW_STEPS", 0)
    monkeypatch.setattr(trial, "compare", None)
    told = config.read(None, settings=["data.path=digits", "model.kind=softmax", "train.epochs=1"])
    run = hpcps.train(told, ranks=2, out=tmp_path / "run")
    assert json.loads((run.folder / "summary.json").read_text())["why"] == "dense parameters are all-reduced"


def test_windows_are_read_again_from_the_first(text, tmp_path, always):
    found = always(False)
    streamed = train(text, tmp_path / "streamed", "data.window=60", "train.strategy=ring", ranks=2)
    tried = train(text, tmp_path / "tried", "data.window=60", ranks=2)
    assert len(found) == 2
    assert tried["params_sha256"] == streamed["params_sha256"]
