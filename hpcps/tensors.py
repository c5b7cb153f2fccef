"""Arrays in a file of the safetensors format (https://github.com/huggingface/safetensors), piece by piece: what is
written or read need not fit into memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "uint16": "U16", "uint8": "U8"}
_NAMES |= {"bool": "BOOL"}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _NAMES.items()}
ALIGNMENT_BYTES = 8
LENGTH_BYTES = 8
HEAD_BYTES_MAX = 100_000_000
"""The format's own limit."""


class Stored(NamedTuple):
    """An array wherever it is: its pieces, one after the other, make it up in C order."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Array]]


def stored_here(array: Array) -> Stored:
    """An array in memory."""
    return Stored(array.dtype, array.shape, lambda: iter((array,)))


class Place(NamedTuple):
    """Where an array lies in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """In bytes, from the beginning of the file"""


def read_places(file: BinaryIO, size: int) -> dict[str, Place]:
    """Where each array of a file of ``size`` bytes lies. Nothing is believed that was not compared with that size:
    raises ValueError for a file that is not whole, or says things of itself that cannot be."""
    told = file.read(LENGTH_BYTES)
    length = int.from_bytes(told, "little")
    if len(told) < LENGTH_BYTES or length > min(size - LENGTH_BYTES, HEAD_BYTES_MAX):
        raise ValueError(f"its head cannot be: {size} bytes in all, {length} of them the head's")
    try:
        about = json.loads(file.read(length))
        places = {
            str(name): _place(one, LENGTH_BYTES + length) for name, one in about.items() if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its head cannot be read ({error})") from error
    end = LENGTH_BYTES + length
    for name, place in sorted(places.items(), key=lambda named: named[1].offset):
        if place.offset != end:
            raise ValueError(f"{name!r} begins at byte {place.offset}, not {end}")
        end += _bytes(place)
    if end != size:
        raise ValueError(f"it has {size} bytes, and says {end}")
    return places


def _place(one: Mapping[str, Any], start: int) -> Place:
    shape, (low, high) = tuple(one["shape"]), one["data_offsets"]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, low, high)):
        raise ValueError("a size is not a number")
    place = Place(_DTYPES[one["dtype"]], shape, start + low)
    if _bytes(place) != high - low:
        raise ValueError(f"{high - low} bytes for {shape} of {place.dtype}")
    return place


def _bytes(place: Place) -> int:
    return math.prod(place.shape) * place.dtype.itemsize


def write_tensors(file: BinaryIO, tensors: Mapping[str, Stored]) -> Iterator[tuple[str, memoryview]]:
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
            raw = np.ascontiguousarray(piece, dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
            written += file.write(raw)
            yield name, raw
        if written != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {written} bytes came for {shape} of {dtype}")
