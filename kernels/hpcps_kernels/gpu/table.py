"""The table of GPU kernels, one a device; what it leaves out, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcps_kernels.check import checked
from hpcps_kernels.gpu import FAMILIES
from hpcps_kernels.gpu._arrays import DeviceArrays
from hpcps_kernels.gpu._launch import on
from hpcps_kernels.interface import Kernels
from hpcps_kernels.specs import SPECS

LEFT_OUT = {
    "hash": "keys are made of text, on the host",
    "index": "the table from keys to rows grows in the host's memory",
    "meet": "ranks meet in the memory of their node",
    "online": "it learns from one sample after the other, and a GPU has nothing to do side by side",
    "sketch": "keys are counted one after the other, where the table of rows is",
    "text": "text is parsed on the host",
}


class GpuKernels(Kernels):
    """`Kernels` for CuPy's arrays in the memory of one GPU.

    Kernels that return a number, or that look whether numbers of rows are in range, wait for the GPU; others return
    while they are under way on CuPy's current stream.
    """

    def __init__(self, device: Any) -> None:
        super().__init__("gpu")
        self._device, self._arrays = device, DeviceArrays(device.array, device.number)

    def __getattr__(self, kernel: str) -> Callable[..., Any]:
        if kernel in SPECS and (reason := LEFT_OUT.get(SPECS[kernel].module)):
            raise AttributeError(f"kernels: {kernel} is not there on a GPU: {reason}")
        return super().__getattr__(kernel)

    def _checked(self, kernel: str) -> Callable[..., Any]:
        assert SPECS[kernel].module in FAMILIES
        doc = self._find("reference", kernel).__doc__
        return checked(SPECS[kernel], on(self._device, self._find("gpu", kernel)), doc, self._arrays)


def table(device: int) -> GpuKernels:
    """Raises RuntimeError, in one line, where there is no CuPy, driver or GPU."""
    try:
        from hpcps_kernels.gpu._cupy import CupyDevice
    except ImportError as error:
        raise RuntimeError(f"kernels: CuPy is needed: pip install 'hpcps[cuda13]' ({_line(error)})") from None
    return GpuKernels(CupyDevice(device))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
