"""Which hosts the ranks of ``--ranks N`` are started on, and how a launcher is told."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hpcps.errors import ConfigError

SCONTROL_TIMEOUT_S = 60
_HOST = re.compile(r"([\w.-]+)(?::(\d+)|\s+slots\s*=\s*(\d+))?")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


class Host(NamedTuple):
    """A host, and how many ranks it has room for."""

    name: str
    slots: int


def named(text: str, ranks: int) -> list[Host]:
    """The hosts of ``run.hosts``: ``a,b:2``, or the name of a file with one on a line, as ``b:2`` or ``b slots=2``, and
    comments after #. Where none has slots, each has room for its share of ``ranks``. Raises ConfigError.

    >>> named("a,b:2", 3)
    [Host(name='a', slots=1), Host(name='b', slots=2)]
    >>> named("a,b", 3)
    [Host(name='a', slots=2), Host(name='b', slots=2)]
    """
    found: dict[str, int] = {}
    for entry in _entries(text):
        match = _HOST.fullmatch(entry)
        if match is None or not entry.isascii() or match[2] == "0" or match[3] == "0":
            raise ConfigError(f"run.hosts: {entry!r} is no host; use NAME or NAME:SLOTS, with commas between them")
        found[match[1]] = found.get(match[1], 0) + int(match[2] or match[3] or 0)
    if not found:
        raise ConfigError(f"run.hosts = {text!r}: names no host")
    share = 1 if any(found.values()) else -(-ranks // len(found))
    hosts = [Host(name, slots or share) for name, slots in found.items()]
    if room(hosts) < ranks:
        raise ConfigError(f"run.hosts = {text!r} has room for {room(hosts)} ranks, not for {ranks}; give more slots")
    return hosts


def of_slurm(environment: Mapping[str, str], ranks: int) -> list[Host]:
    """The nodes of the Slurm allocation that this process is in; none if it is in none, or in one of a single node.
    Raises ConfigError where Slurm does not tell them."""
    if int(environment.get("SLURM_JOB_NUM_NODES", "1")) < 2:
        return []
    try:
        told = subprocess.run(
            ["scontrol", "show", "hostnames", environment.get("SLURM_JOB_NODELIST", "")],
            env=dict(environment), capture_output=True, text=True, timeout=SCONTROL_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"the nodes of the allocation are not known: scontrol show hostnames: {error}") from error
    names = told.stdout.split()
    tasks = slots_of_slurm(environment.get("SLURM_TASKS_PER_NODE", ""))
    share = -(-ranks // max(1, len(names)))
    slots = tasks if len(tasks) == len(names) and sum(tasks) >= ranks else [share] * len(names)
    return [Host(name, count) for name, count in zip(names, slots, strict=True)]


def slots_of_slurm(text: str) -> list[int]:
    """Slurm's own count of tasks a node.

    >>> slots_of_slurm("2(x3),1")
    [2, 2, 2, 1]
    """
    return [int(count) for count, times in _TASKS.findall(text) for _ in range(int(times or 1))]


def room(hosts: Sequence[Host]) -> int:
    """For how many ranks there is room."""
    return sum(host.slots for host in hosts)


def words(hosts: Sequence[Host], is_open_mpi: bool) -> list[str]:
    """What mpiexec is told of them; nothing where there are none, so that it takes those that it finds itself."""
    return (
        ["--host" if is_open_mpi else "-hosts", ",".join(f"{name}:{slots}" for name, slots in hosts)] if hosts else []
    )


def _entries(text: str) -> list[str]:
    """The hosts as they are written."""
    if "," not in text and Path(text).is_file():
        try:
            lines = Path(text).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"run.hosts: {text}: cannot be read: {error}") from error
    else:
        lines = text.split(",")
    return [entry for line in lines if (entry := line.partition("#")[0].strip())]
