"""Checkpoints on disk: damage of every kind is seen, failures to write are survived, kills leave a good one."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hpcps
from hpcps import checkpoint, cli, stopping
from hpcps.checkpoint import CheckpointFolder, folder, keeper, manifest, part
from hpcps.comm import launcher
from hpcps.config import as_tree, read
from hpcps.errors import CheckpointError, ConfigError, StoppedError
from hpcps.snapshot import Flat, Pieces, Snapshot, TableRows, in_memory
from hpcps.together import Alone

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["train.epochs=2", "train.batch=100", "train.reproducible=true"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for _, rank, size in launcher._VARIABLES:
        monkeypatch.delenv(rank, raising=False)
        monkeypatch.delenv(size, raising=False)


def config(*more):
    return read(EXAMPLES / "digits.toml", {}, [*QUICK, *more])


def train(path, *more, ranks=1, **words):
    return hpcps.train(config(*more), ranks=ranks, out=path, **words).summary


def newest(path, *more):
    return checkpoint.newest(CheckpointFolder(path / "checkpoint"), Alone(), as_tree(config(*more)))


def contents(found):
    return {flat.name: flat.values.read(0, flat.values.shape[0]).tobytes() for flat in found.snapshot.pieces.flats}


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """A run that was killed after its second checkpoint, of two ranks' files."""
    path = tmp_path_factory.mktemp("two") / "run"
    train(path, "checkpoint.every_steps=10", "train.strategy=server", "server.colocated=true", ranks=2)
    (path / "summary.json").unlink()
    return path


FILES = ("manifest.json", "shard-00000.safetensors", "shard-00001.safetensors")


def test_what_a_checkpoint_consists_of(two):
    assert sorted(entry.name for entry in (two / "checkpoint").iterdir()) == ["step-000000020", "step-000000028"]
    assert sorted(entry.name for entry in (two / "checkpoint" / "step-000000020").iterdir()) == sorted(FILES)
    found = newest(two)
    assert (found.manifest.position.steps, found.damaged) == (28, ())
    assert set(contents(found)) == {"parameters", "state.accumulator"}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_named_and_the_checkpoint_before_is_used(two, tmp_path, data):
    good = contents(newest(two))
    path = tmp_path / "run"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(two, path)
    name = data.draw(st.sampled_from(FILES))
    file = path / "checkpoint" / "step-000000028" / name
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    is_changed = bytes(content) != file.read_bytes()
    file.write_bytes(content)
    found = newest(path)
    if found.manifest.position.steps == 28:  # a change of what is not read, such as white space, or none
        assert not is_changed or name == "manifest.json"
        assert contents(found) == good
    else:
        assert found.manifest.position.steps == 20
        assert len(found.damaged) == 1
        assert f"step-000000028/{name}: is damaged: " in found.damaged[0]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["gone", "link", "pipe", "folder"])
def test_files_that_are_none(two, tmp_path, name, kind):
    path = tmp_path / "run"
    shutil.copytree(two, path)
    file = path / "checkpoint" / "step-000000028" / name
    file.rename(tmp_path / "elsewhere")
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(file)
    if kind == "folder":
        file.mkdir()
    assert newest(path).manifest.position.steps == 20


