"""Runs whose gradients travel as codes: they learn as others do, say what they do, and refuse what codes cannot do."""

from pathlib import Path

import pytest

import hpcps
from hpcps.config import read
from hpcps.errors import ConfigError, NotFiniteError

EXAMPLES = Path(__file__).parents[2] / "examples"
KINDS = {
    "bf16": ["compress.kind=bf16"],
    "int8": ["compress.kind=int8"],
    "topk": ["compress.kind=topk", "compress.fraction=0.1"],
}
NAMES = {
    "bf16": "bf16, error feedback",
    "int8": "int8, blocks of 256, error feedback",
    "topk": "top-k, fraction 0.1, error feedback",
}


def train(tmp_path, example, *settings, ranks=3):
    config = read(EXAMPLES / example, {}, settings)
    return hpcps.train(config, ranks=ranks, out=tmp_path / f"run{len(list(tmp_path.iterdir()))}").summary


@pytest.mark.parametrize("example", ["digits.toml", "mlp.toml"])
def test_digits_are_learned_as_well_as_without(tmp_path, example):
    plain = train(tmp_path, example)
    for kind, settings in KINDS.items():
        found = train(tmp_path, example, *settings)
        assert found["exchange"] == f"all-reduce: {NAMES[kind]}"
        assert found["params_sha256"] != plain["params_sha256"]
        assert found["accuracy"] >= plain["accuracy"] - 0.015, kind
        assert found["loss"] <= plain["loss"] * 1.5 + 0.01, kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_repeats_itself(tmp_path, kind):
    settings = [*KINDS[kind], "train.epochs=2", "optimizer.clip_norm=1"]
    hashes = {train(tmp_path, "digits.toml", *settings, ranks=2)["params_sha256"] for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_tables_go_as_they_are_beside_codes(tmp_path, kind):
    plain = train(tmp_path, "embedding.toml", "train.strategy=ring")
    found = train(tmp_path, "embedding.toml", "train.strategy=ring", *KINDS[kind])
    assert found["exchange"] == f"all-reduce: {NAMES[kind]}; rows of tables: all-gather"
    assert found["accuracy"] >= plain["accuracy"] - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_sends_nothing_and_rounds_nothing(tmp_path, kind, capsys):
    plain = train(tmp_path, "digits.toml", "train.epochs=2", ranks=1)
    found = train(tmp_path, "digits.toml", "train.epochs=2", *KINDS[kind], ranks=1)
    assert found["params_sha256"] == plain["params_sha256"]
    assert found["exchange"] == "all-reduce: none"
    assert f"note: compress.kind = '{kind}': one worker sends nothing" in capsys.readouterr().out


def test_float64_goes_as_its_largest_numbers(tmp_path):
    settings = ["train.dtype=float64", "compress.kind=topk", "compress.fraction=1", "train.epochs=2"]
    plain = train(tmp_path, "digits.toml", "train.dtype=float64", "train.epochs=2")
    assert train(tmp_path, "digits.toml", *settings)["loss"] == pytest.approx(plain["loss"], rel=1e-12)


FUNCTION = """
import numpy as np

def loss_gradient(params, samples, labels):
    bias = np.zeros(10)
    bias[3] = 2e38  # the sum of three is no float32
    return 1.0, {"weight": np.ones((10, 64)), "bias": bias}
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path, kind):
    (tmp_path / "mine.py").write_text(FUNCTION)
    settings = [f"model.kind={tmp_path / 'mine.py'}:loss_gradient", "model.scores=", *KINDS[kind]]
    with pytest.raises(NotFiniteError, match=r"^rank \d, step 1: a sum of gradients is not finite, or too large"):
        train(tmp_path, "digits_by_hand.toml", *settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["compress.kind=int8", "train.reproducible=true"], "'int8' with train.reproducible: exact sums are not"),
        (["compress.kind=topk", "train.reproducible=true"], "'topk' with train.reproducible: exact sums are not"),
        (["compress.kind=int8", "train.dtype=float64"], "'int8' with train.dtype = 'float64': its codes stand for"),
        (["compress.kind=zip"], r"compress\.kind: invalid enum value 'zip' \(none \| bf16 \| int8 \| topk"),
        (["compress.kind=bf16", "compress.block=64"], r"compress\.block is int8's; bf16 does not use it"),
        (["compress.fraction=0.5"], r"compress\.fraction is topk's; none does not use it"),
        (["compress.kind=int8", "compress.block=8"], r"compress\.block: expected `int` >= 16 \(int8: numbers"),
        (["compress.kind=topk", "compress.fraction=0"], r"compress\.fraction: expected `float` > 0"),
        (["compress.kind=topk", "compress.fraction=1.5"], r"compress\.fraction: expected `float` <= 1"),
    ],
)
def test_what_codes_cannot_do_is_refused_with_the_reason(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(EXAMPLES / "digits.toml", {}, settings)
    assert "\n" not in str(caught.value)
