"""A device that is none: kernels of .cu files compiled by g++ and run on the CPU, on arrays as strict as CuPy's."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hpcps_kernels.gpu._launch import C_TYPES, TABLE, Instance
from hpcps_kernels.gpu._source import source

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-shared", "-fPIC"]
DTYPES = {c: np.dtype(name) for name, c in C_TYPES.items()}
MARGIN = 64  # bytes in front of and behind an array, which no kernel may touch
UNTOUCHED = 0xA5


class DeviceArray:
    """Memory that only kernels see: what of CuPy's arrays hpcps uses, and nothing that NumPy would do by itself."""

    def __init__(self, view: np.ndarray, room: np.ndarray, device_id: int = 0) -> None:
        self.view_on_host, self.room = view, room
        self.data = SimpleNamespace(ptr=view.ctypes.data, device_id=device_id)
        self.shape, self.dtype, self.ndim, self.size = view.shape, view.dtype, view.ndim, view.size
        self.nbytes, self.itemsize, self.strides = view.nbytes, view.itemsize, view.strides
        self.flags = SimpleNamespace(c_contiguous=view.flags.c_contiguous)

    def reshape(self, *shape: Any) -> DeviceArray:
        return DeviceArray(self.view_on_host.reshape(*shape), self.room)

    def view(self, dtype: Any) -> DeviceArray:
        return DeviceArray(self.view_on_host.view(dtype), self.room)

    def __getitem__(self, part: Any) -> DeviceArray:
        return DeviceArray(self.view_on_host[part], self.room)

    def __len__(self) -> int:
        return len(self.view_on_host)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __bool__(self) -> bool:
        raise TypeError("reads the device")


def on_device(array: np.ndarray, misaligned: int = 0) -> DeviceArray:
    """A copy that begins at 64 bytes, or so many elements after that."""
    before = MARGIN + misaligned * array.itemsize
    room = np.full(before + array.nbytes + MARGIN + 64, UNTOUCHED, np.uint8)
    first = -room.ctypes.data % 64 + before
    memory = room[first : first + array.nbytes]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    return DeviceArray(view, room)


def margins_are_untouched(array: DeviceArray) -> bool:
    """Whether nothing was written beside it. Views are not looked at: their margins are parts of an array."""
    view, room = array.view_on_host, array.room
    first = view.ctypes.data - room.ctypes.data
    beside = np.concatenate([room[first - MARGIN : first], room[first + view.nbytes :][:MARGIN]])
    return bool((beside == UNTOUCHED).all())


class Compiled:
    """The .cu files, each compiled once, side by side, when the first of its kernels is wanted or before."""

    def __init__(self, folder: Path, change: Callable[[str], str] = lambda text: text) -> None:
        self._folder, self._change = folder, change
        self._pool = ThreadPoolExecutor(2)
        self._libraries: dict[str, Future[ctypes.CDLL]] = {}

    def start(self) -> None:
        for file in sorted({launch.file for launch in TABLE}):
            self._library(file)

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
        text, library = self._folder / f"{file}.cpp", self._folder / f"{file}.so"
        wrappers = [_wrapper(number, one) for number, one in enumerate(instances(file))]
        text.write_text(f'#include "{HEADER}"\n{self.text(file)}\n#line 1 "wrappers"\n' + "\n".join(wrappers))
        command = ["g++", *FLAGS, str(text), "-o", str(library)]
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


class OnCpu:
    """Launches as the table declares them, every argument's type checked; the order of threads goes by ``seed``."""

    number = 0
    array = DeviceArray

    def __init__(self, compiled: Compiled, multiprocessors: int = 2, seed: int = 0) -> None:
        self._compiled, self.multiprocessors, self.seed = compiled, multiprocessors, seed
        self.done: list[str] = []  # what was launched and read, in order

    def __enter__(self) -> OnCpu:
        return self

    def __exit__(self, *error: object) -> None: ...

    def launch(self, instance: Instance, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        values = [_argument(c, x) for c, x in zip(instance.arguments, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self.done.append(instance.expression)
        self.seed += 1
        code = self._compiled.function(instance)(blocks, threads, self.seed, pointers)
        assert code == 0, f"{instance.expression}: threads wait for others that never come"

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        found = on_device(np.zeros(shape, dtype))
        found.view_on_host.reshape(-1).view(np.uint8)[:] = 0xFF  # nan, or -1
        return found

    def zeros(self, shape: Any, dtype: Any) -> DeviceArray:
        return on_device(np.zeros(shape, dtype))

    def put(self, array: np.ndarray) -> DeviceArray:
        return on_device(array)

    def read(self, array: DeviceArray) -> np.ndarray:
        assert isinstance(array, DeviceArray)
        self.done.append("read")
        return array.view_on_host.copy()

    def argsort(self, keys: DeviceArray) -> DeviceArray:
        return on_device(np.argsort(keys.view_on_host, kind="stable"))

    def running_sum(self, x: DeviceArray) -> DeviceArray:
        return on_device(np.cumsum(x.view_on_host, dtype=np.int64))

    def multiply_transposed(self, out: DeviceArray, a: DeviceArray, b: DeviceArray) -> None:
        np.matmul(a.view_on_host.T, b.view_on_host, out=out.view_on_host)


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
