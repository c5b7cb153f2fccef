"""The user's own Python files: ``file.py:name`` loaded, and called so that what goes wrong in them is one line that
names the file and its line."""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hpcps.errors import HpcpsError, ModelError, NotFiniteError

Array = np.ndarray[Any, Any]


class Guard:
    """Calls what ``kind`` names and turns what it raises into one line with the file and line where it happened."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._file = kind.rpartition(":")[0]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (HpcpsError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise ModelError(f"{self._place(error)}: {type(error).__name__}: {one_line(error)}") from error

    def _place(self, error: BaseException) -> str:
        mine = str(Path(self._file).resolve())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == mine]
        return f"{self._file}:{lines[-1]}" if lines else self.kind

    def loss(self, value: Any) -> float:
        """The loss as a float. Raises ModelError if it is no number or not finite."""
        try:
            loss = float(value)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{self.kind}: the loss is {type(value).__name__}, expected one number") from error
        if not math.isfinite(loss):
            raise NotFiniteError(f"{self.kind}: the loss is {loss}")
        return loss

    def array(self, what: str, value: Any, shape: tuple[int, ...]) -> Array:
        """A finite float array of ``shape``. Raises ModelError naming ``what``."""
        array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise ModelError(f"{self.kind}: {what} has dtype {array.dtype}, expected numbers")
        if array.shape != shape:
            raise ModelError(f"{self.kind}: {what} has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise NotFiniteError(f"{self.kind}: {what} is not finite")
        return array


def load_name(kind: str, key: str) -> Any:
    """``file.py:name``, the value of ``key``, as the object of that name. Raises ModelError naming the file."""
    file, _, name = kind.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise ModelError(f"{file}: no such file ({key} = file.py:name)")
    with _LOADING:
        module = _load_module(path, path.stat().st_mtime_ns)
    if not hasattr(module, name):
        raise ModelError(f"{file}: has no {name!r}")
    return getattr(module, name)


_LOADING = threading.Lock()


@functools.cache
def _load_module(path: Path, changed_ns: int) -> ModuleType:
    """Run the file, once a process as long as it does not change. It may import what lies beside it."""
    spec = importlib.util.spec_from_file_location(f"hpcps_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: not a Python file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ModelError(f"{path}:{error.lineno}: {error.msg}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ModelError(f"{path}: {type(error).__name__}: {one_line(error)}") from error
    return module


def one_line(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:  # an exception of the user's that cannot even say what it is
        return "(its message cannot be made)"
