"""What is said of GPU, driver and CuPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hpcps_kernels.gpu import found
from hpcps_kernels.gpu.found import Found

DRIVER = """
static int gpus = %d;
int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
int cuInit(unsigned flags) { return gpus ? 0 : 100; }
int cuDeviceGetCount(int* count) { *count = gpus; return 0; }
int cuDeviceGet(int* device, int number) { *device = number; return 0; }
int cuDeviceGetName(char* text, int size, int device) { text[0] = 'X'; text[1] = '0' + device; text[2] = 0; return 0; }
int cuDeviceTotalMem_v2(unsigned long* size, int device) { *size = 80ul << 30; return 0; }
"""


def driver(folder: Path, gpus: int) -> str:
    """A library that answers as a driver of a machine with so many GPUs does."""
    (folder / "driver.c").write_text(DRIVER % gpus)
    library = folder / f"libdriver{gpus}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", folder / "driver.c", "-o", library], check=True, timeout=60)
    return str(library)


def test_gpus_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(found, "cupy", lambda: "cupy-cuda12x 14.2.0")
    told = found.look(driver(tmp_path, 2))
    assert told == Found((12, 8), ("X0 (80 GiB)", "X1 (80 GiB)"), "cupy-cuda12x 14.2.0")
    assert told.line() == "X0 (80 GiB), X1 (80 GiB); driver for CUDA 12.8; cupy-cuda12x 14.2.0"
    assert told.extra == "cuda12"


def test_what_is_missing_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(found, "cupy", lambda: "")
    assert found.look(driver(tmp_path, 0)).line() == "none: the driver sees none (CUDA error 100); driver for CUDA 12.8"
    assert found.look("libno-such.so").line() == "none: there is no NVIDIA driver on this machine"
    assert "CuPy is not installed: pip install 'hpcps[cuda12]'" in found.look(driver(tmp_path, 1)).line()


@pytest.mark.parametrize(
    ("driver", "cupy", "says"),
    [
        ((12, 8), "cupy-cuda13x 14.2.0", "cupy-cuda13x 14.2.0 is for CUDA 13, the driver is not: pip uninstall it"),
        ((13, 0), "cupy-cuda12x 14.2.0", ""),  # a driver runs what is older
        ((13, 0), "cupy-cuda13x 14.2.0 and cupy 14.0.0", "more than one CuPy is installed"),
        ((13, 0), "", "CuPy is not installed: pip install 'hpcps[cuda13]'"),
        ((13, 0), "cupy 14.2.0", ""),
    ],
)
def test_a_cupy_that_does_not_fit_is_said(driver: tuple[int, int], cupy: str, says: str) -> None:
    told = Found(driver, ("X0 (80 GiB)",), cupy)
    assert told.obstacle.startswith(says)
    assert bool(told.obstacle) == bool(says)
    assert told.obstacle in told.line()
    assert Found(None, (), cupy, "there is no driver").obstacle == "there is no driver"


@pytest.mark.skipif(bool(found.look().gpus), reason="there is a GPU")
def test_as_a_program_it_says_so_in_one_line_and_exits_with_2() -> None:
    told = subprocess.run([sys.executable, found.__file__], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 2
    assert told.stdout.startswith("GPU: none: ")
    assert told.stdout.count("\n") == 1
