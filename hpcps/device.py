"""Where the arrays of a training live: in the host's memory, or on a GPU.

A kernels' table and the memory that its kernels take are all that differs between the two. Models, sums, optimisers and
loaders ask the device of their kernels for memory; it is here that arrays go from one side to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import hpcps_kernels
import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned
from hpcps.errors import ConfigError, HpcpsError

Array = np.ndarray[Any, Any]
"""NumPy's, or the device's: CuPy's arrays are used as NumPy's are, but never in the place of one another"""
Shape = int | tuple[int, ...]


class Device(Protocol):
    """Memory, and what is done with it beside kernels. On the host, what moves arrays gives them back as they are."""

    name: str
    is_host: bool
    kernels: Any

    def empty(self, shape: Shape, dtype: DTypeLike) -> Array:
        """An uninitialised array of the device, C-contiguous."""

    def scratch(self, shape: Shape, dtype: DTypeLike) -> Array:
        """The same for what is needed once: made sooner, and begins anywhere."""

    def zeros(self, shape: Shape, dtype: DTypeLike) -> Array:
        """An array of zeros of the device, C-contiguous."""

    def put(self, array: Array) -> Array:
        """The array on the device: itself if it is there, else a copy."""

    def constant(self, numbers: Array) -> Array:
        """These numbers, (n,) int64 of the host, on the device, where nobody may write to them; to read them there is
        no need to wait."""

    def read(self, array: Array) -> Array:
        """The array on the host: itself if it is there, else a copy, for which it waits."""

    def write(self, out: Array, array: Array) -> None:
        """Overwrite ``out``, of the device, with an array of the host. On the host they may be the same."""

    def matmul(self, out: Array, a: Array, b: Array) -> None:
        """out = a @ b; one of ``a`` and ``b`` may be the transpose of an array. Shares no memory with them."""

    def product(self, out: Array, a: Array, b: Array, kept: Array | None = None) -> tuple[Any, ...]:
        """The same as a function and its arguments, for who calls it again and again. ``kept``, for the transpose of an
        array with another: which numbers of ``out`` others do not read, (2,), all if None; see kernel ``gemm_tn``."""

    def matmul_grains(self, out: Array, a: Array, b: Array, bounds: Array) -> None:
        """The same for the grains of a batch: the rows ``bounds[g]`` to ``bounds[g + 1] - 1`` have the bits of a call
        for them alone. ``bounds``: (grains + 1,), on the host."""


class Host:
    """NumPy's arrays; those that stay begin at a cache line."""

    name: str = "cpu"
    is_host: bool = True

    def __init__(self, kernels: Any = None) -> None:
        self.kernels = kernels

    def empty(self, shape: Shape, dtype: DTypeLike) -> Array:
        return aligned.empty(shape, dtype)

    def scratch(self, shape: Shape, dtype: DTypeLike) -> Array:
        return np.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: DTypeLike) -> Array:
        return aligned.zeros(shape, dtype)

    def put(self, array: Array) -> Array:
        return array

    constant = put

    def read(self, array: Array) -> Array:
        return array

    def write(self, out: Array, array: Array) -> None:
        if out is not array:
            out[...] = array

    def matmul(self, out: Array, a: Array, b: Array) -> None:
        kernel, *arguments = self.product(out, a, b)
        kernel(*arguments)

    def product(self, out: Array, a: Array, b: Array, kept: Array | None = None) -> tuple[Any, ...]:
        if not a.flags.c_contiguous:
            return self.kernels.gemm_tn, out, a.T, b, np.array([0, out.size]) if kept is None else kept
        if not b.flags.c_contiguous:
            return self.kernels.gemm_nt, out, a, b.T
        return self.kernels.gemm_nn, out, a, b

    def matmul_grains(self, out: Array, a: Array, b: Array, bounds: Array) -> None:
        """One call: the bits of a row do not depend on other rows."""
        self.matmul(out, a, b)


