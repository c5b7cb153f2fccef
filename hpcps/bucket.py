"""Neighbouring dense parameters whose gradient is all-reduced as one, with what their update needs."""

from __future__ import annotations

from hpcps.collectives.pending import Pending
from hpcps.comm.transport import Array
from hpcps.device import HOST, Device, edited
from hpcps.optim import Optimizer
from hpcps.published import Kept, Published, Update
from hpcps.reduction import Reduction
from hpcps.snapshot import Flat, Pieces, Snapshot, in_memory


class Bucket:
    """Neighbouring dense parameters whose gradient is summed as one: ``params[where]``.

    ``gradient``: of all dense parameters, (n,), or pieces of it (m, n); the same array in every step. ``device``: where
    these arrays are; ``kept``: what of all gradients this rank reads itself.
    """

    def __init__(
        self,
        where: slice,
        reduction: Reduction,
        params: Array,
        gradient: Array,
        optimizer: Optimizer,
        gradient_scale: float,
        device: Device = HOST,
        kept: Kept | None = None,
    ) -> None:
        mine, given = params[where][reduction.part], gradient[..., where]
        self._mine, self._state = mine, optimizer.init(mine)
        apart, together = optimizer.prepare, optimizer.prepare_summed
        shown = reduction.show(given, is_wanted=together is not None)
        self._sum = reduction.prepare(given) if shown is None else shown.start

        def make(array: Array) -> Update:
            if together is None or shown is None:
                summed = (given if given.ndim == 1 else given[0])[reduction.part]
                return apart(array, self._state, summed, gradient_scale)
            return together(array, self._state, shown.gradients, shown.column, gradient_scale)

        self._where, self._start, self._residuals = where, where.start + reduction.part.start, reduction.residuals
        self._kept = kept
        self._update = Published(mine, make, device.kernels, self._go_past) if reduction.is_read else make(mine)
        self._spread = reduction.prepare_spread(params[where])
        self._device = device
        self._is_shared_out = len(mine) < where.stop - where.start
        self.pending: Pending | None = None

    def pieces(self, rank: int, count: int) -> Pieces:
        """What worker ``rank`` has of the state: the part that it updates; the first worker, where all update all.
        ``count``: of how many dense parameters."""
        flats = []
        if rank == 0 or self._is_shared_out:
            arrays = {"parameters": self._mine} | {f"state.{name}": array for name, array in self._state.items()}
            flats = [Flat(name, self._start, in_memory(array, self._device.read)) for name, array in arrays.items()]
        for name, (start, residual) in self._residuals.items():
            at = self._where.start + start
            named = ("residual.sum", at) if name else ("residual", rank * count + at)
            flats.append(Flat(*named, in_memory(residual)))
        return Pieces(flats)

    def restore(self, snapshot: Snapshot, rank: int, workers: int, count: int) -> None:
        """Take over what worker ``rank`` is to have of a snapshot."""
        for name, array in self._state.items():
            with edited(self._device, array) as here:
                snapshot.fill_state(here, name, self._start)
        for name, (start, residual) in self._residuals.items():
            at = self._where.start + start
            if not name:
                has_sums = "sum" in self._residuals
                snapshot.fill_residual(residual, at, count, rank, workers, has_sums)
            elif snapshot.has("residual.sum"):
                snapshot.fill(residual, "residual.sum", at)

    def start(self) -> None:
        """Begin the sum of the bucket's part of the gradient, or to wait for that of others."""
        self.pending = self._sum()

    def update(self, step: int) -> Pending:
        """Wait for the sum, apply it, and begin to bring the parameters to all workers."""
        assert self.pending is not None
        self.pending.wait()
        self.pending = None
        self._update(step)
        return self._spread()

    def _go_past(self, is_past: bool) -> None:
        """Have what others read of the gradient written past the caches, too, or no more."""
        if self._kept is not None:
            mine = slice(self._start, self._start + len(self._mine))
            self._kept.change(self._where, mine if is_past else self._where)
