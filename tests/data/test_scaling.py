"""Shift and scale against their definitions; equal bits over ranks are tested with the formats."""

from __future__ import annotations

import numpy as np
import pytest

from hpcps.data.blocks import CHUNK_ROWS

COUNT = CHUNK_ROWS + 77


def test_none_and_bytes(tmp_path, write, load):
    path = write("npz", tmp_path, np.full((20, 3), 255, np.uint8), np.arange(20) % 2)
    for kind, scale in (("none", 1.0), ("bytes", 1 / 255)):
        [one] = load(path, scale=kind)
        assert one.shift.dtype == one.scale.dtype == np.float64
        np.testing.assert_array_equal(one.shift, [0, 0, 0])
        np.testing.assert_array_equal(one.scale, [scale] * 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32, np.float64])
def test_standard_and_maxabs_of_dense_samples(dtype, tmp_path, write, load):
    samples = np.random.default_rng(1).integers(0, 100, (COUNT, 5)).astype(dtype)
    samples[:, 3] = 3  # constant
    samples[:, 4] = 0
    samples[5, 0] = -128 if dtype == np.int8 else 3
    path = write("npz", tmp_path, samples, np.arange(COUNT) % 2)
    wide = samples.astype(np.float64)
    [one] = load(path, scale="standard")
    np.testing.assert_allclose(one.shift, wide.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(one.scale[:3], 1 / wide[:, :3].std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(one.scale[3:], [1, 1])
    [one] = load(path, scale="maxabs")
    np.testing.assert_array_equal(one.shift, np.zeros(5))
    np.testing.assert_array_equal(one.scale, 1 / np.array([*np.abs(wide).max(axis=0)[:4], 1]))


def test_standard_and_maxabs_of_sparse_samples_do_not_shift(tmp_path, write, load):
    rng = np.random.default_rng(2)
    samples = np.where(rng.random((200, 4)) < 0.7, rng.normal(size=(200, 4)), 0).astype(np.float32)
    samples[:, 2] = 0
    samples[0, 3] = 5
    path = write("libsvm", tmp_path, samples, np.arange(200) % 2)
    [one] = load(path, scale="standard")
    np.testing.assert_array_equal(one.shift, np.zeros(4))
    deviation = samples.astype(np.float64).std(axis=0)
    deviation[2] = 1
    np.testing.assert_allclose(one.scale, 1 / deviation, rtol=1e-12)
    [one] = load(path, scale="maxabs")
    np.testing.assert_array_equal(one.scale[[0, 1, 3]], 1 / np.abs(samples).max(axis=0)[[0, 1, 3]].astype(float))
    assert one.scale[2] == 1


@pytest.mark.parametrize("value", [0.1, 1e-30, 1e30, -7.3])
def test_constant_features_are_not_blown_up_by_rounding(value, tmp_path, write, load):
    path = write("npz", tmp_path, np.full((COUNT, 1), value), np.arange(COUNT) % 2)
    [one] = load(path, scale="standard")
    np.testing.assert_allclose(one.shift, value, rtol=1e-12)
    assert one.scale[0] == 1


def test_small_spread_around_a_large_mean_is_not_taken_for_constant(tmp_path, write, load):
    samples = 1e6 + np.arange(100.0)[:, None] * 1e-3
    [one] = load(write("npz", tmp_path, samples, np.arange(100) % 2), scale="standard")
    np.testing.assert_allclose(one.scale, 1 / samples.std(axis=0), rtol=1e-6)


def test_more_features_than_are_gathered_at_once(tmp_path, load, monkeypatch):
    monkeypatch.setattr("hpcps.data.scaling.GATHERED_COLUMNS", 3)
    [alone] = load("digits", scale="standard")
    monkeypatch.setattr("hpcps.data.scaling.GATHERED_COLUMNS", 1000)
    for one in load("digits", 3, scale="standard"):
        assert one.scale.tobytes() == alone.scale.tobytes()
        assert one.shift.tobytes() == alone.shift.tobytes()


def test_held_out_samples_do_not_count(tmp_path, load):
    np.savez(
        tmp_path / "a.npz",
        x_train=np.array([[1.0], [3.0]]),
        y_train=[0, 1],
        x_test=np.array([[99.0], [100.0]]),
        y_test=[0, 1],
    )
    [one] = load(tmp_path / "a.npz", scale="standard")
    np.testing.assert_array_equal([one.shift, one.scale], [[2], [1]])
