"""Every kernel of the launch table compiles for every GPU that counts: by NVRTC, which needs neither driver nor GPU."""

from __future__ import annotations

import re

import pytest
from hpcps_kernels.gpu._launch import TABLE, Instance
from hpcps_kernels.gpu._source import OPTIONS, source
from on_cpu import instances

FILES = sorted({launch.file for launch in TABLE})
ARCHITECTURES = (80, 90, 100, 120)
ALL_OF = 90  # the architecture for which every instance is compiled; for the others, some with every type there is
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


def some_instances(file: str) -> list[Instance]:
    """Of each kernel as many as its longest list of types has."""
    found: list[Instance] = []
    for launch in TABLE:
        if launch.file == file:
            lists = list(launch.template.values())
            picked = [tuple(one[i % len(one)] for one in lists) for i in range(max(map(len, lists), default=1))]
            found += [launch.instance(*types) for types in picked]
    return found


def compiled(nvrtc, file: str, wanted: list[Instance], architecture: int) -> tuple[list[str], bytes, str]:
    """The functions' names in the code, the code, and what the compiler said."""
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
def test_it_compiles_and_keeps_its_numbers_in_registers(nvrtc, file: str, architecture: int) -> None:
    wanted = instances(file) if architecture == ALL_OF else some_instances(file)
    names, code, log = compiled(nvrtc, file, wanted, architecture)
    assert len(set(names)) == len(wanted)
    assert all(name.encode() in code for name in names)
    spills = SPILLS.findall(log)
    assert len(spills) >= len(names), log[:2000]
    assert set(spills) == {("0", "0")}, log
