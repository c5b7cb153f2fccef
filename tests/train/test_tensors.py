"""Arrays written piece by piece, read by the format's own library."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from hpcps.tensors import Stored, stored_here, write_tensors

TENSORS = {
    "weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "flag": np.array([True]),
    "bias": np.array([0.5], np.float32),
    "ids": np.arange(3),
    "empty": np.zeros((0, 2), np.int64),
    "wide": np.linspace(0, 1, 5),
    "bytes": np.arange(7, dtype=np.uint8),
    "small": np.arange(3, dtype=np.int32),
}


def in_rows(array):
    return Stored(array.dtype, array.shape, lambda: iter(array[row : row + 1] for row in range(len(array))))


@pytest.mark.parametrize("stored", [stored_here, in_rows])
def test_they_are_read_as_they_were(tmp_path, stored):
    digests = {name: hashlib.sha256() for name in TENSORS}
    with (tmp_path / "file").open("wb") as file:
        for name, piece in write_tensors(file, {name: stored(array) for name, array in TENSORS.items()}):
            digests[name].update(piece)
    found = load_file(tmp_path / "file")
    assert set(found) == set(TENSORS)
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert digests[name].digest() == hashlib.sha256(array.tobytes()).digest()


def test_pieces_that_are_not_the_whole_are_an_error(tmp_path):
    short = Stored(np.dtype(np.float32), (3,), lambda: iter((np.zeros(2, np.float32),)))
    with (tmp_path / "file").open("wb") as file, pytest.raises(ValueError, match=r"x: 8 bytes came for \(3,\)"):
        list(write_tensors(file, {"x": short}))
