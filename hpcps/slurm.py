"""Slurm batch files: those of ``slurm/``, to be copied, and those that ``hpcps slurm`` writes for a configuration.

Both are put together from the same pieces: options for sbatch, what to train, the environment of a good job, the ranks,
and what is done when the time is nearly up. ``python -m hpcps.slurm FOLDER`` writes those to be copied.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcps import starter
from hpcps.config import Config, read
from hpcps.errors import ConfigError
from hpcps.job import choose_strategy, cut
from hpcps.server.sharding import roles

SUBMITTING_S = 60
WARNING_S = 120
"""A job is told so long before its time is up, to keep a checkpoint; where it has little time, a tenth of that."""
_PLAIN = re.compile(r"[\w.:,%/=+@-]+")
_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")
_HOURS = re.compile(r"(?:(\d+):(?=\d+:))?(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Resources:
    """What a job asks Slurm for; "" or 0 is not asked for. The words are sbatch's."""

    nodes: int = 1
    ntasks_per_node: int = 1
    cpus_per_task: int = 1
    time: str = "00:30:00"
    partition: str = ""
    account: str = ""
    gpus: str = ""
    gpus_per_node: str = ""
    array: str = ""

    def options(self, name: str, can_go_on: bool, survives: bool = False) -> str:
        """The lines for sbatch; of a job that ``can_go_on`` after it was stopped, more, and of one that ``survives``
        the loss of a node. Raises ConfigError for what could not stand there."""
        output = "%x-%A_%a.out" if self.array else "%x-%j.out"
        asked = {"job-name": name} | {key.replace("_", "-"): value for key, value in vars(self).items() if value}
        warning_s = min(WARNING_S, seconds(self.time) // 10)
        asked |= {"output": output} | ({"signal": f"B:USR1@{warning_s}", "open-mode": "append"} if can_go_on else {})
        for key, value in asked.items():
            if not _PLAIN.fullmatch(str(value)):
                raise ConfigError(f"--{key}: {str(value)!r} cannot be handed to sbatch")
        lines = [f"#SBATCH --{key}={value}" for key, value in asked.items()]
        lines += ["#SBATCH --requeue"] if can_go_on else []
        return "\n".join([*lines, *(["#SBATCH --no-kill"] if survives else [])])


def seconds(time: str) -> int:
    """The seconds of a time as Slurm has it: minutes, minutes:seconds, hours:minutes:seconds, days-hours, and so on.
    Raises ConfigError.

    >>> [seconds(time) for time in ("90", "2:30", "1:00:00", "2-12", "1-0:30")]
    [5400, 150, 3600, 216000, 88200]
    """
    days, hours = _DAYS.fullmatch(time), _HOURS.fullmatch(time)
    found = days or hours
    if found is None or not (parts := [int(part or 0) for part in found.groups()]) or not any(parts):
        raise ConfigError(f"--time: {time!r} is no time; use minutes, hours:minutes:seconds or days-hours")
    return sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1) if days else (3600, 60, 1), strict=True))


@dataclass(frozen=True)
class Script:
    """A batch file. ``takes``: its arguments; ``begin`` sets $config and $out, and leaves hpcps's words in "$@".
    ``path`` finds hpcps; ``ranks`` are more words for srun; ``settings`` come before those of "$@", which win.
    ``survives``: hpcps starts the ranks, not srun, which ends all with one."""

    name: str
    about: str
    takes: str
    begin: str
    resources: Resources
    hint: str = ""
    path: str = ""
    mpi: str = "${HPCPS_MPI:-pmix}"
    ranks: str = ""
    settings: str = ""
    body: str = ""
    survives: bool = False

    def text(self) -> str:
        """The whole file. Raises ConfigError."""
        options = self.resources.options(self.name, can_go_on=not self.body, survives=self.survives)
        if self.hint:
            options = options.replace("#SBATCH --ntasks-per-node", f"# {self.hint}\n#SBATCH --ntasks-per-node")
        pieces = {"body": self.body or (_SURVIVE if self.survives else _TRAIN), "path": self.path or _ACTIVATE}
        by_srun = {"pmi": _PMI, "cores": _CORES, "srun": _SRUN}
        pieces |= {"wait": _WAIT} | (dict.fromkeys(by_srun, "") if self.survives else by_srun)
        filled = _FILE
        for word, text in pieces.items():
            filled = filled.replace(f"@{word}@", text)
        words = {"about": self.about, "name": self.takes, "options": options, "begin": self.begin, "mpi": self.mpi}
        words |= {"ranks": f" {self.ranks}" if self.ranks else "", "set": f" {self.settings}" if self.settings else ""}
        words["threads"] = _ON_GPUS if self.resources.gpus or self.resources.gpus_per_node else _ON_CORES
        for word, text in words.items():
            filled = filled.replace(f"@{word}@", text)
        return filled


