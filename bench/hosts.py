"""Hosts on one machine: network namespaces with links of a given rate, and MPI jobs over TCP among them.

Each host has its own address, host name and ``/dev/shm``; a bridge in a namespace of its own joins them, and nothing is
put into the machine's own namespace. Links are shaped both ways by a token bucket (tc-tbf). It needs root and iproute2.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BURST_BYTES = 256 * 1024
"""What a link that has rested carries at once, without waiting for its rate."""
LIMIT_BYTES = 300 * 1024
"""What may wait for a link; more is lost, and sent again."""
HEADERS = 1514 / 1448
"""Bytes that the token bucket counts for each byte of payload: Ethernet, IPv4 and TCP with time stamps, MTU 1500."""
SETUP_TIMEOUT_S = 20
VARIABLES = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "eth0",
    "UCX_TLS": "tcp,self,sm",
    "UCX_NET_DEVICES": "eth0",
}
"""What keeps Open MPI and MPICH to TCP on the hosts' links, and lets root use them."""

CLEAN = 'exec env -i PATH="$PATH" HOME="$HOME" {agent} "$host" "$@"'
"""As ssh does it: nothing of the environment goes along."""
REACH = {
    "PRTE_MCA_plm": "ssh",
    "OMPI_MCA_btl": "tcp,sm,self",
    "OMPI_MCA_btl_tcp_if_include": "eth0",
    "HYDRA_LAUNCHER": "ssh",
    "HYDRA_IFACE": "eth0",
}
"""The same for launchers that hpcps calls; see ``Hosts.start``."""
AGENT = """#!/bin/sh
# Stands in for ssh: [-x ...] HOST COMMAND... runs the command on the host, with a temporary folder of its own:
# what launchers that are killed leave there would be in the way of later ones with their process numbers.
while :; do case "$1" in -*) shift ;; *) break ;; esac; done
host=$1; shift
{clean}
TMPDIR=$(mktemp -d "{folder}/XXXXXX") && export TMPDIR
exec ip netns exec "{prefix}$host" unshare --uts --ipc sh -c "mount -t tmpfs tmpfs /dev/shm; hostname $host; $*"
"""


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "not root"
    missing = [program for program in ("ip", "tc", "unshare") if shutil.which(program) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian: iproute2, util-linux)"
    try:
        with Hosts(1, "1gbit"):
            return ""
    except OSError as error:
        return str(error)


