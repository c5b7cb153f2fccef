"""The GPU kernels compiled for the CPU, once a session."""

from __future__ import annotations

import shutil

import pytest
from on_cpu import Compiled


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Compiled:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    found = Compiled(tmp_path_factory.mktemp("cuda_on_cpu"))
    found.start()
    return found
