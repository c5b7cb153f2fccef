"""The GPU kernels compiled for the CPU, once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import hpcps_kernels
import pytest
from on_cpu import Compiled, OnCpu, in_the_place_of_gpus
from trainings import write_data


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Compiled:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    found = Compiled(tmp_path_factory.mktemp("cuda_on_cpu"))
    found.start()
    return found


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Small sets of samples."""
    folder: Path = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def gpus(compiled, monkeypatch):
    """So many GPUs, as far as hpcps can tell."""

    def use(count: int = 1, seed: int = 0) -> list[OnCpu]:
        devices = [OnCpu(compiled, seed=seed, number=number) for number in range(count)]
        in_the_place_of_gpus(devices, monkeypatch.setattr)
        return devices

    yield use
    hpcps_kernels.load.cache_clear()
