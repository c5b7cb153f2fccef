"""What every bench says beside its figures: the machine, the versions and the commit that was measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine() -> dict[str, object]:
    """Where this ran, and on how many cores."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {"cpu": names[0] if names else platform.processor(), "cores": len(os.sched_getaffinity(0))}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The packages' versions; those that are not installed say so."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """The commit that was measured, if this is a checkout; "+" where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def write_json(path: Path, packages: Iterable[str], rows: list[dict[str, object]], **more: object) -> None:
    """The rows of a bench as every bench writes them; ``more`` is kept beside them."""
    told = {"machine": machine(), "versions": versions(packages), "commit": commit(), **more, "rows": rows}
    path.write_text(json.dumps(told, indent=2) + "\n")
