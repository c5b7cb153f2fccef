"""Shared memory in huge pages: what is in it, when it goes away, and what is done where there are none."""

import errno
import gc
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcps.comm import pages
from hpcps.comm.memory import ProcessMemory
from hpcps.server.growing import GrowingRows

HUGE = pages.HUGE_BYTES
needs_huge = pytest.mark.skipif(not HUGE, reason="the kernel has no huge pages of a size that is used")


@pytest.fixture
def file():
    found = os.memfd_create("hpcps-test-pages")
    os.truncate(found, 8 << 20)
    yield found
    os.close(found)


def mappings(file):
    inode = str(os.fstat(file).st_ino)
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.split()[4] == inode]


def huge_bytes(array):
    """How much of what is mapped from where the array begins is in huge pages."""
    entry = Path("/proc/self/smaps").read_text().partition(f"\n{array.ctypes.data:x}-")[2]
    return int(re.search(r"ShmemPmdMapped: +(\d+) kB", entry)[1]) << 10


def have_huge_pages(array, start, stop):
    """Have it in huge pages; skip the test where the kernel makes none."""
    pages.make_huge(array, start, stop)
    if not huge_bytes(array):
        pytest.skip("the kernel makes no huge pages of shared memory (Linux before 6.1, or it has none left)")


@needs_huge
def test_memory_begins_at_a_huge_page_and_stays_for_as_long_as_a_view_of_it(file):
    array = pages.map_shared(file, 8 << 20)
    assert array.ctypes.data % HUGE == 0
    assert (array.shape, array.dtype) == ((8 << 20,), np.uint8)
    view = array[100:200]
    del array
    gc.collect()
    view[:] = 7
    assert os.pread(file, 3, 99) == b"\0\7\7"
    assert len(mappings(file)) == 1
    del view
    gc.collect()
    assert not mappings(file)


@needs_huge
def test_huge_pages_are_made_of_what_is_there_and_seen_by_others(file):
    array, other = pages.map_shared(file, 8 << 20), pages.map_shared(file, 8 << 20)
    numbers = np.random.default_rng(0).integers(0, 256, 3 * HUGE, dtype=np.uint8)
    array[: 3 * HUGE] = numbers
    have_huge_pages(array, HUGE - 4096, 3 * HUGE + 4096)  # of which two are whole
    assert huge_bytes(array) == 2 * HUGE
    assert np.array_equal(array[: 3 * HUGE], numbers)
    assert np.array_equal(other[: 3 * HUGE], numbers)
    assert huge_bytes(other) == 2 * HUGE
    other[2 * HUGE] ^= 255
    assert array[2 * HUGE] == numbers[2 * HUGE] ^ 255


def test_where_the_kernel_makes_none_small_pages_are_used(file, monkeypatch):
    asked, advise = [], pages._advise

    def refuse(memory, advice, start, stop):
        if advice == pages._MADV_COLLAPSE:
            asked.append((start, stop))
            raise OSError(errno.EINVAL, "Invalid argument")
        advise(memory, advice, start, stop)

    monkeypatch.setattr(pages, "_advise", refuse)
    array = pages.map_shared(file, 8 << 20)
    pages.make_huge(array, 0, 8 << 20)
    pages.take(array, 0, 8 << 20)
    assert asked == ([(0, 8 << 20)] if HUGE else [])
    assert not array.any()
    assert os.fstat(file).st_blocks * 512 >= 8 << 20  # all is taken


def test_where_there_are_no_huge_pages_none_are_asked_for(file, monkeypatch):
    monkeypatch.setattr(pages, "HUGE_BYTES", 0)
    array = pages.map_shared(file, 8 << 20)
    array[5] = 1
    pages.make_huge(array, 0, 8 << 20)
    assert os.pread(file, 1, 5) == b"\1"
    assert os.fstat(file).st_blocks * 512 < 1 << 20


def test_what_is_still_used_when_the_interpreter_ends_is_there():
    """Finalizers may run before the last use of an array."""
    program = """
import atexit, os
arrays = []
atexit.register(lambda: (arrays[0].fill(1), print("was there")))
from hpcps.comm import pages
file = os.memfd_create("hpcps-test-pages")
os.truncate(file, 8 << 20)
arrays.append(pages.map_shared(file, 8 << 20))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "was there\n")


def test_what_cannot_be_mapped_is_an_error_and_leaves_nothing(file):
    reader = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    before = len(Path("/proc/self/maps").read_text().splitlines())
    with pytest.raises(OSError, match="Permission denied"):
        pages.map_shared(reader, 8 << 20)
    os.close(reader)
    assert len(Path("/proc/self/maps").read_text().splitlines()) == before


@needs_huge
def test_where_no_page_can_be_taken_none_is_made_huge(file, monkeypatch):
    """To touch it would be the end of the process."""
    asked = []

    def refuse(memory, advice, start, stop):
        asked.append((advice, start, stop))
        raise OSError(errno.EFAULT, "Bad address")

    monkeypatch.setattr(pages, "_advise", refuse)
    pages.make_huge(pages.map_shared(file, 8 << 20), 0, 8 << 20)
    assert asked == [(pages._MADV_POPULATE_WRITE, 0, mmap.PAGESIZE)]
    assert os.fstat(file).st_blocks == 0


@needs_huge
def test_rows_that_others_see_grow_and_shrink_in_huge_pages(on_ranks, file):
    def body(transport):
        memory = ProcessMemory(transport)
        rows = GrowingRows(1024, np.float32, memory)
        seen = memory.borrow(rows.ticket).view(np.float32).reshape(-1, 1024)
        per_page = HUGE // rows.row_bytes
        many = 2 * per_page + 1
        for count in (1, per_page - 1, per_page, per_page + 1, many):
            rows.take(count)
            rows.array[count - 1] = count
        have_huge_pages(rows.array, 0, 0)
        assert huge_bytes(rows.array) == 3 * HUGE
        for count in (1, per_page - 1, per_page, per_page + 1, many):
            assert (seen[count - 1] == count).all()
        rows.give_back(per_page + 1)
        assert (seen[per_page] == per_page + 1).all()
        assert not seen[per_page + 1 : many].any()  # it went back to the system
        rows.take(many)
        rows.array[per_page + 1 : many] = 3
        assert (seen[per_page + 1 : many] == 3).all()
        assert (seen[per_page] == per_page + 1).all()

    on_ranks(1, body)


@needs_huge
def test_memory_of_all_ranks_is_in_huge_pages(on_ranks):
    def body(transport):
        memory = ProcessMemory(transport)
        own = memory.empty(HUGE // 4 + 1, np.float32)
        assert not own.any()
        assert own.ctypes.data % HUGE == 0
        return memory.pieces(HUGE)

    pieces = on_ranks(2, body)[0]
    have_huge_pages(pieces[0], 0, 0)
    assert huge_bytes(pieces[0]) == 2 * HUGE
