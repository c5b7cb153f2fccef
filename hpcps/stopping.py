"""Signals that tell a run to stop after one more checkpoint. They set a flag, and nothing else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class Stop:
    """``signal``: the number of the first that came, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal."""
        self.signal = self.signal or number


@contextmanager
def listening(names: Sequence[str]) -> Iterator[Stop | None]:
    """Note these signals (``USR1``, ``TERM``) as long as this lasts; None where there are none. Only a process's main
    thread can: in another one nothing is noted."""
    stop = Stop() if names else None
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [signal.Signals[f"SIG{name}"] for name in names] if is_main else []
    before = {number: signal.signal(number, stop.handle) for number in numbers if stop is not None}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
