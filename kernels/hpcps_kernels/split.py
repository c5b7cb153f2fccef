"""One kernel call cut into slices that run side by side, for kernels whose results do not depend on the cut."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hpcps_kernels.spec import Spec

SLICE_BYTES = 1 << 18
"""Least bytes of one argument in a slice: to wake a thread costs as long as to go through some 100 KiB."""


def split(spec: Spec, kernel: Callable[..., Any], threads: int, arguments: tuple[Any, ...]) -> None:
    """Call ``kernel`` for up to ``threads`` slices of the arguments along the letter of ``spec.splits``.

    Blocks until all slices are done; what one raises is raised.
    """
    cut = [a.is_array and a.shape[:1] == (spec.splits,) for a in spec.arguments]
    arrays = [array for array, is_cut in zip(arguments, cut, strict=True) if is_cut]
    length, largest = len(arrays[0]), max(array.nbytes for array in arrays)
    count = max(1, min(threads, largest // SLICE_BYTES))
    bounds = [length * i // count for i in range(count + 1)]

    def run(i: int) -> None:
        part = slice(bounds[i], bounds[i + 1])
        kernel(*[a[part] if is_cut else a for a, is_cut in zip(arguments, cut, strict=True)])

    others = [_pool(count - 1).submit(run, i) for i in range(1, count)] if count > 1 else []
    try:
        run(0)
    finally:
        for other in others:
            other.exception()  # no slice may run on when this returns
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="hpcps-kernel")