_ON_CORES = """\
# A thread a core, each for a part of the batch.
export HPCPS_RUN_THREADS="$SLURM_CPUS_PER_TASK\""""
_ON_GPUS = """\
# One thread of a rank keeps its GPU busy.
export HPCPS_RUN_THREADS=1"""

_FILE = """\
#!/usr/bin/env bash
# @about@:
#
#   sbatch @name@
#
# CONFIG.toml, OUT and the data lie where every node sees them. Options given to sbatch win over those below.
@options@

set -euo pipefail

@begin@

@path@

@pmi@@threads@
@cores@# The libraries that a rank's threads call get no threads of their own.
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

# Compiled kernels are kept in ~/.cache/hpcps. If your home is not on the nodes, or is slow there, name another
# folder that all nodes see and that only you can write to; then one rank compiles and the others load.
# export HPCPS_CACHE_DIR="$SCRATCH/hpcps-cache"

@srun@@body@"""

_PMI = """\
# How srun tells the ranks of each other: pmix for Open MPI, pmi2 for MPICH and its kin (see srun --mpi=list).
mpi=@mpi@

"""

_CORES = """\
# From 22.05 on srun has to be told of the cores a task, too.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
"""

_SRUN = """\
# If one rank fails, all end: a rank that is lost must not leave the others waiting.
ranks=(srun --mpi="$mpi" --kill-on-bad-exit=1 --cpu-bind=cores@ranks@)
# Slurm 22.05 and Open MPI 5 get no further than MPI_Init with three or more ranks a node; this does:
# ranks=(mpirun --bind-to none)

"""

_ACTIVATE = """\
# The environment that hpcps is installed in, if it is not active already:
# module load openmpi
# source "$HOME/venv/bin/activate\""""

_WAIT = """\
job=$!
told=""
trap 'told=yes; kill -USR1 "$job" || true' USR1

# The signal ends the wait, but not the ranks: wait again.
wait "$job" && status=0 || status=$?
while [ -n "$told" ] && [ "$status" -gt 128 ]; do
    told=""
    wait "$job" && status=0 || status=$?
done

"""

_TRAIN = """\
# Before the time is up Slurm tells this script (--signal: two minutes, or less for a short job), and the script tells
# the ranks. They keep a checkpoint and end with 75: to srun no failure, for it would kill those that are not yet done.
again=$PWD/.hpcps-again-$SLURM_JOB_ID
rank='trap : USR1 TERM; "$@" || { status=$?; [ "$status" = 75 ] || exit "$status"; : >"$0"; }'
rm -f "$again"
"${ranks[@]}" bash -c "$rank" "$again" hpcps train "$config" --out "$out"@set@ "$@" &
@wait@# Back to the queue, where Slurm holds the job for two minutes; then this script goes on from the checkpoint.
if [ "$status" = 0 ] && [ -e "$again" ]; then
    rm -f "$again"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
    status=75
fi
exit "$status"
"""

_SURVIVE = """\
# hpcps starts the ranks, by the mpirun or mpiexec of its MPI library, on the nodes of this job. Ranks go on without
# those that die; a job that was lost is started again, on the nodes that still answer.
# Before the time is up Slurm tells this script (--signal), the script tells hpcps, and hpcps the ranks. They keep a
# checkpoint and end with 75.
hpcps train "$config" --out "$out" --ranks "$SLURM_NTASKS" --survive@set@ "$@" &
@wait@# Back to the queue, where Slurm holds the job for two minutes; then this script goes on from the checkpoint.
if [ "$status" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$status"
"""

