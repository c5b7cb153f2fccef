"""Compiles functions of .cu files by NVRTC, which needs neither driver nor GPU, and keeps the code on disk.

CuPy's own way to compile adds -ftz=true, which would make small numbers 0 where the CPU keeps them. So the compiler is
called here, with hpcps's options alone, and CuPy loads what it made.
"""

from __future__ import annotations

import functools
import tempfile
import uuid
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cupy.cuda import nvrtc

from hpcps_kernels.cache import cache_folder
from hpcps_kernels.gpu._launch import Instance
from hpcps_kernels.gpu._source import OPTIONS, source


class Compiled(NamedTuple):
    """Code for one architecture, the functions' names in it, and what the compiler said."""

    code: bytes
    names: list[str]
    log: str


class Kept(NamedTuple):
    """A function's code in a file, and its name there."""

    path: Path
    name: str


def version() -> tuple[int, int]:
    """NVRTC's. RuntimeError, in one line, where it is not installed."""
    try:
        found: tuple[int, int] = nvrtc.getVersion()
    except Exception as error:  # CuPy says in many lines what it looked for and where
        reason = " ".join(str(error).split())[:200]
        raise RuntimeError(f"kernels: NVRTC is needed: pip install 'hpcps[cuda13]' ({reason})") from None
    return found


def compile(instances: Sequence[Instance], architecture: int, *options: str) -> Compiled:
    """Compile functions of one file; ``architecture`` is 90 for sm_90. RuntimeError with the log where they do not."""
    (file,) = {instance.file for instance in instances}
    text = source(file) + "".join(instance.declaration for instance in instances)
    program = nvrtc.createProgram(text, f"{file}.cu", [], [])
    try:
        for instance in instances:
            nvrtc.addNameExpression(program, instance.expression)
        try:
            nvrtc.compileProgram(program, [*OPTIONS, f"--gpu-architecture=sm_{architecture}", *options])
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"kernels: {file}.cu for sm_{architecture}: {error}: {_log(program)}") from None
        names = [nvrtc.getLoweredName(program, instance.expression) for instance in instances]
        return Compiled(nvrtc.getCUBIN(program), names, _log(program))
    finally:
        nvrtc.destroyProgram(program)


def kept(instance: Instance, architecture: int) -> Kept:
    """The function's code on disk, compiled if it is not there. Files are named by all that the code depends on."""
    told = repr((source(instance.file), instance, OPTIONS, architecture, version()))
    code = _folder() / f"{instance.file}-{sha256(told.encode()).hexdigest()[:24]}.cubin"
    name = code.with_suffix(".name")
    if not name.exists():  # it is written last
        made = compile([instance], architecture)
        _write(code, made.code)
        _write(name, made.names[0].encode())
    return Kept(code, name.read_text())


@functools.cache
def _folder() -> Path:
    """That of the CPU's kernels; where nothing can be kept, one for this process."""
    return cache_folder().folder or Path(tempfile.mkdtemp(prefix="hpcps-gpu-"))


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _log(program: int) -> str:
    log: str = nvrtc.getProgramLog(program)
    return log
