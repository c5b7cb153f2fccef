"""Rows picked out of a data set, converted, shifted and scaled in one pass."""

from __future__ import annotations

from hpcps_kernels.cpu._jit import kernel
from hpcps_kernels.cpu._prefetch import prefetch
from hpcps_kernels.interface import Array

AHEAD_BYTES = 1024  # between the row that is converted and the one that is sent for
LINE_BYTES = 64


@kernel
def gather(out: Array, source: Array, index: Array, shift: Array, scale: Array) -> None:
    to = out.dtype.type
    line = LINE_BYTES // source.itemsize
    ahead = max(1, AHEAD_BYTES // max(1, source.shape[1] * source.itemsize))
    for i in range(index.shape[0]):
        if index[i] < 0 or index[i] >= source.shape[0]:
            raise IndexError("gather: an index is outside 0..N-1")
        soon = index[min(i + ahead, index.shape[0] - 1)]
        for d in range(0, source.shape[1], line):
            prefetch(source, soon, d)
        into, row = out[i], source[index[i]]
        for d in range(into.shape[0]):
            into[d] = (to(row[d]) - shift[d]) * scale[d]


@kernel
def gather_csr(
    out: Array, indptr: Array, indices: Array, values: Array, index: Array, shift: Array, scale: Array
) -> None:
    to = out.dtype.type
    for i in range(index.shape[0]):
        if index[i] < 0 or index[i] >= indptr.shape[0] - 1:
            raise IndexError("gather: an index is outside 0..N-1")
        into, start, stop = out[i], indptr[index[i]], indptr[index[i] + 1]
        if start < 0 or stop < start or stop > indices.shape[0]:
            raise IndexError("gather_csr: a row has entries outside the arrays or columns outside 0..D-1")
        for d in range(into.shape[0]):
            into[d] = (to(0) - shift[d]) * scale[d]
        for j in range(start, stop):
            d = indices[j]
            if d < 0 or d >= into.shape[0]:
                raise IndexError("gather_csr: a row has entries outside the arrays or columns outside 0..D-1")
            into[d] = (to(values[j]) - shift[d]) * scale[d]
