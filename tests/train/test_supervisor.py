"""The folder of a supervised job: gone with the job, or, where its supervisor was killed, with the next one."""

import subprocess
import sys

import pytest

from hpcps import supervisor

HOLDS = """
import sys, time
from pathlib import Path
from hpcps import supervisor
supervisor.MEMORY = Path(sys.argv[1])
with supervisor._place() as place:
    (place / "segment").write_bytes(bytes(1000))
    print(place, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that supervises a job, and its folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, tmp_path / process.stdout.readline().strip()
        finally:
            process.kill()


def test_what_a_killed_supervisor_leaves_is_removed_by_the_next_and_nothing_else(tmp_path, monkeypatch, holder):
    process, folder = holder
    others = tmp_path / "hpcps-results"
    others.mkdir()
    monkeypatch.setattr(supervisor, "MEMORY", tmp_path)
    monkeypatch.setattr(supervisor, "LEFT_S", 0.0)
    with supervisor._place() as own:
        assert (folder / "segment").exists()  # its process lives
        process.kill()
        process.wait()
        monkeypatch.setattr(supervisor, "LEFT_S", 60.0)
        with supervisor._place():
            assert folder.exists()  # it may be new
        monkeypatch.setattr(supervisor, "LEFT_S", 0.0)
        with supervisor._place():
            assert not folder.exists()
            assert own.exists()
    assert list(tmp_path.iterdir()) == [others]
