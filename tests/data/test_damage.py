"""Files cut anywhere, or with any byte changed, give the right data or a DataError: never anything else."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hpcps.data import load_samples
from hpcps.errors import DataError

KINDS = ["idx", "idx.gz", "npy", "npz", "npz packed", "csv", "tsv", "libsvm"]
CHECKED = {"idx.gz", "npz packed"}  # formats with a checksum over all that is read
LINED = {"csv", "tsv", "libsvm"}
SAMPLES = (np.arange(60, dtype=np.float32).reshape(20, 3) * 7 % 31) / 8 + 1
LABELS = np.arange(20) % 3
PLACES = st.floats(0, 1, exclude_max=True)


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory, write):
    """The kind, a path with an undamaged file, and a second folder with a file to damage."""
    folder = tmp_path_factory.mktemp("whole")
    path = write(request.param, folder, SAMPLES, LABELS)
    other = shutil.copytree(folder, tmp_path_factory.mktemp("damaged"), dirs_exist_ok=True)
    return request.param, path, other / path.name


def attempt(load, joined, path):
    """Samples, labels and classes, or None after a DataError of one line."""
    try:
        return joined(load(path, 1, blocks=3, task="regression", scale="maxabs"))
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    assert str(path.parent) in message
    return None


@settings(max_examples=40, deadline=None)
@given(place=PLACES)
def test_cut_off(written, place, load, joined):
    kind, whole, path = written
    content = whole.read_bytes()
    path.write_bytes(content[: int(place * len(content))])
    got = attempt(load, joined, path)
    if kind not in LINED:
        assert got is None
    elif got is not None:  # a cut between lines, or inside the last number, cannot be seen
        count = len(got[0])
        width = min(got[0].shape[1], 3)  # the only line may be short
        np.testing.assert_array_equal(got[0][: count - 1, :width], SAMPLES[: count - 1, :width])


@settings(max_examples=120, deadline=None)
@given(place=PLACES, value=st.integers(1, 255))
def test_changed_byte(written, place, value, load, joined):
    kind, whole, path = written
    content = bytearray(whole.read_bytes())
    content[int(place * len(content))] ^= value
    path.write_bytes(content)
    got = attempt(load, joined, path)
    if got is not None and kind in CHECKED:
        np.testing.assert_array_equal(got[0], SAMPLES)
        np.testing.assert_array_equal(got[1], LABELS)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), name=st.sampled_from(["a.csv", "a.svm", "a.npz", "a.idx", "a.x", "a.tsv"]))
def test_any_bytes(content, name, tmp_path_factory, options):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        block = load_samples(str(path), options(""), features=2, classes=None, with_labels=False)
        assert len(block.samples) == len(block) > 0
    except DataError as error:
        message = str(error)
        event("refused")
    else:
        message = str(path)
    assert str(path) in message
