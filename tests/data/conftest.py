"""Ranks as threads, stand-in options, and files of every format, for the tests of hpcps.data."""

from __future__ import annotations

import gzip
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpcps.data as data
from hpcps.errors import HpcpsError

TIMEOUT_S = 60
IDX_CODES = {"|u1": 0x08, "|i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


@dataclass(frozen=True)
class Options:
    path: str
    format: str = "auto"
    labels: str = ""
    test: str = ""
    test_fraction: float = 0.0
    scale: str = "none"
    label_column: str = "auto"
    features: int = 0
    zero_based: bool = False
    window: int = 0
    hash_bits: int = 0


@dataclass
class Meeting:
    """What the threads of one job share."""

    size: int
    barrier: threading.Barrier = field(init=False)
    slots: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=TIMEOUT_S)
        self.slots = [None] * self.size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        told = list(self.slots)
        self.barrier.wait()
        return told


@dataclass(frozen=True)
class Rank:
    rank: int
    meeting: Meeting

    @property
    def size(self) -> int:
        return self.meeting.size

    def once(self, make: Callable[[], np.ndarray]) -> np.ndarray:
        value: Any = None
        if self.rank == 0:
            try:
                value = make()
            except HpcpsError as error:
                value = error
        told = self.meeting.exchange(self.rank, value)[0]
        if isinstance(told, HpcpsError):
            raise type(told)(str(told))
        return told.copy()

    def gather(self, values: np.ndarray) -> np.ndarray:
        told = self.meeting.exchange(self.rank, values.copy())
        assert all(part.ndim == 1 and part.dtype == values.dtype for part in told)
        return np.concatenate(told)


def even_cut(blocks: int) -> Callable[[int], Sequence[int]]:
    return lambda n: [n * i // blocks for i in range(blocks + 1)]


def run_ranks(size: int, work: Callable[[Rank], Any]) -> list[Any]:
    """Run work on every rank; if ranks raise, all must raise the same, which is then raised here."""
    meeting = Meeting(size)
    outcomes: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(Rank(rank, meeting))
        except BaseException as error:
            outcomes[rank] = error
            if not isinstance(error, HpcpsError):
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = [o for o in outcomes if isinstance(o, BaseException)]
    for error in broken:
        if not isinstance(error, HpcpsError | threading.BrokenBarrierError):
            raise error
    if broken:
        assert len(broken) == size
        assert len({(type(error), str(error)) for error in broken}) == 1
        raise broken[0]
    return outcomes


@pytest.fixture(scope="session")
def together() -> Callable[..., list[Any]]:
    return run_ranks


@pytest.fixture(scope="session")
def load() -> Callable[..., list[data.Dataset]]:
    """Load on some ranks; gives the data set as each rank has it."""

    def load_on(
        path: Any,
        ranks: int = 1,
        blocks: int = 4,
        task: str = "multiclass",
        seed: int = 0,
        min_train: int = 1,
        **options: Any,
    ) -> list[data.Dataset]:
        cut, section = even_cut(blocks), Options(str(path), **options)

        def work(rank: Rank) -> data.Dataset:
            owned = range(blocks * rank.rank // ranks, blocks * (rank.rank + 1) // ranks)
            return data.load_data(
                section,
                task=task,  # type: ignore[arg-type]
                cut=cut,
                owned=owned,
                cut_test=cut,
                owned_test=owned,
                together=rank,
                seed=seed,
                min_train=min_train,
            )

        return run_ranks(ranks, work)

    return load_on


@pytest.fixture(scope="session")
def options() -> type[Options]:
    return Options


def dense(samples: Any) -> np.ndarray:
    if not isinstance(samples, data.Csr):
        return samples
    out = np.zeros((len(samples), samples.features), np.float32)
    rows = np.repeat(np.arange(len(samples)), np.diff(samples.indptr))
    out[rows, samples.indices] = samples.values
    return out


@pytest.fixture(scope="session")
def joined() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """All samples and labels of a part, block after block, over all ranks."""

    def join(ranks: list[data.Dataset], part: str = "train") -> tuple[np.ndarray, np.ndarray]:
        blocks = [block for rank in ranks for block in getattr(rank, part).values()]
        return np.concatenate([dense(b.samples) for b in blocks]), np.concatenate([b.labels for b in blocks])

    return join


def write_idx(path: Path, array: np.ndarray, packed: bool = False) -> None:
    stored = array.astype(array.dtype.newbyteorder(">"))
    code = IDX_CODES[stored.dtype.str]
    content = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + stored.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def write_csv(path: Path, samples: np.ndarray, labels: np.ndarray, mark: str = ",", header: str = "") -> None:
    lines = [header] if header else []
    lines += [mark.join(f"{x:.9g}" for x in [*row, label]) for row, label in zip(samples, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def write_libsvm(path: Path, samples: np.ndarray, labels: np.ndarray) -> None:
    with path.open("w") as file:
        for row, label in zip(samples, labels, strict=True):
            entries = " ".join(f"{i + 1}:{row[i]:.9g}" for i in np.flatnonzero(row))
            file.write(f"{label:g} {entries}\n")


@pytest.fixture(scope="session")
def write() -> Callable[[str, Path, np.ndarray, np.ndarray], Path]:
    """Write samples and labels in a format; gives the path to load."""

    def write_as(kind: str, folder: Path, samples: np.ndarray, labels: np.ndarray) -> Path:
        if kind in ("idx", "idx.gz"):
            packed = kind == "idx.gz"
            end = ".gz" if packed else ""
            write_idx(folder / f"some-images-idx2-ubyte{end}", samples, packed)
            write_idx(folder / f"some-labels-idx1-ubyte{end}", labels.astype(np.uint8), packed)
            return folder / f"some-images-idx2-ubyte{end}"
        path = folder / {"npz packed": "packed.npz"}.get(kind, f"some.{kind}")
        if kind == "npy":
            np.save(path, samples)
            np.save(folder / "some_labels.npy", labels)
        elif kind == "npz":
            np.savez(path, samples=samples, labels=labels)
        elif kind == "npz packed":
            np.savez_compressed(path, samples=samples, labels=labels)
        elif kind in ("csv", "tsv"):
            write_csv(path, samples, labels, "\t" if kind == "tsv" else ",")
        else:
            write_libsvm(path, samples, labels)
        return path

    return write_as
