"""The GPU bench: its cases are right, and without a GPU it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hpcps_kernels.gpu.found import look
from hpcps_kernels.gpu.table import GpuKernels
from on_cpu import Compiled, OnCpu, on_device
from on_gpu.cases import Case, cases
from on_gpu.measure import wrong
from on_gpu.run import line

BENCH = Path(__file__).parents[2] / "bench" / "kernels.py"


@pytest.mark.parametrize("case", cases(quick=True), ids=lambda case: case.name)
def test_kernel_and_peers_agree(compiled: Compiled, case: Case) -> None:
    arrays = [on_device(x) for x in case.operands()]
    answer = getattr(GpuKernels(OnCpu(compiled)), case.kernel)(*arrays, *case.scalars)
    ours = answer if case.makes is None else arrays[case.makes].view_on_host
    for peer in case.peers.values():
        assert wrong(case, ours, peer(np, *case.operands())) == 0
        assert wrong(case, np.asarray(ours) * 0 - 1, peer(np, *case.operands())) > 0


def test_a_row_is_a_line() -> None:
    row = {"case": "dot", "size": "1 x 1", "median_s": 0.002, "rate": 3000.0, "fraction": 0.912, "wrong": 0}
    assert line(row) == "| dot | 1 x 1 | 2.000 ms | 3,000 GB/s | 0.91 |  |  | yes |"
    assert line({"case": "dot", "size": "", "failed": "no"}) == "| dot |  | FAILED: no | | | | | |"


@pytest.mark.skipif(bool(look().gpus), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    command = [sys.executable, str(BENCH), "--device", "cuda"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert told.returncode == 2
    assert told.stderr.startswith("kernels: ")
    assert (told.stdout, told.stderr.count("\n")) == ("", 1)
