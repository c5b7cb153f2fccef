"""A device that is none: kernels of .cu files compiled by g++ and run on the CPU, on arrays as strict as CuPy's."""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import hpcps_kernels
import numpy as np
from hpcps_kernels.gpu import FAMILIES, found, table
from hpcps_kernels.gpu._launch import C_TYPES, TABLE, Instance
from hpcps_kernels.gpu._nccl import Nccl
from hpcps_kernels.gpu._source import source
from hpcps_kernels.gpu.table import GpuKernels

for _family in FAMILIES:  # each declares its kernels
    importlib.import_module(f"hpcps_kernels.gpu.{_family}")

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-shared", "-fPIC"]
DTYPES = {c: np.dtype(name) for name, c in C_TYPES.items()}
MARGIN = 64  # bytes in front of and behind an array, which no kernel may touch
UNTOUCHED = 0xA5


class DeviceArray:
    """Memory that only kernels see: what of CuPy's arrays hpcps uses, and nothing that NumPy would do by itself."""

    def __init__(self, view: np.ndarray, room: np.ndarray, device_id: int = 0) -> None:
        assert type(view) is np.ndarray
        self.view_on_host, self.room = view, room
        self.data = SimpleNamespace(ptr=view.ctypes.data, device_id=device_id)
        self.shape, self.dtype, self.ndim, self.size = view.shape, view.dtype, view.ndim, view.size
        self.nbytes, self.itemsize, self.strides = view.nbytes, view.itemsize, view.strides
        self.flags = SimpleNamespace(c_contiguous=view.flags.c_contiguous)

    def reshape(self, *shape: Any) -> DeviceArray:
        return self._part(self.view_on_host.reshape(*shape))

    def view(self, dtype: Any) -> DeviceArray:
        return self._part(self.view_on_host.view(dtype))

    @property
    def T(self) -> DeviceArray:  # noqa: N802
        return self._part(self.view_on_host.T)

    def __getitem__(self, part: Any) -> DeviceArray:
        return self._part(self.view_on_host[part])

    def _part(self, view: np.ndarray) -> DeviceArray:
        assert np.shares_memory(view, self.room) or not view.size, "CuPy would make a copy"
        return DeviceArray(view, self.room, self.data.device_id)

    def __len__(self) -> int:
        return len(self.view_on_host)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __bool__(self) -> bool:
        raise TypeError("reads the device")


def on_device(array: np.ndarray, misaligned: int = 0, device_id: int = 0) -> DeviceArray:
    """A copy that begins at 64 bytes, or so many elements after that."""
    before = MARGIN + misaligned * array.itemsize
    room = np.full(before + array.nbytes + MARGIN + 64, UNTOUCHED, np.uint8)
    first = -room.ctypes.data % 64 + before
    memory = room[first : first + array.nbytes]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    return DeviceArray(view, room, device_id)


def margins_are_untouched(array: DeviceArray) -> bool:
    """Whether nothing was written beside it. Views are not looked at: their margins are parts of an array."""
    view, room = array.view_on_host, array.room
    first = view.ctypes.data - room.ctypes.data
    beside = np.concatenate([room[first - MARGIN : first], room[first + view.nbytes :][:MARGIN]])
    return bool((beside == UNTOUCHED).all())


class Compiled:
    """The .cu files, each compiled once, side by side, when the first of its kernels is wanted or before."""

    def __init__(self, folder: Path, change: Callable[[str], str] = lambda text: text) -> None:
        self.folder, self._change = folder, change
        self._pool = ThreadPoolExecutor(2)
        self._libraries: dict[str, Future[ctypes.CDLL]] = {}

    def start(self) -> None:
        for file in sorted({launch.file for launch in TABLE}):
            self._library(file)

    def finish(self) -> None:
        """Wait until all are there."""
        for library in self._libraries.values():
            library.result()

    def function(self, instance: Instance) -> Any:
        names = [one.expression for one in instances(instance.file)]
        return getattr(self._library(instance.file).result(), f"run_{names.index(instance.expression)}")

    def text(self, file: str) -> str:
        """What is compiled of a file."""
        return self._change(source(file))

    def _library(self, file: str) -> Future[ctypes.CDLL]:
        if file not in self._libraries:
            self._libraries[file] = self._pool.submit(self._compile, file)
        return self._libraries[file]

    def _compile(self, file: str) -> ctypes.CDLL:
        """What another process has compiled in the folder is used as it is."""
        text, library = self.folder / f"{file}.cpp", self.folder / f"{file}.so"
        wrappers = [_wrapper(number, one) for number, one in enumerate(instances(file))]
        text.write_text(f'#include "{HEADER}"\n{self.text(file)}\n#line 1 "wrappers"\n' + "\n".join(wrappers))
        command = ["g++", *FLAGS, str(text), "-o", str(library)]
        if not library.exists():
            told = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            assert told.returncode == 0, told.stderr[:4000]
        return ctypes.CDLL(str(library))


