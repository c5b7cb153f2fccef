from __future__ import annotations

from kernel_cases import FLOATS, Case
from kernel_cases.update import POSITIVE, SCALARS, _numbers

# Gradients, columns, the first of them, parameters. A block of a sum is 2048.
SIZES = [(2, 10, 0, 0), (2, 17, 0, 17), (2, 6000, 7, 4097), (3, 2100, 1, 2049), (4, 9, 8, 1), (5, 64, 9, 16)]


def _case(kernel: str, p: int, columns: int, first: int, n: int, dtype: str) -> Case:
    numbers = {**_numbers(kernel, p % 2 > 0), "column": first}
    return Case(f"{kernel}_summed", {"P": p, "N": columns, "n": n}, {"F": dtype}, numbers, POSITIVE)


CASES = [_case(kernel, *size, dtype) for kernel in SCALARS for size in SIZES for dtype in FLOATS]
