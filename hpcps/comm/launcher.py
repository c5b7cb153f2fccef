"""What the launcher says of the job, from the environment alone: nothing is imported, nothing is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RANKS_VARIABLE = "HPCPS_LAUNCHED_RANKS"
"""Set by hpcps for the ranks that it starts itself."""

TERMINAL_VARIABLE = "HPCPS_TERMINAL"
"""Set by hpcps for the ranks that it starts itself: 1 if their output goes to a terminal, else 0."""

FORWARDED = "USR1"
"""The signal that hpcps hands on to the ranks that it starts itself, whichever has come: launchers forward this one."""

SURVIVORS_VARIABLE = "HPCPS_SURVIVOR"
"""Set by a rank of a job that has lost ranks: its number among those that are left."""

BEGINNING_VARIABLE = "HPCPS_BEGINNING_S"
"""Set by hpcps for ranks that may die without an end of the job."""

PLACE_VARIABLE = "HPCPS_PLACE"
"""Set by hpcps for such ranks: a folder in which those of its own machine tell it how far they are."""
MET, ENDING = "met", "ending"
"""What they tell: all ranks have met; this one ends, and the job with it."""

_ULFM = "OMPI_MCA_mpi_ft_enable"
"""Set by Open MPI's mpirun --with-ft ulfm"""
_DETECTOR = "OMPI_MCA_mpi_ft_detector"
"""Set by --mca mpi_ft_detector; names of its settings begin so."""
DETECTOR_SECONDS = {"period": 3.0, "timeout": 10.0}
"""Between two heartbeats, and until a rank counts as dead, where nobody says."""
_YES = ("1", "t", "true", "enabled", "yes", "y")

_PMI = ("mpiexec (PMI)", "PMI_RANK", "PMI_SIZE")  # MPICH's mpiexec, and srun --mpi=pmi2
_SRUN = ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
_VARIABLES = (  # name for people, rank, size
    ("mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    _PMI,
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    _SRUN,
)


@dataclass(frozen=True)
class Launched:
    """A job of ``size`` ranks of which this process is ``rank``, as the launcher ``name`` says."""

    name: str
    rank: int
    size: int


def launched(environment: Mapping[str, str]) -> Launched | None:
    """The launcher that started this process, or None. ``HPCPS_LAUNCHED_RANKS`` wins over the launcher's own size.

    >>> launched({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"})
    Launched(name='mpirun (Open MPI)', rank=1, size=4)
    """
    asked = environment.get(RANKS_VARIABLE, "")
    is_srun = all(environment.get(_SRUN[i]) == environment.get(_PMI[i]) for i in (1, 2))
    for name, rank, size in (_SRUN, *_VARIABLES) if is_srun else _VARIABLES:
        if environment.get(rank, "").isdigit() and environment.get(size, "").isdigit():
            if name == "srun" and environment[size] == "1" and not asked:
                return None  # the shell of srun --pty or salloc, or one task: nobody to meet
            return Launched(name, int(environment[rank]), int(asked or environment[size]))
    return Launched("hpcps --ranks", 0, int(asked)) if asked.isdigit() else None


def survives(environment: Mapping[str, str]) -> bool:
    """Whether the ranks of this job can go on when some of them die."""
    return environment.get(_ULFM) == "1"


def heartbeat_s(environment: Mapping[str, str]) -> float:
    """Between two heartbeats of this rank, in seconds; 0 where it sends none, or the library has a thread for them."""
    is_on = survives(environment) and environment.get(_DETECTOR, "").lower() in _YES
    if not is_on or environment.get(f"{_DETECTOR}_thread", "").lower() in _YES:
        return 0.0
    period_s, timeout_s = (
        float(environment.get(f"{_DETECTOR}_{name}", usual)) for name, usual in DETECTOR_SECONDS.items()
    )
    return period_s if period_s < timeout_s else timeout_s / 3


def speaks(environment: Mapping[str, str]) -> bool:
    """Whether this process speaks for the job: its first rank, or the first of those that are left."""
    told = launched(environment)
    return told is None or int(environment.get(SURVIVORS_VARIABLE, told.rank)) == 0


def tell(environment: Mapping[str, str], what: str, status: int = 0) -> None:
    """Tell the hpcps that has started this rank, if it is on this machine, ``what`` (MET or ENDING)."""
    place = environment.get(PLACE_VARIABLE, "")
    if place and Path(place).is_dir():
        Path(place, what).write_text(str(status), encoding="ascii")


def told_status(place: Path) -> int | None:
    """With which status a rank of this machine has wished to end the job; None where none has."""
    try:
        return int((place / ENDING).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def beginning_s(environment: Mapping[str, str]) -> float:
    """After how many seconds a rank ends that waits for the others' start; 0: never."""
    return float(environment.get(BEGINNING_VARIABLE, 0))


def library_name(version: str) -> str:
    """The MPI library and its version in a few words, from its own long text.

    >>> library_name("Open MPI v5.0.8, package: Open MPI root@x")
    'Open MPI v5.0.8'
    >>> library_name("MPICH Version:      5.0.2\\nMPICH Release date: ...")
    'MPICH 5.0.2'
    """
    first = version.replace("\x00", "").split("\n")[0].split(",")[0]
    return " ".join(first.replace("Version:", "").split())
