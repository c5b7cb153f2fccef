"""What the tuner measures, decides and keeps."""

import json

import hpcps_kernels
import pytest

from hpcps import tuning
from hpcps.collectives import tune
from hpcps.collectives.choice import Choice
from hpcps.collectives.engine import Engine
from hpcps.collectives.tune import Timing
from hpcps.errors import ConfigError

KERNELS = hpcps_kernels.load("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of the test's own for tables; compiled kernels stay where they are."""
    found = hpcps_kernels.cache_folder()
    monkeypatch.setattr("hpcps_kernels.cache_folder", lambda: type(found)(tmp_path / "kernels"))
    return tmp_path


def test_a_table_is_measured_kept_and_loaded(on_ranks, cache, monkeypatch):
    monkeypatch.setattr(tune, "BUDGET_S", 0.001)

    def body(transport):
        told = tuning.run(transport, 4096)
        table = tune.load(transport)
        assert table[-1][0] == 2**62
        engine = Engine(transport, KERNELS, Choice("auto", table))
        return told, table, engine.name(100)

    (told, table, _), other = on_ranks(2, body)
    assert table == other[1]
    [path] = cache.glob("*.json")
    assert told.endswith(f"kept in {path}")
    timings = json.loads(path.read_text())["timings"]
    assert {row[1] for row in timings} == {"memory", "ring", "doubling"}
    assert {row[0] for row in timings} == {256, 1024, 4096}
    assert all(row[2] > 0 for row in timings)
    assert all(line.split()[0] in told for line in ("256", "1,024", "4,096"))


@pytest.mark.parametrize("text", [None, "", "{}", '{"table": [[1, "magic"]]}', '{"table": [[2, "ring"], [1, "ring"]]}'])
def test_a_table_that_cannot_be_used_is_as_none(on_ranks, cache, text):
    def body(transport):
        path = tune.table_path(transport)
        if text is not None and transport.rank == 0:
            path.write_text(text)
        return tune.load(transport)

    assert on_ranks(2, body) == [(), ()]


def test_the_rule_stands_unless_another_is_clearly_faster(on_ranks):
    def body(transport):
        engine = Engine(transport, KERNELS)
        timings = [
            Timing(256, "memory", 1.0),
            Timing(256, "ring", 0.97),
            Timing(1024, "memory", 1.0),
            Timing(1024, "doubling", 0.5),
            Timing(4096, "memory", 1.0),
            Timing(4096, "doubling", 0.4),
            Timing(16384, "memory", 1.0),
            Timing(16384, "ring", 2.0),
        ]
        return tune.decide(timings, Choice(), engine)

    assert on_ranks(2, body)[0] == ((512, "memory"), (8192, "doubling"), (2**62, "memory"))


def test_one_rank_has_nothing_to_measure(on_ranks):
    with pytest.raises(ConfigError, match="nobody to sum with"):
        on_ranks(1, lambda transport: tuning.run(transport, 4096))
