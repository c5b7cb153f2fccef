"""The GPU kernels compiled for the CPU, once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from on_cpu import Compiled
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
