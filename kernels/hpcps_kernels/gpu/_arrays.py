"""The arrays that GPU kernels take, for the checks that all back ends share."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.spec import Argument


class DeviceArrays:
    """CuPy's arrays in the memory of one GPU."""

    name: str = "a CuPy array"
    layout: str = "{0}.shape, {0}.dtype, {0}.flags.c_contiguous, {0}.data.device_id"

    def __init__(self, kind: type[Any], device: int) -> None:
        self.kind, self._device = kind, device

    def check_layout(self, where: str, argument: Argument, array: Any) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"{where} must be C-contiguous, not with strides {array.strides}")
        if array.data.ptr % array.itemsize:
            raise ValueError(f"{where} must be aligned to its dtype, not at address {array.data.ptr:#x}")
        if array.data.device_id != self._device:
            raise ValueError(f"{where} must be on GPU {self._device}, not on GPU {array.data.device_id}")
