"""Arrays written to a file in the safetensors format (https://github.com/huggingface/safetensors), piece by piece: what
is written need not fit into memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
ALIGNMENT_BYTES = 8


class Stored(NamedTuple):
    """An array wherever it is: its pieces, one after the other, make it up in C order."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Array]]


def stored_here(array: Array) -> Stored:
    """An array in memory."""
    return Stored(array.dtype, array.shape, lambda: iter((array,)))


def write_tensors(file: BinaryIO, tensors: Mapping[str, Stored]) -> Iterator[tuple[str, bytes]]:
    """Write the tensors, those of large elements first, as the format's own library does, else by name; gives out each
    piece, with its tensor's name, as its bytes are written.

    Raises ValueError where the pieces do not make up the shape.
    """
    tensors = dict(sorted(tensors.items(), key=lambda named: (-named[1].dtype.itemsize, named[0])))
    about, start = {}, 0
    for name, (dtype, shape, _) in tensors.items():
        stop = start + math.prod(shape) * dtype.itemsize
        about[name] = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    head = json.dumps(about).encode()
    head += b" " * (-len(head) % ALIGNMENT_BYTES)
    file.write(struct.pack("<Q", len(head)) + head)
    for name, (dtype, shape, pieces) in tensors.items():
        written = 0
        for piece in pieces():
            raw = np.ascontiguousarray(piece, dtype.newbyteorder("<")).tobytes()
            written += file.write(raw)
            yield name, raw
        if written != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {written} bytes came for {shape} of {dtype}")
