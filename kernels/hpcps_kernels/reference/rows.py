"""Rows picked out of a data set, converted, shifted and scaled on the way."""

from __future__ import annotations

from hpcps_kernels.interface import Array


def gather(out: Array, source: Array, index: Array, shift: Array, scale: Array) -> None:
    """out[i] = (source[index[i]] - shift) * scale in F; overwrites out.

    out (m, D) F; source (N, D) of any small integer or float dtype, converted to F first; index (m,) int64;
    shift, scale (D,) F. Raises IndexError for an index outside 0..N-1.
    """
    _check_index(index, len(source))
    out[:] = (source[index].astype(out.dtype) - shift) * scale


def gather_csr(
    out: Array, indptr: Array, indices: Array, values: Array, index: Array, shift: Array, scale: Array
) -> None:
    """out[i] = (row index[i] of a sparse matrix - shift) * scale in F, absent entries being 0; overwrites
    out.

    out (m, D) F; indptr (N + 1,) int64; indices (nnz,) int32 in 0..D-1; values (nnz,) float32 or float64;
    index (m,) int64; shift, scale (D,) F. Raises IndexError for an index outside 0..N-1, or for a row whose
    entries lie outside the arrays. Where a row names a column twice the later value counts.
    """
    _check_index(index, len(indptr) - 1)
    for row, i in zip(out, index, strict=True):
        start, stop = indptr[i], indptr[i + 1]
        columns = indices[start:stop]
        if start < 0 or stop < start or stop > len(indices) or ((columns < 0) | (columns >= len(row))).any():
            raise IndexError("gather_csr: a row has entries outside the arrays or columns outside 0..D-1")
        row[:] = 0
        row[columns] = values[start:stop]
        row[:] = (row - shift) * scale


def _check_index(index: Array, rows: int) -> None:
    if ((index < 0) | (index >= rows)).any():
        raise IndexError("gather: an index is outside 0..N-1")
