"""What many tests share: ranks as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hpcps.comm.local import LocalWorld
from hpcps.comm.transport import Transport

JOIN_S = 60


class Ranks:
    """Calls ``body(transport)`` on ``size`` threads and returns what each returned."""

    def __call__(
        self, size: int, body: Callable[[Transport], Any], timeout_s: float = 20, nodes: Sequence[str] = ()
    ) -> list[Any]:
        results, errors = self.run(size, body, timeout_s, nodes)
        for error in errors:
            if error is not None:
                raise error
        return results

    def run(
        self, size: int, body: Callable[[Transport], Any], timeout_s: float = 20, nodes: Sequence[str] = ()
    ) -> tuple[list[Any], list[Any]]:
        """The same, with what each rank raised instead of raising."""
        results: list[Any] = [None] * size
        errors: list[BaseException | None] = [None] * size

        def target(transport: Transport) -> None:
            try:
                results[transport.rank] = body(transport)
            except BaseException as error:
                errors[transport.rank] = error
                transport.abort(error)

        world = LocalWorld(size, timeout_s, nodes)
        threads = [threading.Thread(target=target, args=(one,), daemon=True) for one in world.transports()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
            assert not thread.is_alive(), "a rank hangs"
        if world.failure is not None:  # the cause first, then those that only heard of it
            errors.sort(key=lambda error: error is not world.failure[1])
        return results, errors


@pytest.fixture(scope="session")
def on_ranks() -> Ranks:
    """Ranks as threads of this process."""
    return Ranks()