class Hosts:
    """Hosts ``h1 .. hN`` for as long as a ``with`` lasts; ``rate`` in tc's words, "1gbit", or empty for no limit."""

    def __init__(self, count: int, rate: str = "", queue_bytes: int = LIMIT_BYTES) -> None:
        self.count = count
        self.rate = rate
        self._queue_bytes = queue_bytes
        self._prefix = f"hpcps{os.getpid()}"
        self._switch = f"{self._prefix}sw"
        self._folder = Path(tempfile.mkdtemp(prefix="hpcps-hosts-"))
        self._agent = self._folder / "agent"
        self._ssh = self._folder / "ssh"

    def __enter__(self) -> Hosts:
        try:
            clean = CLEAN.format(agent=self._agent)
            for file, first in ((self._agent, ""), (self._ssh, clean)):
                file.write_text(AGENT.format(prefix=self._prefix, clean=first, folder=self._folder))
                file.chmod(0o755)
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "br0", "up")
            for number in range(1, self.count + 1):
                self._add(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._end_processes()
        for name in self._namespaces():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self,
        is_open_mpi: bool,
        command: Sequence[object],
        ranks_per_host: int = 1,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run this Python with ``command`` on all hosts, under the MPI of its environment, and wait for the end.

        ``options`` are the launcher's; ``variables`` are added to the ranks' environment. Raises
        subprocess.TimeoutExpired; then, too, no process is left on the hosts.
        """
        line = _open_mpi if is_open_mpi else _mpich
        job = [*line(str(self._host_file(is_open_mpi, ranks_per_host)), str(self._agent)), *options]
        words = [str(self._agent), "h1", shlex.join([*job, sys.executable, *map(str, command)])]
        environment = {**os.environ, **VARIABLES, **(variables or {})}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        try:
            return subprocess.run(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                start_new_session=True,  # a launcher that reached for our terminal would be stopped, and we with it
            )
        finally:
            self._end_processes()

    def start(self, command: Sequence[object], host: int = 1, out: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start this Python with ``command`` on one host; launchers that it calls reach the others as by ssh."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **VARIABLES, **REACH, "PATH": path}
        environment |= {"PRTE_MCA_plm_ssh_agent": str(self._ssh), "HYDRA_LAUNCHER_EXEC": str(self._ssh)}
        return subprocess.Popen(
            [str(self._agent), f"h{host}", shlex.join([sys.executable, *map(str, command)])],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def plug(self, host: int, is_in: bool) -> None:
        """Take a host's link down, or up again, at the switch's side: as if its cable were pulled. Blocks until an
        interface has seen that it is up. Raises OSError."""
        _ip("-n", self._switch, "link", "set", f"h{host}", "up" if is_in else "down")
        deadline = time.monotonic() + SETUP_TIMEOUT_S
        while is_in and "state UP" not in _told("ip", "-n", self._namespace(host), "link", "show", "eth0"):
            if time.monotonic() > deadline:
                raise OSError(f"h{host}: its link does not come up")
            time.sleep(0.05)

    def end(self) -> None:
        """End what runs on the hosts."""
        self._end_processes()

    def processes(self, host: int | None = None) -> list[int]:
        """What runs on the hosts, or on one of them."""
        names = self._namespaces() if host is None else [self._namespace(host)]
        told = [_told("ip", "netns", "pids", name) for name in names]
        return [int(process) for text in told for process in text.split()]

    def _namespaces(self) -> list[str]:
        names = [line.split()[0] for line in _told("ip", "netns", "list").splitlines() if line.strip()]
        return [name for name in names if name.startswith(self._prefix)]

    def _end_processes(self) -> None:
        for process in self.processes():
            _kill(process)

    def _add(self, number: int) -> None:
        name, port = self._namespace(number), f"h{number}"
        _ip("netns", "add", name)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "addr", "add", f"{_address(number)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        if self.rate:
            for inside, device in ((name, "eth0"), (self._switch, port)):
                shape = ["tbf", "rate", self.rate, "burst", str(BURST_BYTES), "limit", str(self._queue_bytes)]
                _call("tc", "-n", inside, "qdisc", "add", "dev", device, "root", *shape)
        etc = Path("/etc/netns", name)  # `ip netns exec` puts these over those in /etc
        etc.mkdir(parents=True)
        known = [f"{_address(other)} h{other}" for other in range(1, self.count + 1)]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
        (etc / "nsswitch.conf").write_text("hosts: files\n")

    def _host_file(self, is_open_mpi: bool, ranks_per_host: int) -> Path:
        form = "h{} slots={}\n" if is_open_mpi else "h{}:{}\n"
        file = self._folder / "hostfile"
        file.write_text("".join(form.format(number, ranks_per_host) for number in range(1, self.count + 1)))
        return file

    def _namespace(self, number: int) -> str:
        return f"{self._prefix}h{number}"


def _open_mpi(host_file: str, agent: str) -> list[str]:
    line = ["mpirun", "--hostfile", host_file, "--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", agent]
    line += ["--bind-to", "none", "--mca", "btl", "tcp,sm,self", "--mca", "btl_tcp_if_include", "eth0"]
    return [*line, "--mca", "mpi_yield_when_idle", "1"]  # the hosts share this machine's cores


def _mpich(host_file: str, agent: str) -> list[str]:
    return ["mpiexec", "-f", host_file, "-launcher", "ssh", "-launcher-exec", agent, "-iface", "eth0"]


def _address(number: int) -> str:
    return f"10.77.0.{number}"


def _ip(*words: str) -> None:
    _call("ip", *words)


def _told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S, check=False).stdout


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended by itself
