"""Every compiler option, and compiled code on disk, shared by all ranks of a machine.

Numba's own cache keeps one index a function, which two processes may overwrite for each other. Here each
compiled signature has files of its own, put in place by renames, so that no reader sees half of one, and a checksum.
A file lock makes the processes that start together compile each kernel once.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import time
import uuid
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile
from numba.core.compiler import CompileResult
from numba.core.runtime.nrt import rtsys

from hpcps_kernels.cache import cache_folder

Function = Callable[..., Any]

# No fastmath, nowhere: floating point is computed as it is written, so that a nan reaches the loss, an update
# gives the same bits for any slice, and the order of a sum does not depend on the compiler. Where sums are to
# be fast, their order is written out (_tiles.py).
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}

SOURCE_STAMP = KEY = "1"  # the folder's name already tells sources, the files' names tell signatures

LOCK_TIMEOUT_S = 60.0
LOCK_POLL_S = 0.02

KERNELS: dict[str, Any] = {}  # every compiled entry point by name, for whoever wants to look at them all


def kernel(function: Function) -> Function:
    """Compile on the first call with each signature; kept on disk."""
    dispatcher = numba.njit(**OPTIONS)(function)
    folder = _folder()
    if folder is not None:
        dispatcher._cache = CodeOnDisk(function.__name__, folder)
    KERNELS[function.__name__] = dispatcher
    compiled: Function = dispatcher
    return compiled


def part(function: Function) -> Function:
    """A function that kernels call; compiled as part of them."""
    compiled: Function = numba.njit(**OPTIONS)(function)
    return compiled


def inlined(function: Function) -> Function:
    """A part for inner loops: its source is copied to where it is called.

    A call counts references to every array that it passes, and so does a slice that is given a name, at some 20 cycles
    each. Parts for a few entries take whole arrays and unsigned bounds, which need no check for numbers from the end.
    """
    compiled: Function = numba.njit(**OPTIONS, inline="always")(function)
    return compiled


@functools.cache
def _folder() -> Path | None:
    return cache_folder().folder


class CodeOnDisk:
    """The compiled signatures of one kernel, in the place of Numba's cache; called under Numba's lock."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.cache_path = name, folder
        self._lock = -1

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled signature, waiting where another process is at it; None says to compile it."""
        self._unlock()
        rtsys.initialize(target)
        stored = _Stored(self.cache_path, self._base(signature, target.codegen()))
        found = stored.read(target)
        if found is None:
            self._lock = _locked(self.cache_path / f"{stored.base}.lock")
            found = stored.read(target)
            if found is not None:
                self._unlock()
            else:
                target.refresh()  # all that compiling needs, and 0.3 s; running compiled code does without
        return found

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep it; a full or vanished disk costs the next process a compilation, and this one nothing."""
        if not result.library.has_dynamic_globals:
            stored = _Stored(self.cache_path, self._base(signature, result.codegen))
            with contextlib.suppress(OSError):
                stored.write(result)
        self._unlock()

    def flush(self) -> None: ...

    def _base(self, signature: Any, codegen: Any) -> str:
        key = sha256(repr((str(signature), codegen.magic_tuple())).encode()).hexdigest()[:16]
        return f"{self.name}-{key}"

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class _Stored:
    """One compiled signature in files of its own, written and read by Numba, with a checksum beside it."""

    def __init__(self, folder: Path, base: str) -> None:
        self.base = base
        self._file = IndexDataCacheFile(str(folder), base, SOURCE_STAMP)  # type: ignore[no-untyped-call]
        self._code = folder / f"{base}.1.nbc"  # the name that Numba gives an index's first entry
        self._checksum = folder / f"{base}.sha256"

    def read(self, target: Any) -> Any:
        """The compiled code; None where there is none, or what there is is damaged or foreign."""
        try:
            if self._checksum.read_bytes() != _digest(self._code):
                return None
            parts = self._file.load(KEY)  # type: ignore[no-untyped-call]
            return CompileResult._rebuild(target, *parts)  # type: ignore[no-untyped-call]
        except Exception:  # as good as not there: it is compiled and written anew
            return None

    def write(self, result: Any) -> None:
        self._file.save(KEY, result._reduce())  # type: ignore[no-untyped-call]
        unfinished = self._checksum.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_bytes(_digest(self._code))
        unfinished.replace(self._checksum)


def _digest(path: Path) -> bytes:
    return sha256(path.read_bytes()).hexdigest().encode()


def _locked(path: Path) -> int:
    """An open file that holds the lock until closed; -1 where locks do not work or none comes in time."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return -1
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() > deadline:
                os.close(file)
                return -1
            time.sleep(LOCK_POLL_S)
