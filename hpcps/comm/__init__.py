"""Moves buffers between ranks. Knows no model and no kernel: arithmetic is handed in."""

from hpcps.comm.transport import Ticket, Transport

__all__ = ["Ticket", "Transport"]
