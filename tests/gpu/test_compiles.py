"""Every kernel of the launch table compiles for every GPU that counts: by NVRTC, which needs neither driver nor GPU."""

from __future__ import annotations

import re

import pytest
from hpcps_kernels.gpu._launch import TABLE
from hpcps_kernels.gpu._source import OPTIONS, source
from on_cpu import instances

FILES = sorted({launch.file for launch in TABLE})
ARCHITECTURES = (80, 90, 100, 120)
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.fixture(scope="module")
def nvrtc():
    """CuPy's door to NVRTC."""
    found = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    try:
        found.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC is not installed: {' '.join(str(error).split())}")
    return found


def compiled(nvrtc, file: str, architecture: int) -> tuple[list[str], bytes, str]:
    """The functions' names in the code, the code, and what the compiler said."""
    wanted = instances(file)
    text = source(file) + "".join(one.declaration for one in wanted)
    program = nvrtc.createProgram(text, f"{file}.cu", [], [])
    try:
        for one in wanted:
            nvrtc.addNameExpression(program, one.expression)
        options = [*OPTIONS, f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"]
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program)[:4000])
        names = [nvrtc.getLoweredName(program, one.expression) for one in wanted]
        return names, nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_every_instance_compiles_and_keeps_its_numbers_in_registers(nvrtc, file: str, architecture: int) -> None:
    names, code, log = compiled(nvrtc, file, architecture)
    assert len(set(names)) == len(instances(file))
    assert all(name.encode() in code for name in names)
    spills = SPILLS.findall(log)
    assert len(spills) >= len(names), log[:2000]
    assert set(spills) == {("0", "0")}, log
