"""What there is of GPU, driver and CuPy, without loading CuPy. As a program: one line, and status 2 without a GPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import sys
from dataclasses import dataclass

DISTRIBUTIONS = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")


@dataclass(frozen=True)
class Found:
    """``driver``: the newest CUDA that it runs, as (13, 0), or None; ``problem``: why there is no GPU."""

    driver: tuple[int, int] | None
    gpus: tuple[str, ...]
    cupy: str  # distribution and version, or ""
    problem: str = ""

    @property
    def extra(self) -> str:
        """The extra of hpcps whose CuPy fits the driver."""
        return "cuda12" if self.driver and self.driver[0] < 13 else "cuda13"

    @property
    def obstacle(self) -> str:
        """Why no kernel can run, and what helps; "" where nothing is known that would be in the way."""
        if not self.gpus:
            return self.problem
        remedy = f"pip install 'hpcps[{self.extra}]'"
        if not self.cupy:
            return f"CuPy is not installed: {remedy}"
        if " and " in self.cupy:
            return f"more than one CuPy is installed ({self.cupy}): pip uninstall all of them, then {remedy}"
        made_for = re.match(r"cupy-cuda(\d+)x", self.cupy)
        if made_for and self.driver and self.driver[0] < int(made_for[1]):
            return f"{self.cupy} is for CUDA {made_for[1]}, the driver is not: pip uninstall it, then {remedy}"
        return ""

    def line(self) -> str:
        """All of it in one line."""
        told = [", ".join(self.gpus) or f"none: {self.problem}"]
        if self.driver:
            told.append("driver for CUDA {}.{}".format(*self.driver))
        if self.gpus and self.obstacle:
            told.append(self.obstacle)
        elif self.cupy:
            told.append(self.cupy)
        return "; ".join(told)


def look(library: str = "libcuda.so.1") -> Found:
    """Ask the driver. Makes no context, so that processes which fork later are not disturbed."""
    installed = cupy()
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Found(None, (), installed, "there is no NVIDIA driver on this machine")
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    newest = (version.value // 1000, version.value % 1000 // 10)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return Found(newest, (), installed, f"the driver sees none (CUDA error {code})")
    return Found(newest, tuple(_name(driver, number) for number in range(count.value)), installed)


def cupy() -> str:
    """The distributions of CuPy that are installed; more than one is one too many."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return " and ".join(found)


def _name(driver: ctypes.CDLL, number: int) -> str:
    device, text, size = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(text, len(text), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return f"{text.value.decode(errors='replace')} ({size.value / 2**30:.0f} GiB)"


if __name__ == "__main__":
    here = look()
    print(here.extra if sys.argv[1:] == ["extra"] else f"GPU: {here.line()}")
    sys.exit(0 if here.gpus else 2)
