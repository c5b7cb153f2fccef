"""The hosts of ``run.hosts``: how they are read, what launchers are told of them, and which are left out later."""

import itertools
from pathlib import Path

import pytest

from hpcps import hosts, starter, supervisor
from hpcps.comm import launcher
from hpcps.errors import CommError, ConfigError
from hpcps.hosts import Host

AB = [Host("a", 1), Host("b", 2)]


def test_a_file_of_hosts(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# ours\na\n\nb slots=2  # the larger\n")
    assert hosts.named(str(file), 3) == AB
    file.write_text("a:1\nb:1\nb\n")
    assert hosts.named(str(file), 2) == [Host("a", 1), Host("b", 1)]


@pytest.mark.parametrize(
    ("text", "ranks"), [("", 1), (",", 1), ("a:0", 1), ("a:-1", 1), ("a b", 1), ("ä", 1), ("a:1", 2)]
)
def test_what_is_no_list_of_hosts_is_refused(text, ranks):
    with pytest.raises(ConfigError, match=r"^run\.hosts"):
        hosts.named(text, ranks)


def test_what_launchers_are_told():
    variables = {"HPCPS_RUN_THREADS": "2", "PATH": "/bin"}
    line = starter.command_line(starter.Launcher("mpirun", "Open MPI v5.0.8", True), 3, 6.0, AB, variables)
    assert line[line.index("--host") + 1] == "a:1,b:2"
    assert [line[place + 1] for place, word in enumerate(line) if word == "-x"] == ["HPCPS_RUN_THREADS"]
    assert line[line.index("mpi_ft_detector_timeout") + 1] == "6"
    assert line[line.index("mpi_ft_detector_period") + 1] == "2"
    settings = {f"OMPI_MCA_{name}": value for name, value in itertools.pairwise(line)}
    assert launcher.heartbeat_s(settings) == 0.0  # without ULFM there are none
    settings["OMPI_MCA_mpi_ft_enable"] = "1"
    assert launcher.heartbeat_s(settings) == 2.0  # from a thread of the rank's own
    assert launcher.heartbeat_s(settings | {"OMPI_MCA_mpi_ft_detector_timeout": "1.5"}) == 0.5  # as Open MPI has it
    assert launcher.heartbeat_s(settings | {"OMPI_MCA_mpi_ft_detector_thread": "true"}) == 0.0
    assert launcher.heartbeat_s(settings | {"OMPI_MCA_mpi_ft_detector": "false"}) == 0.0
    line = starter.command_line(starter.Launcher("mpiexec", "MPICH", False), 3, 6.0, AB, variables)
    assert line == ["mpiexec", "-hosts", "a:1,b:2", "-n", "3"]


@pytest.mark.parametrize(("answering", "goes_on"), [("abcd", True), ("ad", True), ("a", False), ("", False)])
def test_half_of_the_hosts_must_answer(monkeypatch, capsys, answering, goes_on):
    everybody = [Host(name, 1) for name in "abcd"]
    monkeypatch.setattr(starter, "answers", lambda found, host: host.name in answering)
    found = starter.Launcher("mpirun", "Open MPI", True)
    if goes_on:
        assert [host.name for host in supervisor._left(found, everybody)] == list(answering)
        assert ("cannot be reached" in capsys.readouterr().err) == (len(answering) < 4)
    else:
        with pytest.raises(CommError, match=f"{len(answering)} of 4 hosts can be reached from here"):
            supervisor._left(found, everybody)


@pytest.mark.parametrize("fails", ["exit 1", "exec sleep 60"])
@pytest.mark.parametrize(("failures", "is_here"), [(0, True), (1, True), (2, True), (3, False)])
def test_a_host_that_fails_or_stands_still_is_asked_three_times(tmp_path, monkeypatch, fails, failures, is_here):
    monkeypatch.setattr(starter, "ANSWER_S", 3.0)
    program, asked = tmp_path / "mpirun", tmp_path / "asked"
    program.write_text(
        f'#!/bin/sh\necho $$ >> {asked}\n[ "$(wc -l < {asked})" -gt {failures} ] || {fails}\n'
        f'printf "\\\\374 "; echo {starter.MARK.decode()}\n'
    )
    program.chmod(0o755)
    assert starter.answers(starter.Launcher(str(program), "Open MPI v5.0.8", True), Host("a", 1)) == is_here
    numbers = asked.read_text().split()
    assert len(numbers) == min(failures + 1, 3)
    assert not any(Path(f"/proc/{number}").exists() for number in numbers)


def test_no_nodes_but_those_of_an_allocation_of_several():
    assert hosts.of_slurm({}, 2) == hosts.of_slurm({"SLURM_JOB_NUM_NODES": "1"}, 2) == []
    with pytest.raises(ConfigError, match="scontrol"):
        hosts.of_slurm({"SLURM_JOB_NUM_NODES": "2", "PATH": "/none"}, 2)
