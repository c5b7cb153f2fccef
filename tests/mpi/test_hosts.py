"""Sums between hosts, each a network namespace with a link of 1 Gbit/s: right, and no byte more than they cost.

Few launches, for each costs over a second. Needs root, ip and tc; leaves nothing.
"""

import json
import subprocess
from pathlib import Path

import pytest
from hosts import Hosts, why_not

from hpcps import starter

HOSTS = 4
RANK = Path(__file__).with_name("on_hosts.py")
SLACK = 1.06
"""Headers, answers and what the library says of its own: Ethernet, IPv4 and TCP can make 1.046."""

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def hosts():
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")
    with Hosts(HOSTS, "1gbit") as found:
        yield found
    assert found.processes() == []


@pytest.fixture(scope="module")
def launcher():
    found = starter.find()
    if found is None:
        pytest.skip("mpi4py finds no MPI library")
    return found


def test_the_ring_sends_what_it_must_and_no_more(hosts, launcher):
    done = hosts.run(launcher.is_open_mpi, [RANK])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["nodes"] == [f"h{number}" for number in range(1, HOSTS + 1)]
    due = 2 * (HOSTS - 1) / HOSTS * found["bytes"]
    assert all(due <= sent <= SLACK * due for sent in found["sent_bytes"]), (due, found)


def test_hosts_of_two_ranks_send_as_much_as_hosts_of_one(hosts, launcher):
    """Each chunk goes between the hosts once, whatever the number of ranks on them."""
    done = hosts.run(launcher.is_open_mpi, [RANK, "hierarchical"], ranks_per_host=2)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found["nodes"]) == [f"h{number}" for number in range(1, HOSTS + 1) for _ in range(2)]
    due = 2 * (HOSTS - 1) / HOSTS * found["bytes"]
    assert all(due <= sent <= SLACK * due for sent in found["sent_bytes"]), (due, found)


def test_a_job_that_takes_too_long_is_ended(hosts, launcher):
    with pytest.raises(subprocess.TimeoutExpired):
        hosts.run(launcher.is_open_mpi, ["-c", "import time; time.sleep(600)"], timeout_s=2)
    assert hosts.processes() == []
