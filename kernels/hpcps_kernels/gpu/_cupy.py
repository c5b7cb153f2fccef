"""CuPy: memory, launches, sorting, matrix products."""

from __future__ import annotations

import functools
import threading
from typing import Any

import cupy
from numpy.typing import DTypeLike

from hpcps_kernels.gpu._launch import Instance
from hpcps_kernels.gpu._nvrtc import kept, version
from hpcps_kernels.interface import Array

OLDEST = 14  # CuPy's major version
PLACE_BYTES = 256


class CupyDevice:
    """A GPU. Everything goes to the stream that is CuPy's current one, in order; only `read` waits.

    Raises RuntimeError, in one line, where there is no driver, no such GPU, no compiler, or a CuPy that is too old.
    """

    array = cupy.ndarray

    def __init__(self, number: int) -> None:
        if int(cupy.__version__.partition(".")[0]) < OLDEST:
            raise RuntimeError(f"kernels: CuPy {cupy.__version__} is too old; {OLDEST} or newer is needed")
        count = count_devices()
        version()
        if not 0 <= number < count:
            raise RuntimeError(f"kernels: there is no GPU {number}; {count} seen, counted from 0")
        self.number = number
        self.multiprocessors: int = cupy.cuda.Device(number).attributes["MultiProcessorCount"]
        self.architecture = int(cupy.cuda.Device(number).compute_capability)
        self._entered = threading.local()  # CuPy's own objects keep the device before in one list for all threads

    def __enter__(self) -> CupyDevice:
        entered = self._entered.__dict__.setdefault("devices", [])
        entered.append(cupy.cuda.Device(self.number))
        entered[-1].__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.devices.pop().__exit__(*error)

    def launch(self, instance: Instance, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        _function(instance, self.architecture)((blocks,), (threads,), arguments)

    def empty(self, shape: Any, dtype: DTypeLike) -> Any:
        return cupy.empty(shape, dtype)

    def zeros(self, shape: Any, dtype: DTypeLike) -> Any:
        return cupy.zeros(shape, dtype)

    def put(self, array: Array) -> Any:
        return cupy.asarray(array)

    def read(self, array: Any) -> Array:
        host: Array = cupy.asnumpy(array)
        return host

    def argsort(self, keys: Any) -> Any:
        return cupy.argsort(keys, kind="stable") if keys.size else self.empty(0, "int64")

    def running_sum(self, x: Any) -> Any:
        return cupy.cumsum(x, dtype="int64") if x.size else self.empty(0, "int64")

    def multiply_transposed(self, out: Any, a: Any, b: Any) -> None:
        if not len(a):
            out.fill(0)
        elif out.size:
            out[...] = cupy.matmul(_well_placed(a).T, _well_placed(b))


def _well_placed(array: Any) -> Any:
    """The array, or a copy where cuBLAS might take another way, and give other bits, because of where it begins."""
    return array.copy() if array.data.ptr % PLACE_BYTES else array


def count_devices() -> int:
    """How many GPUs there are. Raises RuntimeError where there is no driver, or one that is too old."""
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if cupy.cuda.runtime.driverGetVersion() == 0:
            raise RuntimeError("kernels: there is no NVIDIA driver on this machine") from None
        raise RuntimeError(f"kernels: no GPU can be used: {error}") from None
    return count


@functools.cache
def _function(instance: Instance, architecture: int) -> Any:
    """Compiled for the architecture, or read from disk."""
    found = kept(instance, architecture)
    return cupy.RawModule(path=str(found.path)).get_function(found.name)
