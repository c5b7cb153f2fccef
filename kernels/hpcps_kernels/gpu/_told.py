"""What kernels tell the host: two numbers on the device, a sum and whether something is wrong."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, device, strides

NUMBERS_BELOW = Launch(
    "checks", "numbers_below", "const I *, i64, i64, double *", strides(4 * THREADS), {"I": ("i32", "i64")}
)
ENTRIES = Launch(
    "checks", "entries", "const i64 *, i64, const I *, i64, i64, i64, double *", strides(THREADS), {"I": ("i32",)}
)

CLEAR = Launch("checks", "clear", "T *, i64, const double *", strides(4 * THREADS), {"T": (*FLOATS, "i64")})


class Told:
    """Kernels that find something wrong set ``array[1]``; later ones look there, and do nothing. `sum` waits."""

    def __init__(self, array: Any = None) -> None:
        self.array = device().zeros(2, "float64") if array is None else array

    def numbers_below(self, index: Any, rows: int) -> None:
        """Look whether all numbers are 0 .. rows - 1."""
        NUMBERS_BELOW(index.size, index, index.size, rows, self.array, I=index.dtype)

    def entries(self, indptr: Any, indices: Any, columns: int, all_entries: bool = False) -> None:
        """Look whether samples have their entries inside the arrays, and entries a column below ``columns``."""
        n, nnz = indptr.size - 1, indices.size
        ENTRIES(max(n + 1, nnz), indptr, n, indices, nnz, columns, int(all_entries), self.array, I=indices.dtype)

    def clear(self, out: Any) -> None:
        """Fill with 0, unless something was found wrong."""
        CLEAR(out.size, out, out.size, self.array, T=out.dtype)

    @staticmethod
    def pair() -> tuple[Told, Told, Any]:
        """Two that lie side by side, for `sum_of_pair`, and where."""
        both = device().zeros(4, "float64")
        return Told(both[:2]), Told(both[2:]), both

    @staticmethod
    def sum_of_pair(both: Any, first: Exception, second: Exception) -> float:
        """Wait once for two; raise what was wrong in the first, or else in the second, whose sum is given."""
        _, first_wrong, total, wrong = device().read(both).tolist()
        if first_wrong or wrong:
            raise first if first_wrong else second
        return float(total)

    def sum(self, error: Exception) -> float:
        """Wait; raise ``error`` if something was wrong, else give what was summed in ``array[0]``."""
        total, wrong = device().read(self.array).tolist()
        if wrong:
            raise error
        return float(total)
