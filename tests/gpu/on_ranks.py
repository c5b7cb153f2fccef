"""Trains on the ranks of an MPI job with devices that are none: ``mpiexec -n N python on_ranks.py LIBRARIES FOLDER``.

``LIBRARIES``: where the kernels have been compiled for the CPU; ``FOLDER``: with staged.toml, shards.toml and
direct.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from on_cpu import Compiled, DeviceArray, OnCpu, in_the_place_of_gpus

from hpcps import config, launch
from hpcps.comm import mpi


def pointer(array: DeviceArray) -> dict[str, Any]:
    """By which an MPI library that takes a device's memory finds it."""
    assert array.flags.c_contiguous
    where = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.data.ptr, False)}
    return {**where, "strides": None, "version": 3}


def main(libraries: Path, folder: Path) -> None:
    in_the_place_of_gpus([OnCpu(Compiled(libraries), number=number) for number in range(2)])
    for name in ("staged", "shards", "direct"):
        if name == "direct":
            DeviceArray.__cuda_array_interface__ = property(pointer)  # type: ignore[attr-defined]
            mpi.takes_device_memory = lambda: True
        launch.train(config.read(folder / f"{name}.toml"), out=folder / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
