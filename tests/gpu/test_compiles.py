"""Every kernel of the launch table compiles for every GPU that counts: by NVRTC, which needs neither driver nor GPU."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hpcps_kernels.gpu._launch import TABLE, Instance
from on_cpu import instances

FILES = sorted({launch.file for launch in TABLE})
ARCHITECTURES = (80, 90, 100, 120)
ALL_OF = 90  # the architecture for which every instance is compiled; for the others, some with every type there is
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.fixture(scope="module")
def nvrtc():
    """Our door to NVRTC."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    found = importlib.import_module("hpcps_kernels.gpu._nvrtc")
    try:
        found.version()
    except RuntimeError as error:
        pytest.skip(str(error))
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_it_compiles_and_keeps_its_numbers_in_registers(nvrtc, file: str, architecture: int) -> None:
    wanted = instances(file) if architecture == ALL_OF else some_instances(file)
    code, names, log = nvrtc.compile(wanted, architecture, "--ptxas-options=-v")
    assert len(set(names)) == len(wanted)
    assert all(name.encode() in code for name in names)
    spills = SPILLS.findall(log)
    assert len(spills) >= len(names), log[:2000]
    assert set(spills) == {("0", "0")}, log


def test_code_is_kept_on_disk(nvrtc, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    instance = instances("checks")[0]
    first = nvrtc.kept(instance, 90)
    assert first.path.read_bytes()[:4] == b"\x7fELF"
    assert first.name.encode() in first.path.read_bytes()
    monkeypatch.setattr(nvrtc, "compile", None)  # it is not called again
    assert nvrtc.kept(instance, 90) == first
    assert len(list(tmp_path.iterdir())) == 2


def test_arguments_that_are_not_the_tables_do_not_compile(nvrtc) -> None:
    instance = instances("checks")[0]
    with pytest.raises(RuntimeError, match=r"kernels: checks\.cu for sm_90: .*error: "):
        nvrtc.compile([replace(instance, arguments=instance.arguments[:-1])], 90)


def test_a_missing_compiler_is_said_in_one_line(nvrtc, monkeypatch) -> None:
    def missing() -> None:
        raise RuntimeError("CuPy failed to load libnvrtc.so.13\n  looked in /usr")

    monkeypatch.setattr(nvrtc, "nvrtc", SimpleNamespace(getVersion=missing))
    with pytest.raises(
        RuntimeError, match=r"^kernels: NVRTC is needed: pip install .*libnvrtc\.so\.13 looked in /usr\)$"
    ):
        nvrtc.version()
