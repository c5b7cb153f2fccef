"""The CPU kernels on one core: beside what the machine can do, and beside NumPy, PyTorch and others.

    python bench/kernels.py --families reduce,update --json kernels.json

The peers come with ``pip install -e '.[bench]'``; one that is not installed is said in its row. Each result is
compared with the peers' before anything is timed. In every round the limit, our call and the peers' calls run in turn,
so that a machine whose speed drifts is fair to all; figures are medians. Bytes are counted as STREAM does: an array
once if it is read and once if it is written. STREAM's triad also reads what it overwrites without counting it, so
kernels that only read, or that update in place, can exceed it.

With ``--device cuda`` it is the GPU kernels beside a copy on the device, CuPy's expressions and PyTorch (`on_gpu/`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from common import write_json
from families import NAMES

PACKAGES = ("numpy", "numba", "scipy", "torch", "scikit-learn", "vowpalwabbit", "liblinear-official", "threadpoolctl")
HEADER = """| case | size | time | rate | of limit | peer | x peer | goal | verified |
|---|---|---:|---:|---:|---|---:|---:|---|"""


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(NAMES), help=f"some of {','.join(NAMES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="small operands: does everything run? Figures mean nothing"
    )
    found = parser.parse_args()
    found.families = found.families.split(",")
    if unknown := set(found.families) - set(NAMES):
        parser.error(f"--families: {', '.join(unknown)}: not one of {', '.join(NAMES)}")
    return found


def one_core() -> None:
    """Keep this process on one core, with one thread. Before NumPy is imported, whose threads would stay outside."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"


def show(row: dict[str, object]) -> None:
    """One line of a table."""
    name, size, goal = row["case"], row["size"], row["goal"]
    if problem := row.get("missing") or row.get("failed"):
        print(f"| {name} | {size} | {'missing' if 'missing' in row else 'FAILED'}: {problem} | | | | | | |", flush=True)
        return
    fraction = f"{row['fraction']:.2f} {row['limit']}" if "fraction" in row else ""
    peer, ratio = row.get("peer", "missing"), f"{row['ratio']:.2f}" if "ratio" in row else ""
    if absent := row["peers_missing"]:
        peer = f"{peer} (missing: {', '.join(absent)})"
    verified = {None: "", 0: "yes"}.get(row["wrong"], f"NO: {row['wrong']} off")
    note = f" ({row['note']})" if row["note"] else ""
    times = f"{row['median_s'] * 1e3:,.3f} ms | {row['rate']:,.4g} {row['unit']}"
    print(f"| {name} | {size} | {times} | {fraction} | {peer} | {ratio} | {goal:g} | {verified}{note} |", flush=True)


def run(chosen: argparse.Namespace) -> tuple[list[dict[str, object]], dict[str, float]]:
    """All cases, family by family; also the limits' medians."""
    from families.limits import Limits
    from families.measure import measure
    from hpcps_kernels import load

    kernels, limits = load("cpu"), Limits()
    rows: list[dict[str, object]] = []
    for family in chosen.families:
        print(f"\n### {family}\n\n{HEADER}", flush=True)
        for case in importlib.import_module(f"families.{family}").cases(chosen.quick):
            if chosen.only in case.name:
                rows.append({"family": family} | measure(case, kernels, limits, chosen.rounds))
                show(rows[-1])
    return rows, limits.summary()


def main() -> int:
    """Exit status 1 if a result is wrong or a case failed."""
    chosen = options()
    if chosen.device == "cuda":
        from on_gpu import run as on_gpu

        return on_gpu.run(chosen.only, chosen.rounds, chosen.quick, chosen.json)
    one_core()
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        rows, limits = run(chosen)
    told = ", ".join(f"{kind} {rate:.1f} {'GFLOP/s' if kind == 'gemm' else 'GB/s'}" for kind, rate in limits.items())
    print(f"\nLimits (medians of all rounds): {told}")
    if chosen.json:
        write_json(chosen.json, PACKAGES, rows, limits=limits)
    return 1 if any(row.get("wrong") or "failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
