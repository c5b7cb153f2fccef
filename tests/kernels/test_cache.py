"""Compiled kernels on disk: shared, private, and never in the way. Each start is a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import hpcps_kernels
import pytest
from hpcps_kernels.warmup import calls

TIMEOUT_S = 120

TRAIN = """
import numpy as np
from hpcps_kernels import cache_folder, load
kernels = load("cpu")
x, index = np.ones((4, 8), np.float32), np.arange(4)
kernels.gather(x, x.copy(), index, np.zeros(8, np.float32), np.ones(8, np.float32))
kernels.momentum(x[0], x[1], x[2], 0.1, 0.9, 0.0, 0.0, 1.0)
gradient, bias = np.empty((3, 8), np.float32), np.zeros(3, np.float32)
try:
    kernels.softmax_loss_gradient(gradient, bias.copy(), x, index, x[0, :0], gradient, bias)
except ValueError as error:  # a label is out of range: raising works in code from disk, too
    assert "label" in str(error)
kernels.softmax_loss_gradient(gradient, bias.copy(), x, index % 3, x[0, :0], np.zeros_like(gradient), bias)
from hpcps_kernels.cpu._jit import KERNELS
compiled = sum(sum(d.stats.cache_misses.values()) for d in KERNELS.values())
print(compiled, gradient.tobytes().hex(), sep="\\n")
"""
USED = 3  # kernels that TRAIN calls

THREADS = """
import threading
import numpy as np
from hpcps_kernels import load
kernels, start, done = load("cpu"), threading.Barrier(8), []
def work(i):
    x = np.full(999, i)
    start.wait(timeout=60)
    for _ in range(50):
        kernels.add_into(x, np.ones_like(x))
    done.append((x == i + 50).all())
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert len(done) == 8 and all(done)
from hpcps_kernels.cpu._jit import KERNELS
print(sum(KERNELS["add_into"].stats.cache_misses.values()))
"""

FOLDER = "import hpcps_kernels as k; c = k.cache_folder(); print(c.folder); print(c.reason)"


def start(code: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    package = Path(hpcps_kernels.__file__).parents[1]
    settings = {**os.environ, "PYTHONPATH": str(package), "HPCPS_CACHE_DIR": str(cache), **environment}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[str]:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out.splitlines()


def test_the_package_does_not_import_the_compiler(tmp_path: Path) -> None:
    code = (
        "import sys, hpcps_kernels as k; k.load('reference'); k.cache_folder();"
        "print(sorted({'numba', 'llvmlite', 'scipy', 'cupy'} & set(sys.modules)))"
    )
    assert finish(start(code, tmp_path)) == ["[]"]


def test_processes_that_start_together_compile_each_kernel_once(tmp_path: Path) -> None:
    together = [finish(p) for p in [start(TRAIN, tmp_path) for _ in range(8)]]
    later = finish(start(TRAIN, tmp_path))
    assert sum(int(compiled) for compiled, _ in together) == USED
    assert later[0] == "0"
    assert len({bits for _, bits in [*together, later]}) == 1
    assert len(list(tmp_path.rglob("*.nbc"))) == USED


WARM = "from hpcps_kernels.warmup import warm; print(warm(['add_into', 'gather', 'momentum'], 'float32'))"


def test_what_was_warmed_up_is_not_compiled_again(tmp_path: Path) -> None:
    assert finish(start(WARM, tmp_path)) == ["11"]  # 3 dtypes of sums, 7 of data
    assert finish(start(WARM, tmp_path)) == ["0"]
    assert finish(start(THREADS, tmp_path)) == ["0"]
    assert int(finish(start(TRAIN, tmp_path))[0]) == 1  # the gradient alone


@pytest.mark.parametrize("name", hpcps_kernels.SPECS)
def test_every_kernel_can_be_warmed_up(name: str) -> None:
    kernel = getattr(hpcps_kernels.load("reference"), name)
    for arguments in calls(hpcps_kernels.SPECS[name], "float64"):
        with contextlib.suppress(ValueError, IndexError):  # compiled by then: arguments are checked before
            kernel(*arguments)
            continue
        with pytest.raises((ValueError, IndexError), match=r"^(?!.*must (have|be)).*"):
            kernel(*arguments)


def test_threads_compile_a_kernel_once(tmp_path: Path) -> None:
    assert finish(start(THREADS, tmp_path)) == ["1"]


@pytest.mark.parametrize("damage", [b"", None], ids=["empty", "one byte"])
def test_a_damaged_file_is_compiled_anew(tmp_path: Path, damage: bytes | None) -> None:
    assert finish(start(THREADS, tmp_path)) == ["1"]
    (file,) = tmp_path.rglob("*.nbc")
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole if damage is None else damage)
    assert finish(start(THREADS, tmp_path)) == ["1"]
    assert finish(start(THREADS, tmp_path)) == ["0"]


def test_a_folder_that_cannot_be_made_gives_way_to_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder, reason = finish(start(FOLDER, tmp_path / "file" / "cache"))
    assert folder.startswith(f"/tmp/hpcps-cache-{os.getuid()}/numba") or folder == "None"
    assert "file/cache: Not a directory" in reason


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    folder, reason = finish(start(FOLDER, tmp_path))
    assert not folder.startswith(str(tmp_path))
    assert "others may write to it" in reason


def test_a_link_in_the_shared_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / f"hpcps-cache-{os.getuid()}").symlink_to(tmp_path / "mine")
    code = f"import pathlib, hpcps_kernels.cache as c; c.FALLBACK = pathlib.Path({str(tmp_path)!r})\n"
    folder, reason = finish(start(code + FOLDER, Path("/dev/null/cache")))
    assert folder == "None"
    assert f"hpcps-cache-{os.getuid()}: is a link" in reason
    (tmp_path / "chosen").symlink_to(tmp_path / "mine")
    assert finish(start(FOLDER, tmp_path / "chosen"))[0].startswith(str(tmp_path / "chosen"))


def test_without_a_folder_kernels_compile_in_every_process(tmp_path: Path) -> None:
    code = "import hpcps_kernels.cache as c\ndef refuse(*_): raise OSError(30, 'no')\nc._private = refuse\n"
    assert finish(start(code + "print(c.cache_folder().reason.count('no'))", tmp_path)) == ["2"]
    assert finish(start(code + THREADS, tmp_path)) == ["1"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_does_not_work_costs_only_compilations(tmp_path: Path) -> None:
    code = "import fcntl\ndef flock(*a): raise OSError(38, 'not implemented')\nfcntl.flock = flock\n"
    assert finish(start(code + THREADS, tmp_path)) == ["1"]
    assert finish(start(code + THREADS, tmp_path)) == ["0"]


def test_the_default_folder_follows_xdg(tmp_path: Path) -> None:
    folder, reason = finish(start(FOLDER, Path(), HPCPS_CACHE_DIR="", XDG_CACHE_HOME=str(tmp_path)))
    assert folder.startswith(str(tmp_path / "hpcps" / "numba"))
    assert reason == ""
    assert (tmp_path / "hpcps").stat().st_mode & 0o777 == 0o700


def test_numba_settings_of_the_user_are_left_alone(tmp_path: Path) -> None:
    code = (
        "import numba, numba.core.config as c; before = dict(vars(c));"
        "import hpcps_kernels; hpcps_kernels.load('cpu');"
        "print([k for k, v in vars(c).items() if k.isupper() and before[k] != v])"
    )
    assert finish(start(code, tmp_path)) == ["[]"]
