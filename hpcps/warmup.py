"""Fills the cache of compiled kernels, so that the ranks of a job do not wait for the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import hpcps_kernels

from hpcps.errors import ConfigError, HpcpsError

TIMEOUT_S = 1800.0


def run(dtypes: Sequence[str]) -> str:
    """Compile every CPU kernel for parameters of these dtypes, on all cores that this process may use.

    Returns what was done, in one line. Raises ConfigError where nothing can be kept, HpcpsError if it fails.
    """
    found = hpcps_kernels.cache_folder()
    if found.folder is None:
        raise ConfigError(f"compiled kernels cannot be kept: {found.reason}; set HPCPS_CACHE_DIR to a folder of yours")
    started = time.perf_counter()
    names = sorted(hpcps_kernels.SPECS)
    workers = len(os.sched_getaffinity(0))
    processes = [_start(dtype, names[worker::workers]) for dtype in dtypes for worker in range(workers)]
    try:
        compiled = sum(_finish(process) for process in processes)
    finally:
        for process in processes:
            process.kill()  # the others, where one has failed
    seconds = time.perf_counter() - started
    return f"{len(names)} kernels for {', '.join(dtypes)}: {compiled} compiled in {seconds:.1f} s, in {found.folder}"


def _start(dtype: str, names: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpcps_kernels.warmup", dtype, *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> int:
    """The number of signatures that the process compiled."""
    try:
        told, complaint = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise HpcpsError(f"compiling the kernels took longer than {TIMEOUT_S:g} s") from None
    if process.returncode != 0:
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        raise HpcpsError(f"compiling the kernels failed (status {process.returncode}): {last}")
    return int(told)
