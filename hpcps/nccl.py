"""Sums of gradients by NCCL: from GPU to GPU, within nodes and between them, without the host's memory.

NCCL adds in an order of its own, takes no codes, and wants a GPU for each rank. A sum waits for peers on the GPU,
without end: so the host looks whether it is done, for as long as any wait may take, and ends it else.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps.collectives.engine import Start
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Patience, Transport
from hpcps.config import Config
from hpcps.device import Array, Device, Gpu
from hpcps.errors import CommError, CommTimeout, ConfigError, PeerLost
from hpcps.reduction import Whole
from hpcps.together import Together

BUSY_LOOKS = 1000
"""After so many a wait sleeps between two."""
LOOK_S = 50e-6
ABORT_S = 5.0
"""An end that has not come by then is waited for no longer: some versions of NCCL hang there."""


def choose(config: Config, strategy: str, together: Together, device: Device, node: str) -> bool:
    """Whether NCCL sums the dense gradients: where it is asked for, and with "auto" where it can. A collective of all
    ranks, which find the same. Raises ConfigError, on all of them, where it is asked for and cannot."""
    train = config.train
    is_plain = strategy == "ring" and not train.reproducible and config.compress.kind == "none"
    if not isinstance(device, Gpu) or not is_plain or train.algorithm not in ("auto", "nccl") or together.size == 1:
        return False
    reason = why_not(together, device, node)
    if reason and train.algorithm == "nccl":
        error = ConfigError(f"train.algorithm = 'nccl': {reason}; use 'auto'")
        error.known_to_all = True
        raise error
    return not reason


def why_not(together: Together, device: Gpu, node: str) -> str:
    """Why these ranks, each with a ``device`` of its ``node``, cannot sum by NCCL; "" where they can. A collective."""
    with device.below as below:
        place = f"{node} at {below.bus_id()}"
        try:
            below.nccl()
            obstacle = ""
        except RuntimeError as error:
            obstacle = " ".join(str(error).split())
    told = f"{place}\t{node} {process()}\t{obstacle}\n".encode("utf-8", "backslashreplace")
    lines = together.gather(np.frombuffer(told, np.uint8)).tobytes().decode().splitlines()
    places, processes, obstacles = zip(*(line.split("\t") for line in lines), strict=True)
    for rank, found in enumerate(obstacles):
        if found:
            return f"rank {rank}: {found}"
    for what, of_all in (("the GPU of", places), ("process", processes)):
        twin = next((rank for rank, one in enumerate(of_all) if of_all.index(one) < rank), None)
        if twin is not None:
            of_what = f"{what} {of_all[twin]}"
            return f"ranks {of_all.index(of_all[twin])} and {twin} share {of_what}, and each needs its own"
    return ""


def process() -> int:
    """The number of this process. Ranks that are threads of one have to go without: what one of them asks its GPU for
    may wait for a sum that another one cannot begin meanwhile."""
    return os.getpid()


class GpuSums:
    """What sums arrays of the workers' GPUs. Making it is a collective; all ask for sums in one order.

    Waits end after the transport's timeout, with CommTimeout, or PeerLost where NCCL or the transport knows of a peer
    that has failed; then no sum is under way any more. Raises CommError where NCCL cannot be set up.
    """

    def __init__(self, device: Gpu, workers: Transport) -> None:
        self._device, self._workers = device, workers
        self._communicator: Any = None
        with device.below as below:
            self._stream = below.stream()
        unique_id = Meeting(workers).once(self._unique_id)
        self._communicator = self._joined(unique_id.tobytes())
        self._end = weakref.finalize(self, self._communicator.abort)

    def prepare(self, x: Array) -> Start:
        """A function that begins a sum of all workers' ``x``, (n,), in place; kernels asked for after its wait see the
        sum."""

        def begin() -> GpuSum:
            try:
                with self._device.below:
                    self._stream.follow()
                    self._communicator.add_up(x, self._stream)
                    return GpuSum(self, self._stream.mark(), len(x))
            except RuntimeError as error:
                raise self._failed(error) from error

        return begin

    def wait(self, is_done: Callable[[], bool], what: str) -> None:
        """Block until ``is_done``; ``what`` says in an error what was waited for."""
        patience, looks = Patience(), 0
        try:
            while not is_done():
                looks += 1
                time.sleep(0 if looks < BUSY_LOOKS else LOOK_S)
                self._look(patience.waited_s(), what)
        except CommError:
            self._give_up()
            raise
        except RuntimeError as error:  # of CUDA
            self._give_up()
            raise self._failed(error) from error

    def _look(self, waited_s: float, what: str) -> None:
        """Raise what is known to be wrong."""
        self._workers.check()
        problem = "" if self._communicator is None else self._communicator.problem()
        is_late = waited_s > self._workers.timeout_s
        if not problem and not is_late:
            return
        me, all_numbers = self._workers.numbers[self._workers.rank], self._workers.numbers
        others = [str(number) for number in all_numbers if number != me]
        names = f"rank{'s' * (len(others) > 1)} {', '.join(others)}"
        if problem:
            raise PeerLost(f"rank {me}: NCCL could not {what} with {names}: {problem}")
        waited = f"rank {me} waited {self._workers.timeout_s:g} s to {what} with {names}, by NCCL"
        raise CommTimeout(f"{waited}; a longer wait is run.timeout_s")

    def _unique_id(self) -> Array:
        try:
            with self._device.below as below:
                return np.frombuffer(below.nccl().unique_id(), np.uint8)
        except RuntimeError as error:
            raise self._failed(error) from error

    def _joined(self, unique_id: bytes) -> Any:
        """This rank's end of the communicator: made by a thread that nobody waits for if a peer does not come. One that
        is made when nobody waits for it is aborted."""
        made: list[Any] = []
        errors: list[BaseException] = []
        is_wanted, lock = True, threading.Lock()

        def make() -> None:
            try:
                with self._device.below as below:
                    end = below.nccl().communicator(self._workers.size, unique_id, self._workers.rank)
                    with lock:
                        made.append(end)
                        is_late = not is_wanted
                    if is_late:
                        end.abort()
            except BaseException as error:
                errors.append(error)

        threading.Thread(target=make, daemon=True, name="nccl").start()
        try:
            self.wait(lambda: bool(made or errors), "make a communicator")
        except CommError:
            with lock:
                is_wanted = False
                unwanted = list(made)
            for end in unwanted:
                _abort(end.abort)
            raise
        for error in errors:
            if isinstance(error, RuntimeError):
                raise self._failed(error) from error
            raise error
        return made[0]

    def _failed(self, error: RuntimeError) -> CommError:
        told = " ".join(str(error).split())
        number = self._workers.numbers[self._workers.rank]
        return CommError(f"rank {number}: NCCL: {told}; train.algorithm = 'ring' sums in the host's memory")

    def _give_up(self) -> None:
        """End what is under way, so that the GPU is free and nothing that waits for it hangs."""
        if self._communicator is not None:
            _abort(self._end)


def _abort(end: Callable[[], object]) -> None:
    """Call what may hang."""
    thread = threading.Thread(target=end, daemon=True, name="nccl-abort")
    thread.start()
    thread.join(ABORT_S)


class GpuSum:
    """One sum on its way."""

    def __init__(self, sums: GpuSums, mark: Any, count: int) -> None:
        self._sums, self._mark, self._count = sums, mark, count

    def done(self) -> bool:
        return bool(self._mark.done())

    def wait(self) -> None:
        self._sums.wait(self._mark.done, f"sum {self._count:,} numbers")


def reduction(sums: GpuSums, count: int) -> Whole:
    """All workers update all of the bucket, of ``count`` parameters, where they are."""
    return Whole("NCCL, from GPU to GPU", sums.prepare, count)
