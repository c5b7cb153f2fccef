"""Small facts that ranks share while a job is set up: one rank's finding, everybody's findings, anybody's error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np

from hpcps import errors
from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport
from hpcps.errors import HpcpsError

Result = TypeVar("Result")


class Together:
    """The ranks of a transport, deciding together. Every method is a collective: all ranks call it, in one order."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.rank = transport.rank
        self.size = transport.size

    def gather(self, values: Array) -> Array:
        """One-dimensional arrays of any length and one dtype: all of them, joined in rank order."""
        counts = np.zeros(self.size, np.int64)
        counts[self.rank] = len(values)
        ring.all_gather(self.transport, counts)
        bounds = [0, *np.cumsum(counts).tolist()]
        joined = np.empty(bounds[-1], values.dtype)
        joined[bounds[self.rank] : bounds[self.rank + 1]] = values
        ring.all_gather(self.transport, joined, bounds)
        return joined

    def once(self, make: Callable[[], Array]) -> Array:
        """Call ``make`` on rank 0 and give its one-dimensional array to all. Its HpcpsError is raised on all."""
        made: Array | None = None
        error: HpcpsError | None = None
        if self.rank == 0:
            try:
                made = np.ascontiguousarray(make())
            except HpcpsError as raised:
                error = raised
        self.agree(error)
        kind = np.frombuffer(made.dtype.str.encode() if made is not None else b"", np.uint8)
        dtype = np.dtype(self.gather(kind).tobytes().decode())
        return self.gather(made if made is not None else np.empty(0, dtype))

    def agree(self, error: HpcpsError | None) -> None:
        """Raise on all ranks the error of the lowest rank that has one; return if none has."""
        note = [self.rank, type(error).__name__, str(error)] if error is not None else None
        line = (json.dumps(note) + "\n").encode() if note else b""
        notes = self.gather(np.frombuffer(line, np.uint8)).tobytes().decode().splitlines()
        if notes:
            rank, kind, message = json.loads(notes[0])
            raised: HpcpsError = getattr(errors, kind, HpcpsError)(message)
            raised.known_to_all = True
            raise raised from (error if rank == self.rank else None)

    def attempt(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` on every rank; if it raises an HpcpsError on any, raise that on all."""
        result: Result | None = None
        error: HpcpsError | None = None
        try:
            result = work()
        except HpcpsError as raised:
            error = raised
        self.agree(error)
        return cast(Result, result)
