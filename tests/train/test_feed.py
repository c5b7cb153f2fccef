"""Batches of several blocks: as few calls as possible, and the same samples in the same order."""

from itertools import pairwise

import hpcps_kernels
import numpy as np
import pytest

from hpcps import feed
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

    how = Loaders(Tables(Model, {"weight": np.zeros((3, 1))}, KERNELS), np.zeros(3), np.ones(3), "float32", KERNELS)
    found = feed.feeds(how, blocks(sparse=True), SIZES)
    assert [type(one) for one in found] == [feed.Single] * 3
    for one, size in zip(found, SIZES, strict=True):
        one.begin([np.arange(size * 2)])
        assert len(one.load(1).samples) == size
