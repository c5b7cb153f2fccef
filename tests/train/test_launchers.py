"""Launchers that fail or stand still as they start: stand-ins, for real ones do so once in some hundred starts."""

import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from hpcps import starter, supervisor
from hpcps.config import Run
from hpcps.errors import CommError
from hpcps.hosts import Host
from hpcps.run_folder import SUMMARY

RULE = "-" * 76


@pytest.mark.parametrize(
    ("failures", "word", "has_folder", "ends_well"),
    [
        (0, "", False, True),
        (1, "", False, True),
        (1, f"{RULE}\nThe listener failed\n{RULE}", False, True),
        (2, "", False, False),
        (1, "a word of a rank", False, False),
        (1, "", True, False),
    ],
)
def test_a_launcher_that_fails_is_started_once_more(tmp_path, capfd, failures, word, has_folder, ends_well):
    """Unless a rank has said something, or the run has begun."""
    program, begun, folder = tmp_path / "mpirun", tmp_path / "begun", tmp_path / "run"
    if has_folder:
        folder.mkdir()
    script = f'echo >> {begun}; if [ "$(wc -l < {begun})" -le {failures} ]; then echo "{word}" >&2; exit 213; fi'
    program.write_text(f"#!/bin/sh\n{script}\nmkdir -p {folder}; touch {folder}/mark\n")
    program.chmod(0o755)
    found = starter.Launcher(str(program), "Open MPI v5.0.8", True)
    with nullcontext() if ends_well else pytest.raises(CommError, match="the launcher's status is 213"):
        assert starter.start(found, 2, [], folder / "mark") == 0
    said = capfd.readouterr().err
    assert ("; starting it again" in said) == (failures > 0 and not has_folder and "rank" not in word)
    assert ("(The listener failed)" in said) == (RULE in word)


@pytest.mark.parametrize(("restarts", "ends_well"), [(1, True), (0, False)])
def test_a_launcher_that_stands_still_is_ended_and_started_again(tmp_path, monkeypatch, capfd, restarts, ends_well):
    monkeypatch.setattr(supervisor, "LAUNCHING_S", 0.5)
    monkeypatch.setattr(starter, "answers", lambda found, host: True)
    program, begun, folder = tmp_path / "mpirun", tmp_path / "begun", tmp_path / "run"
    script = f'echo $$ >> {begun}; [ "$(wc -l < {begun})" -gt 1 ] || exec sleep 60'
    program.write_text(f"#!/bin/sh\n{script}\nmkdir -p {folder}; touch {folder}/{SUMMARY}\n")
    program.chmod(0o755)
    found = starter.Launcher(str(program), "Open MPI v5.0.8", True)
    rest = folder, (), Run(restarts=restarts), [Host("localhost", 2)]
    with nullcontext() if ends_well else pytest.raises(CommError, match=r"^the ranks had not met after 0\.5 s$"):
        assert supervisor.supervise(found, 2, [], [], *rest) == 0
    said = capfd.readouterr().err
    assert ("the ranks had not met after 0.5 s; starting it again from the newest" in said) == ends_well
    assert len(begun.read_text().split()) == 1 + restarts


def test_rank_0_on_another_host_tells_nobody_that_ranks_have_met():
    assert supervisor._begins_here([Host("localhost", 1), Host("elsewhere", 1)])
    assert not supervisor._begins_here([Host("elsewhere", 1), Host("localhost", 1)])
    assert not supervisor._begins_here([])  # the launcher has found hosts itself


SETTING = starter.FOLDER_SETTINGS[1]


@pytest.mark.parametrize(
    ("others", "is_in_a_file", "expected"),
    [({}, False, ["PLACE"]), ({"PRTE_MCA_prte_tmpdir_base": "/scratch"}, False, [""]), ({}, True, ["PLACE", ""])],
)
def test_where_the_launcher_of_a_job_that_survives_keeps_its_files(
    tmp_path, monkeypatch, others, is_in_a_file, expected
):
    """In the job's folder, unless the user or the system's files say where: the launcher takes one word of it."""
    for name in starter.FOLDER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    program, told, place, mark = (tmp_path / name for name in ("mpirun", "told", "place", "mark"))
    refusal = f"echo '{RULE}\nThe {starter.FOLDER_IS_SET}, which\nis not allowed.\n{RULE}' >&2; exit 1"
    refuses = f'[ -z "${SETTING}" ] || {{ {refusal}; }}' if is_in_a_file else ""
    program.write_text(f'#!/bin/sh\necho "[${SETTING}]" >> {told}\n{refuses}\ntouch {mark}\n')
    program.chmod(0o755)
    found = starter.Launcher(str(program), "Open MPI v5.0.8", True)
    surviving = starter.Surviving({}, lambda job: None, 1.0, place)
    assert starter.start(found, 2, [], mark, surviving=surviving) == 0
    assert told.read_text().split() == [f"[{one}]".replace("PLACE", str(place)) for one in expected]


def test_a_launcher_is_ended_though_what_it_had_started_ends_meanwhile(monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as job:
        monkeypatch.setattr(starter, "descendants", lambda ancestor: [gone.pid])
        starter.end(job)
        assert job.wait(10) == -signal.SIGKILL


def test_what_a_launchers_children_have_started_is_ended_too_though_it_was_stopped(tmp_path):
    """As ranks of MPICH's launcher, each in a session of its own."""
    told = tmp_path / "rank"
    rank = f"echo $$ > {told}.new; mv {told}.new {told}; kill -STOP $$; sleep 600"
    script = f"setsid sh -c '{rank}' & wait"
    with subprocess.Popen(["sh", "-c", 'sh -c "$0" & wait', script], start_new_session=True) as job:
        deadline = time.monotonic() + 30
        while not told.exists() or _state(int(told.read_text())) != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        starter.end(job)
    while _state(int(told.read_text())) not in ("", "Z"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(process):
    """R, S, T, Z as in proc(5); nothing where there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
