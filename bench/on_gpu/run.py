"""All cases, as a table and as JSON."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from common import write_json
from hpcps_kernels import load
from hpcps_kernels.gpu.found import look

from on_gpu.cases import cases
from on_gpu.measure import measure
from on_gpu.torch_peers import peers

PACKAGES = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch")
HEADER = """| case | size | time | rate | of a copy | peer | x peer | verified |
|---|---|---:|---:|---:|---|---:|---|"""


def run(only: str, rounds: int, quick: bool, json: Path | None) -> int:
    """Exit status 2, with one line, without a GPU; 1 if a result is wrong or a case failed."""
    try:
        load("gpu")
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    import cupy

    print(f"{look().line()}\n\n{HEADER}")
    rows, beside = [], peers()
    for case in cases(quick):
        if only in case.name:
            torch = {"torch": beside[case.kernel]} if case.kernel in beside else {}
            rows.append(measure(cupy, replace(case, peers={**case.peers, **torch}), rounds))
            print(line(rows[-1]), flush=True)
    if json:
        write_json(json, PACKAGES, rows, gpu=look().line())
    return 1 if any(row.get("wrong") or "failed" in row for row in rows) else 0


def line(row: dict[str, object]) -> str:
    """A row of the table."""
    if "failed" in row:
        return f"| {row['case']} | {row['size']} | FAILED: {row['failed']} | | | | | |"
    peer, ratio = row.get("peer", ""), f"{row['ratio']:.2f}" if "ratio" in row else ""
    verified = f"NO: {row['wrong']} off" if row["wrong"] else "yes"
    times = f"{row['median_s'] * 1e3:,.3f} ms | {row['rate']:,.4g} GB/s | {row['fraction']:.2f}"
    return f"| {row['case']} | {row['size']} | {times} | {peer} | {ratio} | {verified} |"
