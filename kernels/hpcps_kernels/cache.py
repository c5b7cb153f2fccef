"""Where compiled kernels are kept on disk, and why not where they are not. Imports no compiler.

Compiled code is loaded and run, so a folder is used only if nobody else can write to it.
"""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import os
import platform
import stat
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

FALLBACK = Path("/tmp")


@dataclass(frozen=True)
class Cache:
    """`folder` is None where nothing is kept; `reason` says why, or why it is not the first choice."""

    folder: Path | None
    reason: str = ""


def cache_folder() -> Cache:
    """The folder of compiled kernels for this user, Numba, CPU and source; it is made if need be.

    It lies in the first that will do: `$HPCPS_CACHE_DIR` (else `$XDG_CACHE_HOME/hpcps`, else
    `~/.cache/hpcps`), then `/tmp/hpcps-cache-UID`.
    """
    reasons: list[str] = []
    for root, may_be_link in ((_chosen_root(), True), (FALLBACK / f"hpcps-cache-{os.getuid()}", False)):
        try:
            return Cache(_private(_private(root, may_be_link) / _subfolder()), "; ".join(reasons))
        except OSError as error:
            reasons.append(f"{root}: {error.strerror or error}")
    return Cache(None, "; ".join(reasons))


def _chosen_root() -> Path:
    chosen = os.environ.get("HPCPS_CACHE_DIR")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base).absolute() / "hpcps"


def _private(folder: Path, may_be_link: bool = False) -> Path:
    """Make the folder; OSError unless it can be written to, and by its owner, us, alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Where everybody may make links, another user could point one elsewhere after it was looked at.
    found = folder.stat() if may_be_link else folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is a link")
    if found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "others may write to it")
    tempfile.TemporaryFile(dir=folder).close()
    return folder


@functools.cache
def _subfolder() -> str:
    """A name that differs wherever compiled code may not be shared: Numba, CPU, Python, our own source."""
    numba = importlib.metadata.version("numba")
    source = sha256()
    for file in sorted((Path(__file__).parent / "cpu").glob("*.py")):
        source.update(file.read_bytes())
    cpu = sha256(_cpu().encode()).hexdigest()[:8]
    python = f"{platform.python_implementation().lower()}{platform.python_version()}"
    return f"numba{numba}-{python}-{platform.machine()}-{cpu}-{source.hexdigest()[:8]}"


def _cpu() -> str:
    """The model and features of this CPU, as far as the kernel tells."""
    keep = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part", "CPU implementer")
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    lines = [line for line in first.splitlines() if line.partition(":")[0].strip() in keep]
    return "\n".join(lines) or platform.processor()
