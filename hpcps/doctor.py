"""``hpcps doctor``: what hpcps runs on, and what will hurt."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

import hpcps_kernels
from hpcps_kernels.gpu import found

from hpcps import launch, machine
from hpcps.comm import launcher
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Transport
from hpcps.errors import ConfigError
from hpcps.machine import Seat

ALONE = "the others go on"
PACKAGES = ("hpcps", "numpy", "numba", "mpi4py", "msgspec", "safetensors")


def run() -> int:
    """Print the findings, on the first rank. Returns 0, also if there are warnings."""
    transport = launch.world()
    together = Meeting(transport)
    seats = machine.seats(together, transport.node)
    if transport.rank == 0:
        lines = [*software(), *mpi(transport), *ranks(seats), gpu(), cache()]
        for label, text in lines:
            print(f"{label:<12}{text}")
        for warning in warnings(seats):
            print(f"warning: {warning}")
        sys.stdout.flush()
    transport.barrier()
    return 0


def software() -> list[tuple[str, str]]:
    """Versions."""
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    return [("system", system), ("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES))]


def mpi(transport: Transport) -> list[tuple[str, str]]:
    """The MPI library and its thread level, without starting MPI where no launcher has."""
    told = launcher.launched(os.environ)
    if launch.mpi_is_running():
        from hpcps.comm import mpi as over_mpi

        text = f"{over_mpi.library_name()}, thread level {over_mpi.thread_level()}"
        goes_on = launcher.survives(os.environ)
        dead = f"with run.survive {ALONE}" if goes_on else "ends the job; hpcps train --ranks N --survive starts others"
        return [("MPI", text), ("launcher", told.name if told else "none"), ("dead rank", dead)]
    text, dead = _mpi_at_rest()
    return [("MPI", text), ("launcher", "none: --ranks N starts ranks"), ("dead rank", f"with --survive {dead}")]


def ranks(seats: Sequence[Seat]) -> list[tuple[str, str]]:
    """Ranks, nodes, and the cores of each rank."""
    lines = [("ranks", f"{len(seats)} on {machine.nodes(seats)} node(s)")]
    for seat in seats[:16]:
        threads = machine.threads(seats, seat.rank)
        cores = ",".join(map(str, seat.cores))
        lines.append((f"  rank {seat.rank}", f"{seat.node}, may use cores {cores}: {threads} thread(s)"))
    if len(seats) > 16:
        lines.append(("", f"and {len(seats) - 16} more"))
    return lines


def gpu() -> tuple[str, str]:
    """The GPUs, driver and CuPy, or why ranks cannot train on one."""
    here = found.look()
    return "GPU", here.line() + ("" if here.obstacle else "; run.device = 'cuda' trains on them")


def cache() -> tuple[str, str]:
    """Where compiled kernels are kept."""
    kept = hpcps_kernels.cache_folder()
    if kept.folder is None:
        return "JIT cache", f"none ({kept.reason})"
    return "JIT cache", f"{kept.folder}" + (f" (not {kept.reason})" if kept.reason else "")


def warnings(seats: Sequence[Seat]) -> list[str]:
    """What will hurt."""
    told = []
    for node in sorted({seat.node for seat in seats}):
        sharing = [seat for seat in seats if seat.node == node and machine.crowded(seats, seat.rank)]
        if sharing:
            cores = len({core for seat in sharing for core in seat.cores})
            text = f"{len(sharing)} ranks share {cores} core(s) of {node}: start fewer, or bind them apart"
            told.append(text)
    if hpcps_kernels.cache_folder().folder is None:
        told.append("kernels are compiled anew in every process; set HPCPS_CACHE_DIR to a folder that can be written")
    return told


def _mpi_at_rest() -> tuple[str, str]:
    """The library, and what becomes of a job whose rank dies."""
    from hpcps import starter

    try:
        library = starter.find()
    except ConfigError as error:
        return str(error), ALONE
    if library is None:
        return "none: ranks run as threads of one process", ALONE
    text = f"{library.library}, thread level {_thread_level()}, started by {library.program}"
    return text, f"{ALONE}, and a lost job is started again" if library.goes_on else "the job is started again"


def _thread_level() -> str:
    """What MPI grants, asked of another process: to start MPI here would make this one a rank."""
    code = "from hpcps.comm import mpi; mpi.world(); print(mpi.thread_level())"
    try:
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "unknown (MPI did not start within 60 s)"
    return told.stdout.strip() or "unknown (MPI does not start in a single process)"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
