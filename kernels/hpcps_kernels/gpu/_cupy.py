"""CuPy: memory, launches, sorting, matrix products. The only file of the kernels that imports it."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import cupy
from numpy.typing import DTypeLike

from hpcps_kernels.gpu._launch import Instance
from hpcps_kernels.gpu._source import OPTIONS, source
from hpcps_kernels.interface import Array

OLDEST = 13  # CuPy's major version


class CupyDevice:
    """A GPU. Everything goes to the stream that is CuPy's current one, in order; only `read` waits.

    Raises RuntimeError, in one line, where there is no driver, no such GPU, or a CuPy that is too old.
    """

    array = cupy.ndarray

    def __init__(self, number: int) -> None:
        if int(cupy.__version__.partition(".")[0]) < OLDEST:
            raise RuntimeError(f"kernels: CuPy {cupy.__version__} is too old; {OLDEST} or newer is needed")
        count = count_devices()
        if not 0 <= number < count:
            raise RuntimeError(f"kernels: there is no GPU {number}; {count} seen, counted from 0")
        self.number = number
        self._device = cupy.cuda.Device(number)
        self.multiprocessors: int = self._device.attributes["MultiProcessorCount"]

    def __enter__(self) -> CupyDevice:
        self._device.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._device.__exit__(*error)

    def launch(self, instance: Instance, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        _function(instance)((blocks,), (threads,), arguments)

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
        return cupy.argsort(keys, kind="stable")

    def running_sum(self, x: Any) -> Any:
        return cupy.cumsum(x, dtype="int64")

    def multiply_transposed(self, out: Any, a: Any, b: Any) -> None:
        if len(a):
            cupy.matmul(a.T, b, out=out)
        else:
            out.fill(0)


def count_devices() -> int:
    """How many GPUs there are. Raises RuntimeError where there is no driver, or one that is too old."""
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if cupy.cuda.runtime.driverGetVersion() == 0:
            raise RuntimeError("kernels: there is no NVIDIA driver on this machine") from None
        raise RuntimeError(f"kernels: no GPU can be used: {error}") from None
    return count


def cupy_name() -> str:
    """The distribution and version that `import cupy` found."""
    owners = importlib.metadata.packages_distributions().get("cupy", ["cupy"])
    return f"{owners[0]} {cupy.__version__}"


@functools.cache
def _function(instance: Instance) -> Any:
    """Compiled by NVRTC for the GPU that is used first, or read from CuPy's cache on disk."""
    text = source(instance.file) + instance.declaration
    module = cupy.RawModule(code=text, options=OPTIONS, name_expressions=(instance.expression,))
    return module.get_function(instance.expression)
