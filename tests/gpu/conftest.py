"""The GPU kernels compiled for the CPU, once a session."""

from __future__ import annotations

import importlib
import shutil

import pytest
from hpcps_kernels.gpu import FAMILIES
from on_cpu import Compiled

for _family in FAMILIES:  # each declares its kernels
    importlib.import_module(f"hpcps_kernels.gpu.{_family}")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Compiled:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    found = Compiled(tmp_path_factory.mktemp("cuda_on_cpu"))
    found.start()
    return found
