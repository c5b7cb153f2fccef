"""Gradients in fewer bytes on their way to a shard; what a letter leaves out is kept and begins the next one.

What a worker pulls is whole: parameters cannot be sent later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned
from hpcps.comm.codes import Code
from hpcps.comm.transport import Array


class Encoder:
    """What a worker pushes to one shard, (count,), as codes; it keeps what they leave out."""

    def __init__(self, code: Code, count: int, dtype: DTypeLike) -> None:
        self.message = aligned.empty(code.message_bytes(count), np.uint8)
        self._code = code
        self.residual = aligned.zeros(count, dtype)
        """What messages have left out"""

    def encode(self, x: Array) -> Array:
        """Overwrite ``message`` with the codes of ``x`` and of what was left out before; returns it. Raises
        NotFiniteError."""
        self._code.encode(self.message, self.residual, x)
        return self.message
