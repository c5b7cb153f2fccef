"""What is called now and then beside the interpreter."""

import ctypes
import os
import time

from hpcps_kernels.cpu.pulse import Pulse

BUSY_S = 0.5
CALLS = 10
"""In BUSY_S, at the least, of one a millisecond"""


def read(end):
    """How many bytes there are in a pipe, which is empty then."""
    try:
        return len(os.read(end, 1 << 16))
    except BlockingIOError:
        return 0


def test_a_busy_interpreter_does_not_stop_it_and_its_end_does():
    letter = ctypes.create_string_buffer(b"x")
    out, into = os.pipe2(os.O_NONBLOCK)
    function = ctypes.cast(ctypes.CDLL(None).write, ctypes.c_void_p).value
    pulse = Pulse(function, (into, ctypes.addressof(letter), 1), 0.001)
    try:
        assert read(out) == 0
        pulse.start()
        deadline = time.monotonic() + 30
        while read(out) == 0:
            assert time.monotonic() < deadline
        ctypes.PyDLL(None).usleep(int(BUSY_S * 1e6))  # which holds the interpreter's lock
        assert read(out) > CALLS
    finally:
        pulse.end()
    read(out)
    time.sleep(BUSY_S / 10)
    assert read(out) == 0
    os.close(out)
    os.close(into)
