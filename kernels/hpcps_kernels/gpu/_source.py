"""The text that is compiled: a .cu file with its headers in their places, and the functions that are wanted of it."""

from __future__ import annotations

import functools
import re
from pathlib import Path

FOLDER = Path(__file__).parent
OPTIONS = (
    "--std=c++17",
    "--fmad=false",  # products are rounded before they are added, as everywhere in hpcps
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
)
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


@functools.cache
def source(file: str) -> str:
    """The text of NAME.cu: a compiler needs no other file, and a cache that goes by the text sees every change."""
    seen: set[str] = set()

    def included(match: re.Match[str]) -> str:
        return "" if match[1] in seen else read(match[1])

    def read(name: str) -> str:
        seen.add(name)
        text = (FOLDER / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return f'#line 1 "{name}"\n' + _INCLUDE.sub(included, text)

    return read(f"{file}.cu")
