"""The launch table: each function of a .cu file is declared once, with its arguments and its grid.

A `Launch` is what Python calls. Its instances, one for each choice of its template's types, are compiled when they are
first launched. The same declarations are compiled and run by the tests, without a GPU.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hpcps_kernels.gpu._nccl import Nccl
from hpcps_kernels.interface import Array

THREADS = 256  # of a block
BLOCKS_EACH = 16  # at most, for a multiprocessor, of kernels that stride over the grid
C_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "f16",
    "int8": "i8",
    "uint8": "u8",
    "int16": "i16",
    "uint16": "u16",
    "int32": "i32",
    "int64": "i64",
    "uint32": "u32",
    "uint64": "u64",
}
FLOATS = ("float", "double")

Grid = Callable[[int, int], int]  # blocks for so much work on so many multiprocessors


def strides(each: int) -> Grid:
    """A block for each so many items, up to what keeps the device busy: where results do not depend on the grid."""
    return lambda work, multiprocessors: min(-(-work // each), multiprocessors * BLOCKS_EACH)


def one_each(work: int, multiprocessors: int) -> int:
    """A block for each item, whatever the device: where the grid is part of the order of a sum."""
    return work


@dataclass(frozen=True)
class Instance:
    """A function that a compiler can be asked for."""

    file: str
    expression: str  # its name in C++
    arguments: tuple[str, ...]  # their types in C++

    @property
    def declaration(self) -> str:
        """Has it compiled; an error where the arguments are others than those declared."""
        template = "template " if self.expression.endswith(">") else ""
        return f"{template}__global__ void {self.expression}({', '.join(self.arguments)});\n"


class Mark(Protocol):
    """A place among what a stream is asked for."""

    def done(self) -> bool:
        """Whether all up to here is done; kernels asked for after that see it. Never blocks."""


class Stream(Protocol):
    """Copies between the host and a device, one after the other, beside what kernels do. None of them blocks."""

    ptr: int
    """CUDA's own stream, for libraries that are asked for more than copies"""

    def follow(self) -> None:
        """Copies asked for from now on begin when all that kernels were asked for is done."""

    def to_host(self, out: Array, array: Any) -> None:
        """Overwrite ``out``, C-contiguous; it may not be read before :meth:`synchronize`."""

    def to_device(self, out: Any, array: Array) -> None:
        """Overwrite ``out``, C-contiguous; ``array`` may not be changed before :meth:`synchronize`."""

    def precede(self) -> None:
        """Kernels asked for from now on begin when all copies asked for are done."""

    def mark(self) -> Mark:
        """The end of what was asked for so far."""

    def synchronize(self) -> None:
        """Block until all copies are done."""


class Device(Protocol):
    """What the host's side of a kernel needs: memory, launches, and what CuPy does itself; and what training needs
    beside kernels: products, copies, memory of the host that copies are fastest with."""

    number: int
    array: type[Any]
    multiprocessors: int

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...
    def launch(self, instance: Instance, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None: ...
    def empty(self, shape: Any, dtype: DTypeLike) -> Any: ...
    def zeros(self, shape: Any, dtype: DTypeLike) -> Any: ...
    def put(self, array: Array) -> Any: ...
    def read(self, array: Any) -> Array: ...

    def constant(self, numbers: tuple[int, ...]) -> Any:
        """These numbers, int64, in memory that nobody may write to: for those that are needed again and again. `read`
        does not wait for them."""

    def argsort(self, keys: Any) -> Any: ...
    def running_sum(self, x: Any) -> Any: ...
    def multiply_transposed(self, out: Any, a: Any, b: Any) -> None: ...

    def multiply(self, out: Any, a: Any, b: Any) -> None:
        """out = a @ b, (m, n) C-contiguous; ``a`` and ``b`` may be transposed views."""

    def multiply_alone(self, out: Any, a: Any, b: Any) -> None:
        """The same, with bits that do not depend on where ``out`` and ``a`` begin."""

    def write(self, out: Any, array: Array) -> None:
        """Overwrite ``out``, C-contiguous, with a host's array; ``array`` may be changed as soon as it returns."""

    def stream(self) -> Stream: ...

    def pinned(self, count: int, dtype: DTypeLike) -> Array:
        """Memory of the host that is not paged, uninitialised."""

    def pin(self, array: Array) -> None:
        """Have memory of the host not paged while the array lives, if the driver can; else copies are slower."""

    def bus_id(self) -> str:
        """Where in this machine the GPU is: no other one has the same."""

    def nccl(self) -> Nccl:
        """Raises RuntimeError, in one line, where there is none."""

    def free_bytes(self) -> int:
        """Memory that is left."""

    def synchronize(self) -> None:
        """Block until all that kernels were asked for is done."""


TABLE: list[Launch] = []
_CURRENT = threading.local()


@dataclass(frozen=True)
class Launch:
    """A function of FILE.cu. `arguments` are C++ types, in which the letters of `template` stand for its types."""

    file: str
    function: str
    arguments: str
    grid: Grid
    template: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    threads: int = THREADS

    def __post_init__(self) -> None:
        TABLE.append(self)

    def __call__(self, work: int, *arguments: Any, **template: Any) -> None:
        """Launch it for so much work, with `template` dtypes or C++ names, after what is under way; does not block."""
        here = device()
        blocks = self.grid(work, here.multiprocessors)
        if blocks:
            here.launch(_instance(self, tuple(map(_c_type, template.values()))), blocks, self.threads, arguments)

    def instances(self) -> list[Instance]:
        """All that there are."""
        return [self.instance(*chosen) for chosen in product(*self.template.values())]

    def instance(self, *types: str) -> Instance:
        """The one for these types, in the order of the template."""
        return _instance(self, types)

    def __hash__(self) -> int:
        return id(self)


@functools.cache
def _instance(launch: Launch, chosen: tuple[str, ...]) -> Instance:
    types = dict(zip(launch.template, chosen, strict=True))
    for letter, one in types.items():
        assert one in launch.template[letter], f"{launch.function}: {letter} = {one}"
    words = [[types.get(word, word) for word in argument.split()] for argument in launch.arguments.split(",")]
    name = launch.function + (f"<{', '.join(chosen)}>" if chosen else "")
    return Instance(launch.file, name, tuple(" ".join(one) for one in words))


@functools.cache
def _c_type(dtype: Any) -> str:
    return dtype if isinstance(dtype, str) else C_TYPES[np.dtype(dtype).name]


def device() -> Device:
    """The device that this thread's kernels are for."""
    found: Device = _CURRENT.device
    return found


class Use:
    """``with Use(device):`` kernels of this thread are for it."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._before = getattr(_CURRENT, "device", None)
        self._device.__enter__()
        _CURRENT.device = self._device

    def __exit__(self, *error: object) -> None:
        _CURRENT.device = self._before
        self._device.__exit__(*error)


def on(device: Device, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, always on this device."""

    @functools.wraps(kernel)
    def call(*arguments: Any) -> Any:
        with Use(device):
            return kernel(*arguments)

    return call