def test_all_damaged_is_one_line_and_status_2(two, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(two, path)
    words = [word for setting in QUICK for word in ("--set", setting)]
    command = ["train", str(EXAMPLES / "digits.toml"), "--out", str(path), *words, "--set", "run.transport=threads"]
    (path / "checkpoint" / "step-000000028" / FILES[1]).write_bytes(b"")
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert said.err.startswith("hpcps: warning: ")
    assert said.err.count("\n") == 1
    assert "step-000000028/shard-00000.safetensors: is damaged: it has 0 bytes, not" in said.err
    assert "going on after step 20: " in said.out
    (path / "summary.json").unlink()
    for step in (20, 28):
        (path / "checkpoint" / f"step-{step:09d}" / FILES[2]).write_bytes(b"x")
    for ranks in ("1", "3"):
        assert cli.main([*command, "--ranks", ranks]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("hpcps: error: no checkpoint is whole: ")
        assert said.err.count("\n") == 1
    assert cli.main([*command, "--overwrite"]) == 0


def hostile(path, change):
    """A checkpoint whose manifest was changed by somebody who knows how to seal it."""
    file = path / "checkpoint" / "step-000000028" / "manifest.json"
    tree = msgspec.json.decode(msgspec.json.decode(file.read_bytes(), type=manifest._Sealed).manifest)
    change(tree)
    inside = msgspec.json.encode(tree)
    digest = __import__("hashlib").sha256(inside).hexdigest()
    file.write_bytes(msgspec.json.encode(manifest._Sealed(digest, msgspec.Raw(inside))))


def _rename(tree):
    tree["files"][0]["name"] = "../../../secret.safetensors"


def _enlarge(tree):
    tensors = tree["files"][0]["tensors"]
    tensors[next(iter(tensors))]["shape"] = [1 << 60]


def _twice(tree):
    tree["files"].append(tree["files"][0])


def _unknown(tree):
    tree["files"][0]["flats"][0]["tensor"] = "another"


def _format(tree):
    tree["format"] = 2


def _negative(tree):
    tree["files"][0]["flats"][0]["start"] = -4


def _step(tree):
    tree["position"]["steps"] = 27


@pytest.mark.parametrize("change", [_rename, _enlarge, _twice, _unknown, _format, _negative, _step])
def test_a_manifest_made_with_intent_is_not_believed(two, tmp_path, change):
    path = tmp_path / "run"
    shutil.copytree(two, path)
    hostile(path, change)
    assert newest(path).manifest.position.steps == 20


def test_pieces_that_do_not_make_up_the_whole_are_an_error(two, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(two, path)
    hostile(path, lambda tree: tree["files"].pop())
    with pytest.raises(CheckpointError, match="parameters has not the elements 0 to 649"):
        train(path)
    hostile(path, lambda tree: tree["files"][0]["flats"][0].update(start=1))
    with pytest.raises(CheckpointError, match="parameters has not the elements"):
        train(path, ranks=2)


def test_a_state_of_another_kind_of_numbers_is_an_error():
    position = hpcps.snapshot.Position(1, 1, 1, (0.0,), 0, {}, {})
    flat = Flat("parameters", 0, in_memory(np.zeros(4, np.float64)))
    with pytest.raises(CheckpointError, match="holds float64"):
        Snapshot(position, Pieces([flat])).fill(np.zeros(4, np.float32), "parameters")
    rows = TableRows("t", {"rows": in_memory(np.zeros((4, 2))), "keys": in_memory(np.zeros(3, np.int64))})
    with pytest.raises(CheckpointError, match="t has keys as int64"):
        list(Snapshot(position, Pieces(tables=[rows])).rows("t", 2, np.dtype(np.float64), ()))
    with pytest.raises(CheckpointError, match="there twice"):
        Snapshot(position, Pieces([flat, flat]))


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("where", ["part", "manifest", "shard"])
def test_a_full_disk_is_said_and_training_goes_on(tmp_path, monkeypatch, capsys, ranks, where):
    strategy = "ring" if where == "part" else "server"
    settings = ["checkpoint.every_steps=6", f"train.strategy={strategy}"]
    whole = train(tmp_path / "whole", *settings, ranks=ranks)
    if where == "shard" and ranks == 1:
        pytest.skip("one rank alone has its shards itself")
    calls = []

    def write_part(path, holder, pieces):
        calls.append(holder)
        if len(calls) > 2:
            (path / f"{holder}.safetensors").write_bytes(b"half")
            raise FULL
        part.write_part(path, holder, pieces)

    def complete(self, step, content):
        calls.append(step)
        if len(calls) > 2:
            (self.aside(step) / "manifest.json").write_bytes(content[:10])
            raise FULL
        real_complete(self, step, content)

    real_complete = CheckpointFolder.complete
    if where == "manifest":
        monkeypatch.setattr(CheckpointFolder, "complete", complete)
    else:
        monkeypatch.setattr(keeper, "write_part", write_part)
    found = train(tmp_path / "run", *settings, ranks=ranks)
    assert found["params_sha256"] == whole["params_sha256"]
    assert len(found["checkpoint_problems"]) == 3
    assert found["checkpoints"] == 2
    assert "No space left on device" in found["checkpoint_problems"][0]
    said = capsys.readouterr().err
    assert said.count("hpcps: warning: ") == 3
    assert "step-000000018: cannot be written: " in said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir()) == [
        "step-000000006",
        "step-000000012",
    ]
    assert newest(tmp_path / "run", *settings).manifest.position.steps == 12


def test_a_file_system_that_is_really_full(tmp_path):
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); "
    code = limit + "from hpcps.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [word for setting in [*QUICK, "checkpoint.every_steps=6"] for word in ("--set", setting)]
    environment = {**os.environ, "HPCPS_CACHE_DIR": os.environ.get("HPCPS_CACHE_DIR", "")}
    environment = {name: value for name, value in environment.items() if value}
    command = [sys.executable, "-c", code, "train", EXAMPLES / "digits.toml", "--out", tmp_path / "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert "step-000000006: cannot be written: File too large" in done.stderr, done.stderr
    assert not list((tmp_path / "run" / "checkpoint").iterdir())
    assert "epoch 2/2" in done.stdout  # the model itself has 3 KB


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_that_cannot_be_made(tmp_path, capsys, ranks):
    (tmp_path / "file").write_text("")
    found = train(tmp_path / "run", "checkpoint.every_steps=9", f"checkpoint.path={tmp_path}/file/x", ranks=ranks)
    assert found["checkpoints"] == 0
    assert len(found["checkpoint_problems"]) == 4
    assert "file/x/step-000000009: cannot be written: Not a directory" in capsys.readouterr().err


def test_the_newest_are_kept_and_what_is_half_written_goes(tmp_path):
    train(tmp_path / "run", "checkpoint.every_steps=4", "checkpoint.keep=3")
    path = tmp_path / "run" / "checkpoint"
    assert [one.name for one in sorted(path.iterdir())] == [folder.name_of(step) for step in (20, 24, 28)]
    (path / ".step-000000032").mkdir()
    (path / ".step-000000032" / "worker-00000.safetensors").write_bytes(b"half")
    (path / "step-000000028" / "manifest.json").write_bytes(b"")
    (tmp_path / "run" / "summary.json").unlink()
    train(tmp_path / "run", "checkpoint.every_steps=2", "checkpoint.keep=1")
    assert [one.name for one in sorted(path.iterdir())] == ["step-000000028"]
    assert newest(tmp_path / "run").manifest.position.resumed == (24,)


def test_checkpoints_in_a_folder_of_their_own(tmp_path):
    place = f"checkpoint.path={tmp_path}/apart"
    whole = train(tmp_path / "whole", "checkpoint.every_steps=10", place)
    assert not (tmp_path / "whole" / "checkpoint").exists()
    found = train(tmp_path / "another", place, "train.epochs=2")
    assert found["resumed_from"] == [28]
    assert found["params_sha256"] == whole["params_sha256"]


def test_a_checkpoint_that_does_not_fit_into_memory_twice_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "free_memory", lambda: 0)

    def copy(pieces):
        assert not pieces.nbytes
        return pieces

    monkeypatch.setattr(Pieces, "copy", copy)
    train(tmp_path / "run", "checkpoint.every_steps=9", "train.strategy=server", ranks=3)
    assert newest(tmp_path / "run").manifest.position.steps == 28


def test_seconds_between_checkpoints(tmp_path):
    found = train(tmp_path / "run", "checkpoint.every_s=0.001", "checkpoint.keep=99", ranks=2)
    assert found["checkpoints"] > 2
    (tmp_path / "run" / "summary.json").unlink()
    assert train(tmp_path / "run", "train.epochs=3", ranks=3)["resumed_from"] == [28]


SLOW = """
import os, signal, time
import numpy as np

calls = 0

def loss_gradient(params, samples, labels):
    global calls
    calls += "KILL_AT" in os.environ
    if os.environ.get("KILL_AT") == str(calls):
        os.kill(os.getpid(), int(os.environ["KILL_BY"]))
    if "KILL_AT" in os.environ:
        time.sleep(0.001)
    scores = samples @ params["weight"].T
    scores[np.arange(len(labels)), labels] -= 1
    return float((scores**2).sum()), {"weight": 2 * scores.T @ samples}
"""


@pytest.fixture
def slow(tmp_path):
    """A run that sends itself a signal, if it is told to."""
    (tmp_path / "mine.py").write_text(SLOW)
    (tmp_path / "slow.toml").write_text(
        'data.path = "digits"\ndata.scale = "maxabs"\nmodel.kind = "mine.py:loss_gradient"\n'
        "model.parameters = { weight = [10, 64] }\nmodel.task = 'multiclass'\noptimizer.learning_rate = 0.01\n"
        "train.epochs = 40\ntrain.batch = 100\ntrain.grains = 4\ntrain.reproducible = true\n"
    )
    return tmp_path / "slow.toml"


@pytest.mark.parametrize("name", ["USR1", "TERM"])
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, []),
        (2, []),
        (3, ["train.strategy=server"]),
        (2, ["train.strategy=server", "server.colocated=true"]),
    ],
)
def test_a_signal_stops_a_run_which_then_goes_on(slow, tmp_path, monkeypatch, ranks, settings, name):
    whole = hpcps.train(read(slow, {}, ["run.threads=1"]), out=tmp_path / "whole").summary
    number = int(signal.Signals[f"SIG{name}"])
    monkeypatch.setenv("KILL_AT", "40")
    monkeypatch.setenv("KILL_BY", str(number))
    before = signal.getsignal(number)
    told = read(slow, {}, ["run.threads=1", *settings])
    with pytest.raises(
        StoppedError, match=rf"stopped by SIG{name} after step \d+; the same command, .* goes on"
    ) as info:
        hpcps.train(told, ranks=ranks, out=tmp_path / "run")
    assert info.value.exit_status == 75
    assert signal.getsignal(number) is before
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.delenv("KILL_AT")
    found = hpcps.train(told, ranks=ranks, out=tmp_path / "run").summary
    assert len(found["resumed_from"]) == 1
    assert [found[name] for name in ("params_sha256", "loss")] == [whole[name] for name in ("params_sha256", "loss")]