_MEASURE = """\
# What the ranks run on, and which all-reduce is fastest there: kept in the cache, and used by later runs.
"${ranks[@]}" hpcps doctor
"${ranks[@]}" hpcps tune --largest "${HPCPS_TUNE_LARGEST:-67108864}"

# The same training on one rank, on two, on four, …, on all.
counts=()
for ((count = 1; count < SLURM_NTASKS; count *= 2)); do counts+=("$count"); done
counts+=("$SLURM_NTASKS")
for count in "${counts[@]}"; do
    nodes=$(((count + SLURM_NTASKS_PER_NODE - 1) / SLURM_NTASKS_PER_NODE))
    "${ranks[@]}" --ntasks="$count" --nodes="$nodes" hpcps train "$config" --out "$out/$count"@set@ "$@"
done
for count in "${counts[@]}"; do
    echo "$count ranks: $(grep -o '"samples_per_s": [0-9.]*' "$out/$count/summary.json")"
done
"""

_SWEEP = """
# The settings of this task are on the line of its number, with blanks between: train.seed=1 optimizer.kind=adam
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$sweep")
[ -n "$line" ] || { echo "$sweep: no line $SLURM_ARRAY_TASK_ID" >&2; exit 2; }
set -f
for setting in $line; do set -- "$@" --set "$setting"; done
out=$out/$SLURM_ARRAY_TASK_ID"""

_SEEDS = """
# Each task has a seed and a folder of its own.
set -- "$@" --set train.seed="$SLURM_ARRAY_TASK_ID"
out=$out/$SLURM_ARRAY_TASK_ID"""


def _asking(file: str, more: str = "") -> tuple[str, str]:
    """What a file to be copied takes, and how it takes it."""
    takes = f"{file} CONFIG.toml OUT{more and ' ' + more} [--set section.key=value]..."
    names = ["config", "out", *([more.partition(".")[0].lower()] if more else [])]
    lines = [f"{name}=${{{number}:?usage: sbatch {takes}}}" for number, name in enumerate(names, 1)]
    return takes, "\n".join([*lines, f"shift {len(names)}"])


def shipped() -> dict[str, str]:
    """The files of ``slurm/``, by name."""
    here = Resources(nodes=2, ntasks_per_node=2, cpus_per_task=8)
    socket = "One rank a socket, and the cores of that socket, is a good start."
    plain = _asking("ring.sbatch")
    ring = Script(
        "hpcps-ring", "Train by ring all-reduce on the nodes of one Slurm job", *plain, here, socket,
        settings="--set train.strategy=ring",
    )  # fmt: skip
    shards = '--set train.strategy=server --set server.count="$SLURM_JOB_NUM_NODES"'
    server = Script(
        "hpcps-server", "Train with a parameter server that is sharded over the nodes of one Slurm job, a shard a node",
        *_asking("server.sbatch"), here, "On each node a worker and a server; more tasks a node are more workers.",
        ranks="--distribution=cyclic", settings=shards,
    )  # fmt: skip
    survive = Script(
        "hpcps-survive", "Train on the nodes of one Slurm job, and go on when ranks or nodes are lost",
        *_asking("survive.sbatch"), here, socket, survives=True,
    )  # fmt: skip
    gpu = Script(
        "hpcps-gpu", "Train on the GPUs of one Slurm job", *_asking("gpu.sbatch"),
        replace(here, ntasks_per_node=4, gpus_per_node="4"), "One rank a GPU; more tasks a node share them.",
        settings="--set run.device=cuda",
    )  # fmt: skip
    takes, begin = _asking("array.sbatch", "SWEEP.txt")
    array = Script(
        "hpcps-array", "Train once for each line of settings in a file, side by side, each in a folder of its own",
        takes, begin + "\n" + _SWEEP, Resources(cpus_per_task=8, array="1-4"), "Of each training.",
    )  # fmt: skip
    measure = Script(
        "hpcps-benchmark", "Measure how fast a training is on one rank, on two, on four, …, on all of one Slurm job",
        *_asking("benchmark.sbatch"), here, socket, body=_MEASURE,
    )  # fmt: skip
    scripts = {"ring": ring, "server": server, "survive": survive, "gpu": gpu, "array": array, "benchmark": measure}
    return {f"{name}.sbatch": script.text() for name, script in scripts.items()}


