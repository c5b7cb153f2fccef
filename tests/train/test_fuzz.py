"""Configurations and folders of runs, damaged in every way, are told of in one line: no traceback, no huge array."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import hpcps
from hpcps import config, inference
from hpcps.collectives import tune
from hpcps.comm.local import LocalWorld
from hpcps.config import HELP
from hpcps.errors import ConfigError, DataError, HpcpsError
from hpcps.run_folder import MODEL, SUMMARY
from hpcps.server import turns

MOST_BYTES = 32 << 20
TEXT = """
data.path = "digits"
model.kind = "mlp"
model.hidden = [8, 8]
train.epochs = 1
train.batch = 100
[optimizer]
kind = "adam"
learning_rate = 0.01
"""
PLACES = st.floats(0, 1, exclude_max=True)
DAMAGE = st.lists(
    st.tuples(PLACES, st.sampled_from(["flip", "cut", "insert"]), st.binary(min_size=1, max_size=4)), max_size=4
)
VALUES = st.one_of(
    st.sampled_from(
        ["nan", "inf", "-inf", "-0.0", "1e308", "1" + "0" * 400, "9" * 5000, "true", "''", '"\\u0000"', "1979-05-27"]
    ),
    st.sampled_from(
        ["[]", "[[]]", "[" * 3000, "{" * 500, "{a=1}", "[1, 'a']", '"' + "x" * 5000 + '"', "0x" + "f" * 5000, "2_0"]
    ),
    st.text(max_size=10),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
)


def damaged(content: bytes, damage) -> bytes:
    for place, how, given_bytes in damage:
        at = int(place * len(content))
        if how == "cut":
            content = content[:at]
        elif how == "insert":
            content = content[:at] + given_bytes + content[at:]
        elif content:
            content = content[:at] + bytes([content[at] ^ given_bytes[0]]) + content[at + 1 :]
    return content


def told(call, *kinds):
    """Call it: None, or its error as one line."""
    try:
        call()
    except kinds as error:
        message = str(error)
    else:
        event("read")
        return None
    event("refused")
    assert "\n" not in message, message
    return message


def frugally(call, *kinds):
    """The same, with little memory."""
    tracemalloc.start()
    try:
        message = told(call, *kinds)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# --- configurations


@settings(max_examples=150, deadline=None)
@given(damage=DAMAGE)
def test_a_damaged_configuration(folder, damage):
    file = folder / "a.toml"
    file.write_bytes(damaged(TEXT.encode(), damage))
    told(lambda: config.read(file, {}), ConfigError)


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text("[]{}=.,\"'#\n abckindmodel01", max_size=80).map(str.encode)))
@example(content=b"a=" + b"[" * 5000)
@example(content=b"a=" + b"9" * 5000)
@example(content=b"a" + b".a" * 5000 + b"=1")
def test_any_bytes_as_a_configuration(folder, content):
    file = folder / "b.toml"
    file.write_bytes(content)
    told(lambda: config.read(file, {}), ConfigError)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(sorted(HELP)), value=VALUES, more=st.sampled_from(["", "", ".inner", ".a.b"]))
def test_any_value_of_any_key(folder, key, value, more):
    """In a file, by the environment and on the command line."""
    file = folder / "c.toml"
    file.write_text(TEXT)
    section, name = key.split(".")
    told(lambda: config.read(file, {}, [f"{key}{more}={value}"]), ConfigError)
    told(lambda: config.read(file, {f"HPCPS_{section}_{name}".upper(): value}), ConfigError)
    base = "" if key in ("data.path", "model.kind") else 'data.path = "digits"\nmodel.kind = "mlp"\n'
    file.write_text(f"{base}{key}{more} = {value}\n", "utf-8", "surrogatepass")
    told(lambda: config.read(file, {}), ConfigError)


@settings(max_examples=100, deadline=None)
@given(
    settings=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from(
                [
                    "data=1",
                    "model.hidden=1",
                    "model.hidden.a=1",
                    "model.parameters=1",
                    "model.parameters.w=2",
                    "=",
                    ".=",
                ]
            ),
        )
    )
)
def test_any_words_of_the_command_line(folder, settings):
    file = folder / "d.toml"
    file.write_text(TEXT)
    told(lambda: config.read(file, {}, settings), ConfigError)


# --- folders of runs


@pytest.fixture(scope="module", params=["mlp", "fm"])
def run(request, tmp_path_factory):
    """A finished run, and a copy of it to be damaged."""
    root = tmp_path_factory.mktemp("run")
    (root / "a.toml").write_text(TEXT if request.param == "mlp" else FM)
    rng = np.random.default_rng(1)
    lines = [
        f"{i % 2} " + " ".join(f"{j + 1}:1" for j in sorted(rng.choice(300, 5, replace=False))) for i in range(300)
    ]
    (root / "a.svm").write_text("\n".join(lines))
    hpcps.train(config.read(root / "a.toml", {}), out=root / "run")
    shutil.copytree(root / "run", root / "copy")
    source = "digits" if request.param == "mlp" else str(root / "a.svm")
    return root / "run", root / "copy", source


FM = """
data.path = "a.svm"
model.kind = "fm"
model.task = "binary"
model.factors = 2
train.epochs = 1
train.batch = 100
"""


def use(run):
    whole, copy, source = run
    try:
        return frugally(lambda: (inference.predict(copy, source), inference.evaluate(copy)), HpcpsError)
    finally:
        for path in whole.iterdir():
            shutil.copy(path, copy / path.name)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([SUMMARY, MODEL, "config.toml"]), damage=DAMAGE)
def test_a_damaged_file_of_a_run(run, name, damage):
    (run[1] / name).write_bytes(damaged((run[0] / name).read_bytes(), damage))
    use(run)


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=100), name=st.sampled_from([SUMMARY, MODEL, "config.toml"]))
@example(content=b"[" * 100000, name=SUMMARY)
@example(content=b"9" * 5000, name=SUMMARY)
@example(content=(2**62).to_bytes(8, "little") + b"{}", name=MODEL)
def test_any_bytes_as_a_file_of_a_run(run, content, name):
    (run[1] / name).write_bytes(content)
    assert use(run) is not None or name == SUMMARY


STRANGE = st.sampled_from([-1, 0, 1, 3, 2**31, 2**40, 2**62, np.nan, np.inf, -np.inf, 1e300])


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    value=STRANGE,
    dtype=st.sampled_from(["i8", "f8", "f4", "u1", "?"]),
    shape=st.sampled_from([(), (0,), (1,), (3,), (2, 2)]),
)
def test_a_strange_tensor_in_a_model(run, data, value, dtype, shape):
    """Any one of them of another shape, dtype or value; or gone; or one too many."""
    tensors = load_file(run[0] / MODEL)
    name = data.draw(st.sampled_from([*sorted(tensors), "more", "hpcps.more"]))
    how = data.draw(st.sampled_from(["gone", "other", "value"]))
    with np.errstate(all="ignore"):
        if how == "gone":
            tensors.pop(name, None)
        elif how == "value" and name in tensors:
            tensors[name] = np.full_like(tensors[name], np.array(value).astype(tensors[name].dtype))
        else:
            tensors[name] = np.full(shape, np.array(value).astype(dtype))
    save_file(tensors, run[1] / MODEL)
    use(run)


@settings(max_examples=40, deadline=None)
@given(content=st.one_of(st.binary(max_size=40), st.binary(max_size=9).map(lambda rest: turns.MAGIC + rest)))
def test_any_bytes_as_a_record(folder, content):
    (folder / turns.file_name(0)).write_bytes(content)
    told(lambda: turns.load(folder, 0, 3), ConfigError, DataError)


@settings(max_examples=60, deadline=None)
@given(content=st.one_of(st.binary(max_size=60), VALUES.map(lambda text: f'{{"table": [[{text}, "ring"]]}}'.encode())))
@example(content=b"[" * 100000)
@example(content=b'{"table": [["1", "ring"]]}')
@example(content=json.dumps({"table": [[2**62, "ring"], [1e3, "ring"]]}).encode())
def test_any_bytes_as_a_table_of_measurements(folder, content):
    """What cannot be read is as if it were not there."""
    (folder / "table.json").write_bytes(content)
    with mock.patch.object(tune, "table_path", return_value=folder / "table.json"):
        rows = tune.load(LocalWorld(1).transports()[0])
    assert all(isinstance(size, int) and algorithm for size, algorithm in rows)
