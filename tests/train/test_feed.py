"""Batches of several blocks: as few calls as possible, and the same samples in the same order."""

from itertools import pairwise

import hpcps_kernels
import numpy as np
import pytest

from hpcps import feed
from hpcps.aligned import LINE_BYTES
from hpcps.data import Block, Csr, joined
from hpcps.data.blocks import Place, Places
from hpcps.loader import Loaders
from hpcps.tables import Tables

KERNELS = hpcps_kernels.load("cpu")
COUNTS, SIZES = (20, 23, 31), (4, 5, 6)


class NoTables:
    names = ()


def loaders():
    return Loaders(NoTables, np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 1.0]), "float32", KERNELS)


def blocks(copy=False, sparse=False):
    rng = np.random.default_rng(1)
    samples, labels = rng.integers(0, 100, (sum(COUNTS) + 9, 3)).astype(np.uint8), rng.integers(0, 10, sum(COUNTS) + 9)
    places = Places((Place("data", "data", "sample", range(len(labels))),))
    bounds = np.cumsum([9, *COUNTS]).tolist()
    found = []
    for low, high in pairwise(bounds):
        rows = samples[low:high].copy() if copy else samples[low:high]
        if sparse:
            indptr, columns = np.arange(high - low + 1) * 3, np.tile(np.arange(3, dtype=np.int32), high - low)
            rows = Csr(indptr, columns, rows.reshape(-1).astype(np.float32), 3)
        found.append(Block(rows, labels[low:high], places, low))
    return found


@pytest.mark.parametrize("how", [{}, {"copy": True}, {"sparse": True}], ids=str)
def test_samples_come_in_the_blocks_orders_one_block_after_the_other(how):
    chosen, plain = blocks(**how), blocks()
    assert (joined(chosen) is None) == bool(how)
    (one,) = feed.feeds(loaders(), chosen, SIZES)
    for epoch in range(2):
        orders = [np.random.default_rng(epoch).permutation(count) for count in COUNTS]
        one.begin(orders)
        for number in (0, 1, 3, 2):
            batch = one.load(number)
            visits = [order[number * size : (number + 1) * size] for order, size in zip(orders, SIZES, strict=True)]
            rows = np.concatenate([block.samples[own] for block, own in zip(plain, visits, strict=True)])
            labels = np.concatenate([block.labels[own] for block, own in zip(plain, visits, strict=True)])
            assert np.array_equal(batch.samples, (rows - np.float32([1, 2, 3])) * np.float32([0.5, 2, 1]))
            assert np.array_equal(batch.labels, labels)


@pytest.mark.parametrize("how", [{}, {"copy": True}, {"sparse": True}], ids=str)
def test_batches_of_dense_samples_are_written_to_the_same_arrays_at_a_cache_line(how):
    for chosen, sizes in ((blocks(**how), SIZES), (blocks(**how)[:1], SIZES[:1])):
        (one,) = feed.feeds(loaders(), chosen, sizes)
        one.begin([np.arange(len(block)) for block in chosen])
        first = one.load(0)
        samples, labels = first.samples.copy(), first.labels.copy()
        assert one.load(1) is first
        assert (first.samples != samples).any()
        assert (first.labels != labels).any()
        assert one.load(0) is first
        assert np.array_equal(first.samples, samples)
        assert first.samples.ctypes.data % LINE_BYTES == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_come_in_the_training_dtype_and_classes_as_they_are(dtype):
    chosen = blocks()[0]
    for labels in (chosen.labels, chosen.labels + 0.1):
        block = Block(chosen.samples, labels, chosen.places, chosen.first)
        loader = Loaders(NoTables, np.zeros(3), np.ones(3), dtype, KERNELS).of(block)
        for index in (np.array([3, 0, 19]), np.array([5, 5, 6]), np.arange(0)):
            found = loader.load(index).labels
            assert found.dtype == (dtype if labels.dtype == np.float64 else np.int64)
            assert np.array_equal(found, labels[index].astype(found.dtype))
        for bad in (-1, 20):
            with pytest.raises(IndexError):
                loader.load(np.array([bad, 0, 1]))


def test_blocks_are_joined_where_they_follow_each_other():
    whole = joined(blocks())
    assert whole is not None
    assert np.array_equal(whole.samples, np.concatenate([block.samples for block in blocks()]))
    assert np.array_equal(whole.labels, np.concatenate([block.labels for block in blocks()]))
    assert whole.where(21) == blocks()[1].where(1) == "data: sample 30"
    first, second, third = blocks()
    assert joined([first, third]) is None
    assert joined([second, first]) is None
    assert joined([first, blocks()[1]]) is None
    assert joined([second]) is second


def test_a_feed_a_block_where_the_model_has_tables():
    class Model:
        tables, fields = ("weight",), 1

    tables = Tables(Model, {"weight": (3, 1)}, "float32", None, KERNELS)
    how = Loaders(tables, np.zeros(3), np.ones(3), "float32", KERNELS)
    found = feed.feeds(how, blocks(sparse=True), SIZES)
    assert [type(one) for one in found] == [feed.Single] * 3
    for one, size in zip(found, SIZES, strict=True):
        one.begin([np.arange(size * 2)])
        assert len(one.load(1).samples) == size
