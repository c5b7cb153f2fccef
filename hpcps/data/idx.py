"""IDX files, the format of MNIST: four magic bytes, the sizes, then the values in big-endian order."""

from __future__ import annotations

import os
import re
import struct

from hpcps.data.files import is_gzip, unpacked_start_of
from hpcps.data.stored import ArraySource, StoredArray, most_unpacked, pair
from hpcps.errors import DataError

DTYPES = {0x08: "|u1", 0x09: "|i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_AXES = 8


def is_idx(start: bytes) -> bool:
    """Whether bytes begin like an IDX file."""
    return len(start) >= 4 and start[:2] == b"\0\0" and start[2] in DTYPES and 1 <= start[3] <= MOST_AXES


def open_idx(path: str, labels: str = "", labelled: bool = True) -> ArraySource:
    """Survey an IDX file of samples and the file of its labels, given or found by name; raises DataError."""
    samples = stored_idx(path)
    labels = labels or label_name(path)
    if not labels and labelled:
        raise DataError(f"{path}: no file with its labels found; name it in data.labels")
    return pair(samples, stored_idx(labels) if labels else None)


def stored_idx(path: str) -> StoredArray:
    """Read the header of an IDX file, gzip or not, and check that the sizes fit; raises DataError."""
    start = unpacked_start_of(path, 4 + 4 * MOST_AXES)
    if not is_idx(start):
        raise DataError(f"{path}: not an IDX file (it starts with {start[:4].hex(' ')})")
    axes = start[3]
    if len(start) < 4 + 4 * axes:
        raise DataError(f"{path}: the file is cut off inside its header")
    shape = struct.unpack(f">{axes}I", start[4 : 4 + 4 * axes])
    packed = is_gzip(path)
    array = StoredArray(path, DTYPES[start[2]], shape, 4 + 4 * axes, "gzip" if packed else "")
    size = os.path.getsize(path)
    array.check_size(most_unpacked(size) if packed else size, exact=not packed)
    return array


def label_name(path: str) -> str:
    """The existing file with the labels of an IDX file (``images-idx3`` -> ``labels-idx1``), or ""."""
    folder, name = os.path.split(path)
    other = re.sub(r"idx\d", "idx1", re.sub(r"images|samples|data", "labels", name))
    plain = other.removesuffix(".gz")
    for candidate in (other, plain, plain + ".gz"):
        found = os.path.join(folder, candidate)
        if other != name and os.path.isfile(found):
            return found
    return ""