def instances(file: str) -> list[Instance]:
    return [one for launch in TABLE if launch.file == file for one in launch.instances()]


def _wrapper(number: int, instance: Instance) -> str:
    given = ", ".join(f"*({c}*)a[{i}]" for i, c in enumerate(instance.arguments))
    return instance.declaration + (
        f'extern "C" int run_{number}(unsigned blocks, unsigned threads, unsigned seed, void** a) {{\n'
        f"    return oncpu::launch(blocks, threads, seed, [=] {{ {instance.expression}({given}); }});\n}}"
    )


ONE_AT_A_TIME = threading.RLock()  # a library has one place for the threads of a block
FAR = 1 << 40
STREAMS: WeakValueDictionary[int, LateStream] = WeakValueDictionary()
"""By what libraries are handed"""


class OnCpu:
    """Launches as the table declares them, every argument's type checked; the order of threads goes by ``seed``.

    Kernels and what is asked of the device itself happen at once; copies of its streams as late as they may.
    """

    array = DeviceArray

    def __init__(self, compiled: Compiled, multiprocessors: int = 2, seed: int = 0, number: int = 0) -> None:
        self._compiled, self.multiprocessors, self.seed, self.number = compiled, multiprocessors, seed, number
        self.done: list[str] = []  # what was launched and read, in order
        self.free = FAR
        self.streams: list[LateStream] = []  # for which kernels wait
        self.touched: dict[tuple[int, int], int] = {}  # by whatever was asked of the device, and when
        self.asked = 0
        self._constants: dict[tuple[int, ...], DeviceArray] = {}
        self.nccl_module: Any = None  # in the place of cupy.cuda.nccl, if that is to be there

    def __enter__(self) -> OnCpu:
        return self

    def __exit__(self, *error: object) -> None: ...

    def launch(self, instance: Instance, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        values = [_argument(c, x) for c, x in zip(instance.arguments, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        with ONE_AT_A_TIME:
            self._touch(*[x for x in arguments if type(x) is DeviceArray])
            self.done.append(instance.expression)
            self.seed += 1
            code = self._compiled.function(instance)(blocks, threads, self.seed, pointers)
        assert code == 0, f"{instance.expression}: threads wait for others that never come"

    def _touch(self, *arrays: DeviceArray) -> None:
        """Something is asked for that reads or writes the arrays: what it has to wait for is done."""
        with ONE_AT_A_TIME:
            for stream in self.streams:
                stream.before_kernels()
            self.streams.clear()
            self.asked += 1
            for array in arrays:
                assert array.data.device_id == self.number, "an array of another GPU"
                self.touched[span(array)] = self.asked

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        found = self.zeros(shape, dtype)
        found.view_on_host.reshape(-1).view(np.uint8)[:] = 0xFF  # nan, or -1
        return found

    def zeros(self, shape: Any, dtype: Any) -> DeviceArray:
        return on_device(np.zeros(shape, dtype), device_id=self.number)

    def put(self, array: np.ndarray) -> DeviceArray:
        assert isinstance(array, np.ndarray)
        return on_device(array, device_id=self.number)

    def read(self, array: DeviceArray) -> np.ndarray:
        assert isinstance(array, DeviceArray)
        if any(array is one for one in self._constants.values()):
            return array.view_on_host.copy()
        self._touch(array)
        self.done.append("read")
        return array.view_on_host.copy()

    def write(self, out: DeviceArray, array: np.ndarray) -> None:
        assert type(array) is np.ndarray
        assert (array.shape, array.dtype) == (out.shape, out.dtype)
        self._touch(out)
        out.view_on_host[...] = array

    def constant(self, numbers: tuple[int, ...]) -> DeviceArray:
        with ONE_AT_A_TIME:
            if numbers not in self._constants:
                self._constants[numbers] = self.put(np.array(numbers, np.int64))
            return self._constants[numbers]

    def argsort(self, keys: DeviceArray) -> DeviceArray:
        self._touch(keys)
        return self.put(np.argsort(keys.view_on_host, kind="stable"))

    def running_sum(self, x: DeviceArray) -> DeviceArray:
        self._touch(x)
        return self.put(np.cumsum(x.view_on_host, dtype=np.int64))

    def multiply_transposed(self, out: DeviceArray, a: DeviceArray, b: DeviceArray) -> None:
        self.multiply(out, a.T, b)

    def multiply(self, out: DeviceArray, a: DeviceArray, b: DeviceArray) -> None:
        assert out.flags.c_contiguous
        self._touch(out, a, b)
        self.done.append("multiply")
        np.matmul(a.view_on_host, b.view_on_host, out=out.view_on_host)

    multiply_alone = multiply

    def stream(self) -> LateStream:
        return LateStream(self)

    def pinned(self, count: int, dtype: Any) -> np.ndarray:
        return np.full(count * np.dtype(dtype).itemsize, UNTOUCHED, np.uint8).view(dtype)

    def pin(self, array: np.ndarray) -> None:
        assert type(array) is np.ndarray
        assert array.flags.c_contiguous

    def bus_id(self) -> str:
        return f"0000:{self.number:02x}:00.0"

    def nccl(self) -> Nccl:
        if self.nccl_module is None:
            raise RuntimeError("CuPy finds no NCCL: pip install nvidia-nccl-cu13")
        return Nccl(self.nccl_module)

    def free_bytes(self) -> int:
        return self.free

    def synchronize(self) -> None:
        self.done.append("synchronize")


class LateStream:
    """Copies that happen when somebody waits for them, and not before; an error where they may overtake kernels."""

    def __init__(self, device: OnCpu) -> None:
        self._device, self._followed = device, 0
        self._under_way: list[tuple[Any, Any]] = []  # out and array, one of the host's and one of the device's
        self._sums: list[Any] = []  # of NCCL, which are done when they have been seen to be
        self.ptr = id(self)
        STREAMS[self.ptr] = self

    def ask_sum(self, begin: int, end: int, asked: Any) -> None:
        """A sum of what is at these addresses: it has to wait for the kernels that were asked for before."""
        with ONE_AT_A_TIME:
            later = [when for (low, high), when in self._device.touched.items() if low < end and begin < high]
            assert max(later, default=0) <= self._followed, "the sum does not wait for a kernel"
            self._sums.append(asked)

    def mark(self) -> Any:
        sums = list(self._sums)
        return SimpleNamespace(done=lambda: all(one.look() for one in sums))

    def follow(self) -> None:
        self._followed = self._device.asked

    def to_host(self, out: np.ndarray, array: DeviceArray) -> None:
        self._ask(out, array, array, out)

    def to_device(self, out: DeviceArray, array: np.ndarray) -> None:
        self._ask(out, array, out, array)

    def _ask(self, out: Any, array: Any, there: DeviceArray, here: np.ndarray) -> None:
        assert type(there) is DeviceArray
        assert type(here) is np.ndarray
        assert there.flags.c_contiguous
        assert here.flags.c_contiguous
        assert (there.shape, there.dtype) == (here.shape, here.dtype)
        with ONE_AT_A_TIME:
            begin, end = span(there)
            later = [when for (low, high), when in self._device.touched.items() if low < end and begin < high]
            assert max(later, default=0) <= self._followed, "the copy does not wait for a kernel"
            self._under_way.append((out, array))

    def precede(self) -> None:
        with ONE_AT_A_TIME:
            self._device.streams.append(self)

    def before_kernels(self) -> None:
        """Up to the device now; what goes down is what is there now, but nobody may have it yet."""
        down = []
        for out, array in self._under_way:
            if type(out) is DeviceArray:
                out.view_on_host[...] = array
            else:
                down.append((out, array if type(array) is np.ndarray else array.view_on_host.copy()))
        self._under_way = down

    def synchronize(self) -> None:
        with ONE_AT_A_TIME:
            self.before_kernels()
            for out, array in self._under_way:
                out[...] = array
            self._under_way = []


def span(array: DeviceArray) -> tuple[int, int]:
    """From which address to which."""
    low, high = np.lib.array_utils.byte_bounds(array.view_on_host)
    return int(low), int(high)


def in_the_place_of_gpus(devices: Sequence[OnCpu], replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """From now on these are the GPUs of this machine, as far as hpcps can tell."""
    names = tuple("X (80 GiB)" for _ in devices)
    replace(found, "look", lambda: found.Found((13, 0), names, "cupy-cuda13x 14.2.0"))
    replace(table, "count", lambda: len(devices))
    replace(table, "table", lambda number: GpuKernels(devices[number]))
    hpcps_kernels.load.cache_clear()


def _argument(c_type: str, value: Any) -> Any:
    """The value as C takes it; wrong types are errors here, and chaos on a GPU."""
    if c_type.endswith("*"):
        assert type(value) is DeviceArray, (c_type, value)
        wanted = DTYPES[c_type.removesuffix("*").removeprefix("const").strip()]
        assert value.dtype == wanted, (c_type, value.dtype)
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.data.ptr)
    if c_type == "i64":
        assert type(value) is int, (c_type, value)
        return ctypes.c_longlong(value)
    assert c_type == "double"
    assert type(value) is float, (c_type, value)
    return ctypes.c_double(value)
