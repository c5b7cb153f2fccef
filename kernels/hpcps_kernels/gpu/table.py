"""The table of GPU kernels, one a device; what it leaves out, and why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hpcps_kernels.check import checked
from hpcps_kernels.gpu import FAMILIES
from hpcps_kernels.gpu._arrays import DeviceArrays
from hpcps_kernels.gpu._launch import on
from hpcps_kernels.gpu.found import look
from hpcps_kernels.interface import Kernels
from hpcps_kernels.specs import SPECS

LEFT_OUT = {
    "gemm": "cuBLAS multiplies matrices",
    "hash": "keys are made of text, on the host",
    "index": "the table from keys to rows grows in the host's memory",
    "meet": "ranks meet in the memory of their node",
    "online": "it learns from one sample after the other, and a GPU has nothing to do side by side",
    "sketch": "keys are counted one after the other, where the table of rows is",
    "stream": "no core reads the memory of a GPU",
    "summed": "gradients lie beside each other in the memory of a node",
    "text": "text is parsed on the host",
}


class GpuKernels(Kernels):
    """`Kernels` for CuPy's arrays in the memory of one GPU.

    Kernels that return a number, or that look whether numbers of rows are in range, wait for the GPU; others return
    while they are under way on CuPy's current stream. ``device``: what they run on.
    """

    def __init__(self, device: Any) -> None:
        super().__init__("gpu")
        self.device, self._arrays = device, DeviceArrays(device.array, device.number)

    def __getattr__(self, kernel: str) -> Callable[..., Any]:
        if kernel in SPECS and (reason := LEFT_OUT.get(SPECS[kernel].module)):
            raise AttributeError(f"kernels: {kernel} is not there on a GPU: {reason}")
        return super().__getattr__(kernel)

    def _checked(self, kernel: str) -> Callable[..., Any]:
        assert SPECS[kernel].module in FAMILIES
        doc = self._find("reference", kernel).__doc__
        return checked(SPECS[kernel], on(self.device, self._find("gpu", kernel)), doc, self._arrays)


def table(device: int) -> GpuKernels:
    """Raises RuntimeError, in one line, where there is no CuPy, driver or GPU."""
    return GpuKernels(_cupy().CupyDevice(device))


def count() -> int:
    """How many GPUs there are. Raises RuntimeError, in one line, where there is no CuPy or driver, or no GPU."""
    found: int = _cupy().count_devices()
    return found


def _cupy() -> Any:
    try:
        return importlib.import_module("hpcps_kernels.gpu._cupy")
    except ImportError as error:
        wanted = f"CuPy is needed: pip install 'hpcps[{look().extra}]'"
        raise RuntimeError(f"kernels: {wanted} ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
