"""Starts ``ps_lite.cc``, compiled: a scheduler, a server and a worker on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from typing import Any

from peers.allreduce_jobs import JobError, last_line

ROLES = ("scheduler", "server", "worker")


def job(program: str, sizes: str, widths: str, timeout_s: float) -> list[dict[str, Any]]:
    """What the worker tells. Raises JobError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_NODE_HOST": "127.0.0.1"}
    here |= {"DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": "1"}
    with tempfile.TemporaryFile("w+") as said:
        started = [
            subprocess.Popen(
                [program, sizes, widths],
                env=os.environ | here | {"DMLC_ROLE": role},
                stdout=subprocess.PIPE if role == "worker" else subprocess.DEVNULL,
                stderr=said,
                text=True,
            )
            for role in ROLES
        ]
        try:
            told, _ = started[-1].communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise JobError(f"ps-lite: not finished after {timeout_s:g} s") from error
        finally:
            for one in started:
                one.kill()
                one.wait()
        if started[-1].returncode or not told.strip():
            said.seek(0)
            raise JobError(f"ps-lite: {last_line(said.read())}")
    found: list[dict[str, Any]] = json.loads(told.strip().splitlines()[-1])
    return found