class Gpu:
    """Arrays in the memory of one GPU. ``sharing``: how many ranks use it; ``name`` says which GPU it is."""

    is_host: bool = False

    def __init__(self, kernels: Any, sharing: int = 1) -> None:
        self.kernels = kernels
        self.below = kernels.device
        """What the kernels run on: see :class:`hpcps_kernels.gpu._launch.Device`"""
        self.sharing = sharing
        self.name = f"GPU {self.below.number}"

    def empty(self, shape: Shape, dtype: DTypeLike) -> Array:
        with self._taking_memory():
            array: Array = self.below.empty(shape, dtype)
            return array

    scratch = empty

    def zeros(self, shape: Shape, dtype: DTypeLike) -> Array:
        with self._taking_memory():
            array: Array = self.below.zeros(shape, dtype)
            return array

    def put(self, array: Array) -> Array:
        if not isinstance(array, self.below.array):
            with self._taking_memory():
                array = self.below.put(array)
        return array

    def constant(self, numbers: Array) -> Array:
        with self._taking_memory():
            found: Array = self.below.constant(tuple(numbers.tolist()))
            return found

    def read(self, array: Array) -> Array:
        if isinstance(array, self.below.array):
            with self.below:
                array = self.below.read(array)
        return array

    def write(self, out: Array, array: Array) -> None:
        with self.below:
            self.below.write(out, array)

    def matmul(self, out: Array, a: Array, b: Array) -> None:
        with self.below:
            self.below.multiply(out, a, b)

    def product(self, out: Array, a: Array, b: Array, kept: Array | None = None) -> tuple[Any, ...]:
        return self.matmul, out, a, b

    def matmul_grains(self, out: Array, a: Array, b: Array, bounds: Array) -> None:
        with self.below:
            for low, high in pairwise(bounds):
                self.below.multiply_alone(out[low:high], a[low:high], b)

    def free_bytes(self) -> int:
        """What a rank may take of the memory that is left."""
        with self.below:
            return int(self.below.free_bytes()) // self.sharing

    def synchronize(self) -> None:
        """Block until all that kernels were asked for is done."""
        with self.below:
            self.below.synchronize()

    @contextmanager
    def _taking_memory(self) -> Iterator[None]:
        try:
            with self.below:
                yield
        except MemoryError as error:
            remedy = "a smaller train.batch, or fewer ranks on it, may help"
            raise HpcpsError(f"{self.name}: its memory is full ({' '.join(str(error).split())}); {remedy}") from None


HOST: Device = Host()
"""The host's memory, where there is no talk of kernels"""


def of(kernels: Any) -> Device:
    """Where the arrays are that a back end's kernels take."""
    return Host(kernels) if getattr(kernels, "device", None) is None else Gpu(kernels)


def open_gpu(near: int, ranks: int) -> Gpu:
    """The GPU of rank ``near`` of the ``ranks`` of this node, which take the GPUs in turn. Raises ConfigError, in one
    line, where there is none, or no CuPy that fits."""
    from hpcps_kernels.gpu import found, table

    obstacle = found.look().obstacle
    try:
        if obstacle:
            raise RuntimeError(obstacle)
        count = table.count()
        number = near % count
        kernels = hpcps_kernels.load("gpu", number)
    except RuntimeError as error:
        why = str(error).removeprefix("kernels: ")
        raise ConfigError(f"run.device = 'cuda': {why}; run.device = 'cpu' trains without") from None
    return Gpu(kernels, -(-(ranks - number) // count))


@contextmanager
def edited(device: Device, array: Array) -> Iterator[Array]:
    """An array of the device, for the time being on the host; there it may be changed."""
    here = device.read(array)
    yield here
    device.write(array, here)


@contextmanager
def filled(device: Device, array: Array) -> Iterator[Array]:
    """Memory of the device, to be filled there, that becomes the contents of ``array``, which is on the host."""
    there = array if device.is_host else device.empty(array.shape, array.dtype)
    yield there
    if not device.is_host:
        array[...] = device.read(there)