def plan(
    path: Path, environment: Mapping[str, str], settings: Sequence[str], resources: Resources, sweep: Path | None
) -> tuple[Resources, Config]:
    """The resources, with as many trainings as ``sweep`` has lines, and the configuration of the first. Raises
    ConfigError where a training could not begin: for its configuration, or with so many ranks."""
    if sweep is None:
        return resources, _checked(path, environment, settings, resources)
    try:
        lines = sweep.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{sweep}: cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            if not line.strip():
                raise ConfigError("is empty; a training has at least one setting")
            found.append(_checked(path, environment, [*settings, *line.split()], resources))
        except ConfigError as error:
            raise ConfigError(f"{sweep}, line {number}: {error}") from error
    if not found:
        raise ConfigError(f"{sweep}: is empty; on line I it has the settings of training I")
    return replace(resources, array=resources.array or f"1-{len(found)}"), found[0]


def _checked(path: Path, environment: Mapping[str, str], settings: Sequence[str], resources: Resources) -> Config:
    config = read(path, environment, settings)
    servers = config.server.count if choose_strategy(config)[0] == "server" else 0
    planned = roles(resources.nodes * resources.ntasks_per_node, servers, config.server.colocated)
    cut(config, [config.run.threads or resources.cpus_per_task] * planned.workers, 0)
    return config


def plugin() -> str:
    """The --mpi for srun of the MPI library that this hpcps loads; where it finds none, as for Open MPI."""
    library = starter.probe_library()
    return "pmix" if library is None or "Open MPI" in library else "pmi2"


def script(
    config: Path,
    out: Path,
    settings: Sequence[str],
    resources: Resources,
    sweep: Path | None,
    is_server: bool,
    mpi: str,
    survives: bool = False,
) -> str:
    """A batch file that trains as ``config`` says. Its ranks run the hpcps of this process, in this folder, which paths
    among the settings are relative to. Raises ConfigError."""
    given = {"config": config.absolute(), "out": out.absolute(), **({"sweep": sweep.absolute()} if sweep else {})}
    begin = "\n".join(f"{name}={shlex.quote(str(path))}" for name, path in given.items())
    begin += f"\ncd {shlex.quote(str(Path.cwd()))}"
    if resources.array:
        begin += "\n" + (_SWEEP if sweep else _SEEDS)
    name = "hpcps-" + re.sub(r"[^\w.-]", "-", config.stem)
    about = "Written by hpcps slurm; what follows the file's name is handed on to hpcps train"
    folder = shlex.quote(str(Path(sys.executable).absolute().parent))
    return Script(
        name,
        about,
        "FILE [--set section.key=value]...",
        begin,
        resources,
        path=f'# The environment that hpcps is installed in.\nexport PATH={folder}:"$PATH"',
        mpi=f"${{HPCPS_MPI:-{mpi}}}",
        ranks="--distribution=cyclic" if is_server else "",
        settings=" ".join(f"--set {shlex.quote(setting)}" for setting in settings),
        survives=survives,
    ).text()


def submit(file: Path) -> str:
    """Hand a batch file to sbatch; returns the job's number. Raises ConfigError where Slurm will not have it."""
    if shutil.which("sbatch") is None:
        raise ConfigError(f"--submit: there is no sbatch on PATH; {file} is written")
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(file)], capture_output=True, text=True, timeout=SUBMITTING_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"--submit: sbatch has not answered in {SUBMITTING_S} s; {file} is written") from error
    if done.returncode != 0:
        why = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise ConfigError(f"--submit: {why}; {file} is written")
    return done.stdout.strip()


if __name__ == "__main__":
    for file_name, content in shipped().items():
        Path(sys.argv[1], file_name).write_text(content, encoding="utf-8")
