"""The folder of a run's checkpoints: how one comes to be there whole, or not at all, and older ones go."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from hpcps.checkpoint.manifest import MANIFEST, FileAbout
from hpcps.checkpoint.part import about_name, failed_name

_STEP = re.compile(r"step-([0-9]{9,18})")
_ASIDE = re.compile(r"\.(old-)?step-[0-9]{9,18}")
POLL_S = 0.02


def name_of(step: int) -> str:
    """What the checkpoint after ``step`` is called."""
    return f"step-{step:09d}"


class CheckpointFolder:
    """``path`` holds checkpoints, of which ``keep`` are kept. What fails raises OSError."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.keep = keep

    def steps(self) -> list[int]:
        """Of which steps there are checkpoints, ascending."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = (_STEP.fullmatch(entry.name) for entry in self.path.iterdir())
            return sorted(int(match.group(1)) for match in found if match)
        return []

    def at(self, step: int) -> Path:
        """Where the checkpoint after ``step`` is."""
        return self.path / name_of(step)

    def aside(self, step: int) -> Path:
        """Where it is written."""
        return self.path / f".{name_of(step)}"

    def begin(self, step: int) -> None:
        """Take out what was left half-written, and make the folder in which all holders write."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._clear_aside()
        self.aside(step).mkdir()

    def gather(
        self,
        step: int,
        holders: Sequence[str],
        timeout_s: float,
        is_given_up: Callable[[str], bool],
    ) -> list[FileAbout]:
        """Wait until all holders have written their files, but for those that are given up. Raises OSError where one
        could not, or TimeoutError."""
        aside, found = self.aside(step), []
        deadline = time.monotonic() + timeout_s
        for holder in holders:
            about, failed = aside / about_name(holder), aside / failed_name(holder)
            while not about.exists():
                if failed.exists():
                    raise OSError(f"{holder}: {failed.read_text(encoding='utf-8') or 'could not write'}")
                if is_given_up(holder):
                    raise OSError(f"{holder} wrote nothing before it was lost, or the run ended")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{holder} wrote nothing in {timeout_s:g} s; do all ranks see this folder?")
                time.sleep(POLL_S)
            found.append(msgspec.json.decode(about.read_bytes(), type=FileAbout))
        return found

    def complete(self, step: int, manifest: bytes) -> None:
        """All files are there: write the manifest, put the checkpoint in place, and take older ones away."""
        aside = self.aside(step)
        for entry in aside.iterdir():
            if entry.suffix != ".safetensors":
                entry.unlink()
        with (aside / MANIFEST).open("wb") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(aside)
        self._put_away(step)  # one that is damaged, or this would not be written
        aside.rename(self.at(step))
        sync_folder(self.path)
        self._thin_out(step)

    def give_up(self, step: int) -> None:
        """Take out what has been written of a checkpoint."""
        shutil.rmtree(self.aside(step), ignore_errors=True)

    def clear(self) -> None:
        """Take all checkpoints away."""
        for step in self.steps():
            self._put_away(step)
        if self.path.is_dir():
            self._clear_aside()

    def _thin_out(self, newest: int) -> None:
        """Keep the newest ones; those of later steps were found damaged when the run was resumed."""
        steps = self.steps()
        kept = [step for step in steps if step <= newest][-self.keep :]
        for step in steps:
            if step not in kept:
                self._put_away(step)
        self._clear_aside()

    def _put_away(self, step: int) -> None:
        """Take a checkpoint away by a name that is none, so that half of one never looks like one."""
        if self.at(step).exists():
            old = self.path / f".old-{name_of(step)}"
            shutil.rmtree(old, ignore_errors=True)
            self.at(step).rename(old)

    def _clear_aside(self) -> None:
        for entry in self.path.iterdir():
            if _ASIDE.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
