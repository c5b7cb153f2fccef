"""CuPy: memory, launches, sorting, matrix products, copies."""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from typing import Any

import cupy
import numpy as np
from numpy.typing import DTypeLike

from hpcps_kernels.gpu._launch import Instance
from hpcps_kernels.gpu._nccl import Nccl
from hpcps_kernels.gpu._nvrtc import kept, version
from hpcps_kernels.interface import Array

OLDEST = 14  # CuPy's major version
PLACE_BYTES = 256
CONSTANTS = 256  # kept
PORTABLE = 1  # cudaHostRegisterPortable: for all devices of the process


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
        self._constants: dict[tuple[int, ...], Any] = {}
        self._numbers: dict[int, tuple[Any, Array]] = {}  # the same arrays by id, and what is in them
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
        known = self._numbers.get(id(array))
        host: Array = cupy.asnumpy(array) if known is None else known[1].copy()
        return host

    def constant(self, numbers: tuple[int, ...]) -> Any:
        found = self._constants.get(numbers)
        if found is None:
            if len(self._constants) >= CONSTANTS:
                self._constants, self._numbers = {}, {}
            here = np.array(numbers, np.int64)
            found = self._constants[numbers] = self.put(here)
            self._numbers[id(found)] = found, here
        return found

    def argsort(self, keys: Any) -> Any:
        return cupy.argsort(keys, kind="stable") if keys.size else self.empty(0, "int64")

    def running_sum(self, x: Any) -> Any:
        return cupy.cumsum(x, dtype="int64") if x.size else self.empty(0, "int64")

    def multiply_transposed(self, out: Any, a: Any, b: Any) -> None:
        if not len(a):
            out.fill(0)
        elif out.size:
            out[...] = cupy.matmul(_well_placed(a).T, _well_placed(b))

    def multiply(self, out: Any, a: Any, b: Any) -> None:
        if not a.shape[1]:
            out.fill(0)
        elif out.size:
            cupy.dot(a, b, out=out)

    def multiply_alone(self, out: Any, a: Any, b: Any) -> None:
        if out.data.ptr % PLACE_BYTES and out.size:
            placed = cupy.empty_like(out)
            self.multiply(placed, _well_placed(a), b)
            out[...] = placed
        else:
            self.multiply(out, _well_placed(a), b)

    def write(self, out: Any, array: Array) -> None:
        out.set(array)

    def stream(self) -> CupyStream:
        return CupyStream()

    def pinned(self, count: int, dtype: DTypeLike) -> Array:
        memory = cupy.cuda.alloc_pinned_memory(max(1, count * np.dtype(dtype).itemsize))
        return np.frombuffer(memory, dtype, count)

    def pin(self, array: Array) -> None:
        address = array.ctypes.data
        try:
            cupy.cuda.runtime.hostRegister(address, array.nbytes, PORTABLE)
        except cupy.cuda.runtime.CUDARuntimeError:
            return  # a page of it is another array's, which is pinned already, or there may not be more of it
        weakref.finalize(array, cupy.cuda.runtime.hostUnregister, address).atexit = False

    def bus_id(self) -> str:
        return str(cupy.cuda.Device(self.number).pci_bus_id)

    def nccl(self) -> Nccl:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy's, of several lines, where the library is missing
            from cupy.cuda import nccl
        if not nccl.available:
            major = cupy.cuda.runtime.runtimeGetVersion() // 1000
            raise RuntimeError(f"CuPy finds no NCCL: pip install nvidia-nccl-cu{major}")
        return Nccl(nccl)

    def free_bytes(self) -> int:
        free, _ = cupy.cuda.runtime.memGetInfo()
        return int(free) + int(cupy.get_default_memory_pool().free_bytes())

    def synchronize(self) -> None:
        cupy.cuda.get_current_stream().synchronize()


class CupyStream:
    """A stream that CuPy's current one does not wait for, on the device that is current where it is used."""

    def __init__(self) -> None:
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._event = cupy.cuda.Event(disable_timing=True)

    @property
    def ptr(self) -> int:
        return int(self._stream.ptr)

    def follow(self) -> None:
        self._event.record()
        self._stream.wait_event(self._event)

    def to_host(self, out: Array, array: Any) -> None:
        array.data.copy_to_host_async(out.ctypes.data, out.nbytes, self._stream)

    def to_device(self, out: Any, array: Array) -> None:
        out.data.copy_from_host_async(array.ctypes.data, array.nbytes, self._stream)

    def precede(self) -> None:
        self._event.record(self._stream)
        cupy.cuda.get_current_stream().wait_event(self._event)

    def mark(self) -> CupyMark:
        return CupyMark(self._stream.record(cupy.cuda.Event(disable_timing=True)))

    def synchronize(self) -> None:
        self._stream.synchronize()


class CupyMark:
    """What a stream was asked for up to now."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def done(self) -> bool:
        return bool(self._event.done)


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