def test_the_program_says_how_to_go_on(slow, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KILL_AT", "40")
    monkeypatch.setenv("KILL_BY", str(int(signal.SIGTERM)))
    command = ["train", str(slow), "--out", str(tmp_path / "run")]
    assert cli.main(command) == 75
    said = capsys.readouterr()
    assert said.err.startswith("hpcps: stopped by SIGTERM after step ")
    assert said.err.count("\n") == 1
    monkeypatch.delenv("KILL_AT")
    assert cli.main(command) == 0
    assert "going on after step " in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["resumed_from"]) == 1


def test_a_run_that_is_told_to_stop_and_cannot_write_says_so(slow, tmp_path, monkeypatch):
    monkeypatch.setenv("KILL_AT", "40")
    monkeypatch.setenv("KILL_BY", str(int(signal.SIGTERM)))
    (tmp_path / "file").write_text("")
    told = read(slow, {}, [f"checkpoint.path={tmp_path}/file/x"])
    with pytest.raises(CheckpointError, match=r"stopped by SIGTERM .*, and there is no checkpoint: .*Not a directory"):
        hpcps.train(told, out=tmp_path / "run")


def test_signals_that_are_not_listened_to(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint\.signals: no signal 'KILL' \(signals that mean"):
        config("checkpoint.signals=USR1,KILL")
    before = signal.getsignal(signal.SIGTERM)
    with stopping.listening([]) as stop:
        assert stop is None
        assert signal.getsignal(signal.SIGTERM) is before
    assert train(tmp_path / "run", "checkpoint.signals=")["checkpoints"] == 0
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_overwrite_or_resume(capsys, tmp_path):
    command = ["train", str(EXAMPLES / "digits.toml"), "--out", str(tmp_path / "run"), "--overwrite", "--resume"]
    assert cli.main(command) == 2
    assert "give one of them" in capsys.readouterr().err


KILLS = 6


def test_kills_leave_a_checkpoint_that_is_good(tmp_path):
    """Of a run that writes one at every step."""
    settings = ["train.epochs=30", "checkpoint.every_steps=1", "train.batch=200", "train.strategy=server"]
    words = [word for setting in [*QUICK, *settings] for word in ("--set", setting)]
    command = [sys.executable, "-m", "hpcps", "train", str(EXAMPLES / "digits.toml"), "--out", str(tmp_path / "run")]
    command += [*words, "--ranks", "3", "--set", "run.transport=threads"]
    whole = train(tmp_path / "whole", *settings, "checkpoint.every_steps=0")
    draw, last = random.Random(1), 0
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while CheckpointFolder(tmp_path / "run" / "checkpoint").steps()[-1:] <= [last] and process.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
            process.communicate()
        found = newest(tmp_path / "run", *settings)
        assert found.damaged == ()
        assert found.manifest.position.steps > last
        last = found.manifest.position.steps
    found = train(tmp_path / "run", *settings, ranks=2, resume=True)
    assert found["params_sha256"] == whole["params_sha256"]
