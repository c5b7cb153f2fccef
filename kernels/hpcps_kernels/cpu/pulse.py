"""A function of C called now and then, beside whatever the interpreter is busy with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import kernel
from hpcps_kernels.cpu._memory import load_acquire

ARGUMENTS = 5


class Pulse:
    """Calls ``int function(...)`` of C, at ``address``, with up to five integers or pointers as ``arguments``, every
    ``period_s``: on a thread that holds no lock of the interpreter, so that one that is busy for seconds does not stop
    it. It is compiled, or loaded from disk, when it is made; the calls begin with :meth:`start`.
    """

    def __init__(self, address: int, arguments: Sequence[int], period_s: float) -> None:
        self._ends = np.ones(1, np.int64)
        passed = np.zeros(ARGUMENTS, np.int64)
        passed[: len(arguments)] = arguments
        self._line = (address, passed, max(1, round(period_s * 1e6)), self._ends.ctypes.data)
        self._run()  # it has ended: it is compiled by then
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._ends[0] = 0
        self._thread.start()

    def _run(self) -> None:
        call_until(*self._line)

    def end(self) -> None:
        """Blocks until the last call has returned."""
        self._ends[0] = 1
        self._thread.join()


def _call(typing_context: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Call a function of C; words in the places of int are cut off by it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), [cgutils.intp_t] * ARGUMENTS)
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (1 + ARGUMENTS)), generate


call: Any = intrinsic(_call)
usleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))


@kernel
def call_until(address: int, arguments: Any, period_us: int, ends: int) -> None:
    """Call the function every ``period_us`` until the int64 at the address ``ends`` is not 0."""
    while load_acquire(ends) == 0:
        call(address, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4])
        usleep(period_us)
