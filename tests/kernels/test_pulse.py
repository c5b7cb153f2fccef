"""What is called now and then beside the interpreter."""

import ctypes
import time

from hpcps_kernels.cpu.pulse import Pulse

QUIET_S = 0.05
BUSY_S = 0.5


def test_a_busy_interpreter_does_not_stop_it_and_its_end_does():
    counter = (ctypes.c_int64 * 2)(0, 0)
    # clock_gettime(CLOCK_MONOTONIC, &counter): a function that leaves the time of the last call
    function = ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value
    pulse = Pulse(function, (time.CLOCK_MONOTONIC, ctypes.addressof(counter)), 0.001)
    assert counter[0] == 0
    pulse.start()
    deadline = time.monotonic() + 30
    while counter[0] == 0:
        assert time.monotonic() < deadline
        time.sleep(QUIET_S)
    before = time.monotonic_ns()
    ctypes.PyDLL(None).usleep(int(BUSY_S * 1e6))  # which holds the interpreter's lock
    assert counter[0] * 1_000_000_000 + counter[1] > before
    pulse.end()
    last = list(counter)
    time.sleep(QUIET_S)
    assert list(counter) == last
