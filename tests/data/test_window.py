"""data.window: text that is read in windows as training goes along."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import hpcps
from hpcps import inference, parts
from hpcps.config import from_tree
from hpcps.data import load_samples
from hpcps.data.blocks import Block, Csr
from hpcps.data.pieces import Part
from hpcps.errors import ConfigError, DataError

SAMPLES = np.random.default_rng(5).integers(0, 4, (2500, 6)).astype(np.float32) / 8
LABELS = np.arange(2500) * 7 % 3


def rows(samples) -> np.ndarray:
    if not isinstance(samples, Csr):
        return samples
    out = np.zeros((len(samples), samples.features), np.float32)
    out[np.repeat(np.arange(len(samples)), np.diff(samples.indptr)), samples.indices] = samples.values
    return out


def seen(block: Block, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    samples, labels, local = block.near(index)
    return rows(samples)[local], labels[local]


@pytest.fixture(params=["libsvm", "csv"])
def path(request, tmp_path, write):
    return write(request.param, tmp_path, SAMPLES, LABELS * 5 - 1)


@pytest.mark.parametrize("window", [1, 7, 100, 624, 625, 10_000])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_streamed_block_holds_what_a_block_in_memory_holds(path, load, window, ranks) -> None:
    rng = np.random.default_rng(window)
    for options in ({}, {"test_fraction": 0.3}, {"test": str(path)}):
        whole = load(path, ranks, **options)
        streamed = load(path, ranks, window=window, **options)
        for a, b in zip(whole, streamed, strict=True):
            assert (a.features, a.train_count, a.test_count) == (b.features, b.train_count, b.test_count)
            np.testing.assert_array_equal(a.classes, b.classes)
            pairs = [
                (getattr(a, part)[n], block) for part in ("train", "test") for n, block in getattr(b, part).items()
            ]
            assert len(pairs) == len(a.train) + len(a.test)
            for wanted, got in pairs:
                assert len(wanted) == len(got)
                assert got.window == window
                assert (got.labels.dtype, type(got.samples)) == (wanted.labels.dtype, type(wanted.samples))
                span = min(len(wanted), max(1, 5 * window))
                low = int(rng.integers(0, len(wanted) - span + 1))
                for index in (low + np.arange(span), low + rng.integers(0, span, 50), np.empty(0, np.int64)):
                    for x, y in zip(seen(wanted, index), seen(got, index), strict=True):
                        np.testing.assert_array_equal(x, y)
                for i in (0, len(got) - 1):
                    assert got.where(i) == wanted.where(i)
                    assert got.where_label(i) == wanted.where_label(i)


def test_blank_lines_and_comments_between_the_samples(tmp_path, load, joined) -> None:
    text = "".join(
        f"{i % 2} 1:{i}{' # 9:9' * (i % 5 == 0)}{chr(13) * (i % 3 == 0)}\n{'# x' * (i % 7 == 0)}\n" for i in range(3000)
    )
    (tmp_path / "a.svm").write_text(text[:-2], newline="")
    whole = joined(load(tmp_path / "a.svm", 2))
    got = [
        seen(block, np.arange(len(block)))
        for one in load(tmp_path / "a.svm", 2, window=128)
        for block in one.train.values()
    ]
    for position in (0, 1):
        np.testing.assert_array_equal(np.concatenate([pair[position] for pair in got]), whole[position])


def test_several_files_are_one_data_set(tmp_path, load) -> None:
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.svm").write_text("".join(f"{i % 2} {number + 1}:{i + 1}\n" for i in range(11 + number)))
    whole, streamed = (load(tmp_path, 2, blocks=2, window=window) for window in (0, 5))
    for a, b in zip(whole, streamed, strict=True):
        for number, block in a.train.items():
            index = np.random.default_rng(0).permutation(len(block))
            for x, y in zip(seen(block, index), seen(b.train[number], index), strict=True):
                np.testing.assert_array_equal(x, y)
            assert b.train[number].where(3) == block.where(3)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 57])
@pytest.mark.parametrize("window", [1, 10, 100])
@pytest.mark.parametrize("size", [1, 4, 25])
def test_an_epoch_visits_every_sample_once_window_after_window(count, window, size) -> None:
    order = parts.order(1, 2, 3, count, window)
    drawn = np.concatenate([order[low : low + size] for low in range(0, count + 1, size)])
    assert drawn.dtype == np.int64
    assert sorted(drawn) == list(range(count))
    np.testing.assert_array_equal(drawn // window, np.arange(count) // window)
    assert drawn.tolist() == parts.order(1, 2, 3, count, window)[0:count].tolist()


def test_a_windowed_order_depends_on_seed_epoch_and_part_alone() -> None:
    first = parts.order(1, 2, 3, 500, 100)[0:500]
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not np.array_equal(first, parts.order(*other, 500, 100)[0:500])
    assert len({(first[low : low + 100] - low).tobytes() for low in range(0, 500, 100)}) == 5


def test_no_more_than_two_windows_of_a_part_are_in_memory(path, load, monkeypatch) -> None:
    windows, most = [], 0
    make = Part.block
    gc.freeze()  # what was there before need not be looked through at each of many collections

    def noted(*args) -> Block:
        nonlocal most
        windows.append(weakref.ref(made := make(*args)))
        gc.collect()
        most = max(most, alive())
        return made

    def alive() -> int:
        return sum(window() is not None and len(window()) > 0 for window in windows)

    monkeypatch.setattr(Part, "block", noted)
    [one] = load(path, window=50, test_fraction=0.2)
    assert most == 1  # the look through all samples keeps none
    for block in one.train.values():
        order = parts.order(0, 0, 0, len(block), 50)
        for low in range(0, len(block), 30):
            block.near(order[low : low + 30])
    assert alive() == 4  # parts
    assert most <= 5
    for block in one.test.values():
        for low in range(0, len(block), 30):
            block.near(np.arange(low, min(low + 30, len(block))))
    assert alive() == 5  # all held-out blocks share one
    assert most <= 6
    gc.unfreeze()


CONFIG = {
    "model": {"kind": "softmax"},
    "train": {"epochs": 2, "batch": 64, "reproducible": True, "grains": 5},
    "run": {"transport": "threads"},
}


def train(path, folder, ranks=1, **options):
    data = {"path": str(path), "window": 40, "test_fraction": 0.2, **options}
    return hpcps.train(from_tree({**CONFIG, "data": data}), ranks=ranks, out=folder)


def test_the_same_bits_at_any_rank_count(path, tmp_path) -> None:
    runs = [train(path, tmp_path / f"run{ranks}", ranks) for ranks in (1, 2, 3)]
    found = {tuple(run.summary[name] for name in ("params_sha256", "loss", "test_loss", "accuracy")) for run in runs}
    assert len(found) == 1
    assert train(path, tmp_path / "other", window=41).summary["params_sha256"] != runs[0].summary["params_sha256"]


def test_a_run_is_evaluated_and_predicts(path, tmp_path) -> None:
    run = train(path, tmp_path / "run")
    assert inference.evaluate(run.folder)["accuracy"] == pytest.approx(run.summary["accuracy"])
    assert set(inference.evaluate(run.folder, str(path))) == {"test_loss", "accuracy"}
    predicted = inference.predict(run.folder, str(path))
    assert len(predicted) == len(LABELS)
    assert set(predicted) <= {-1, 4, 9}


def test_regression(tmp_path, write) -> None:
    path = write("libsvm", tmp_path, SAMPLES, SAMPLES @ np.arange(6))
    data = {"path": str(path), "window": 100, "scale": "bytes", "test_fraction": 0.1}
    tree = {**CONFIG, "data": data, "model": {"kind": "linear"}}
    hashes = {hpcps.train(from_tree(tree), ranks=n, out=tmp_path / str(n)).summary["params_sha256"] for n in (1, 2)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 1:x", "line 1700, byte 3: the value is not a number"),
        ("1.5 1:2", "line 1700: the label 1.5 is not a whole number"),
        ("1 1:nan", "line 1700, index 1: the value is not a finite float32 number"),
        ("1 2:1 8:1", "line 1700: the index 8 is beyond the 6 features expected"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_fault_is_found_before_training_begins(tmp_path, write, load, line, message, ranks) -> None:
    path = write("libsvm", tmp_path, SAMPLES, LABELS)
    lines = path.read_text().splitlines()
    lines[1699] = line
    path.write_text("\n".join(lines))
    for window in (0, 90):
        with pytest.raises(DataError, match=message):
            load(path, ranks, window=window, features=6)


def test_a_label_that_training_does_not_have(tmp_path, write, load) -> None:
    path = write("libsvm", tmp_path, SAMPLES, LABELS)
    (tmp_path / "t.svm").write_text("0 1:1\n" * 500 + "7 1:1\n5 1:1\n")
    for window in (0, 90):
        with pytest.raises(DataError, match=r"t\.svm: line 501: the label 7 does not occur among the training labels"):
            load(path, 3, window=window, test=str(tmp_path / "t.svm"))


def test_a_file_that_changes_under_way(tmp_path, write, load) -> None:
    path = write("libsvm", tmp_path, SAMPLES, LABELS)
    [one] = load(path, window=100)
    text = path.read_text()
    for changed, message in (
        (text[:-2000], "became shorter"),
        (text.replace("\n1 ", "\n8 "), "label 8 does not occur"),
        (text.replace(" 6:", " 7:"), "index 7 is beyond the 6 features"),
    ):
        path.write_text(changed)
        with pytest.raises(DataError, match=message):
            one.train[3].near(np.arange(500, 625))


def test_what_does_not_go_with_windows(tmp_path, write, load) -> None:
    for ranks in (1, 2):
        for scale in ("maxabs", "standard"):
            with pytest.raises(
                ConfigError, match=rf"data\.scale = '{scale}' needs all samples in memory; with data\.window"
            ):
                load(write("libsvm", tmp_path, SAMPLES, LABELS), ranks, window=5, scale=scale)
        with pytest.raises(ConfigError, match=r"some\.npy: data\.window is for text"):
            load(write("npy", tmp_path, SAMPLES, LABELS), ranks, window=5)


def test_samples_for_a_finished_model_are_streamed_too(path, options) -> None:
    classes = np.array([-1, 4, 9])
    for with_labels in (True, False):
        whole, got = (
            load_samples(
                str(path), options(str(path), window=window), features=6, classes=classes, with_labels=with_labels
            )
            for window in (0, 100)
        )
        assert (whole.window, got.window) == (0, 100)
        for x, y in zip(seen(whole, np.arange(2500)), seen(got, np.arange(2500)), strict=True):
            np.testing.assert_array_equal(x, y)
