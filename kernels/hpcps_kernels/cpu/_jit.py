"""Every compiler option, and compiled code on disk, shared by all ranks of a machine.

Numba's own cache keeps one index a function, which two processes may overwrite for each other. Here each
compiled signature is one file, put in place by a rename, so that no reader sees half of it; its first line is
a checksum. A file lock makes the processes that start together compile each kernel once.
"""

from __future__ import annotations

import fcntl
import functools
import os
import pickle
import time
import uuid
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import CompileResult
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

from hpcps_kernels.cache import cache_folder

Function = Callable[..., Any]

# No fastmath, nowhere: floating point is computed as it is written, so that a nan reaches the loss, an update
# gives the same bits for any slice, and the order of a sum does not depend on the compiler. Where sums are to
# be fast, their order is written out (_tiles.py).
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}

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
        path = self._path(signature, target.codegen())
        found = _read(path, target)
        if found is None:
            self._lock = _locked(path.with_suffix(".lock"))
            found = _read(path, target)
            if found is not None:
                self._unlock()
            else:
                target.refresh()  # all that compiling needs, and 0.3 s; running compiled code does without
        return found

    def save_overload(self, signature: Any, result: Any) -> None:
        try:
            if not result.library.has_dynamic_globals:
                payload = dumps(result._reduce())  # type: ignore[no-untyped-call]
                _write(self._path(signature, result.codegen), payload)
        except OSError:
            pass  # a full or vanished disk costs the next process a compilation, and this one nothing
        finally:
            self._unlock()

    def flush(self) -> None: ...

    def _path(self, signature: Any, codegen: Any) -> Path:
        key = sha256(repr((str(signature), codegen.magic_tuple())).encode()).hexdigest()[:16]
        return self.cache_path / f"{self.name}-{key}.nbc"

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _read(path: Path, target: Any) -> Any:
    try:
        checksum, _, payload = path.read_bytes().partition(b"\n")
        if checksum != sha256(payload).hexdigest().encode():
            return None
        return CompileResult._rebuild(target, *pickle.loads(payload))  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        return None
    except Exception:  # damaged or foreign: as good as not there, and compiling writes it anew
        return None


def _write(path: Path, payload: bytes) -> None:
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
    unfinished.write_bytes(sha256(payload).hexdigest().encode() + b"\n" + payload)
    unfinished.replace(path)


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
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(LOCK_POLL_S)
                continue
        except OSError:
            pass
        os.close(file)
        return -1
