import tomllib
from pathlib import Path

import msgspec
import pytest

from hpcps import config
from hpcps.errors import ConfigError

MINIMAL = 'data.path = "digits"\nmodel.kind = "softmax"\n'


def write(folder: Path, text: str) -> Path:
    file = folder / "c.toml"
    file.write_text(text)
    return file


def test_every_key_has_a_line_of_help_and_every_help_a_key():
    tree = msgspec.to_builtins(config.read(None, {}, ["data.path=x", "model.kind=softmax"]))
    keys = {f"{section}.{key}" for section, values in tree.items() for key in values}
    assert keys == set(config.HELP)


def test_file_then_environment_then_settings(tmp_path):
    file = write(tmp_path, MINIMAL + "train.batch = 1\ntrain.epochs = 1\ntrain.seed = 1\n")
    environment = {"HPCPS_TRAIN_EPOCHS": "2", "HPCPS_TRAIN_SEED": "2", "HPCPS_CACHE_DIR": "/x", "OTHER": "y"}
    found = config.read(file, environment, ["train.seed=3", "train.strategy=ring", "run.timeout_s=2"])
    assert (found.train.batch, found.train.epochs, found.train.seed) == (1, 2, 3)
    assert (found.train.strategy, found.run.timeout_s) == ("ring", 2.0)


def test_text_keys_take_what_looks_like_a_number(tmp_path):
    found = config.read(write(tmp_path, MINIMAL), {}, ["data.label_column=-1", "data.path=2024"])
    assert (found.data.label_column, found.data.path) == ("-1", "2024")


def test_widths_are_set_from_the_command_line(tmp_path):
    found = config.read(write(tmp_path, MINIMAL), {}, ["model.kind=mlp", "model.hidden=[512, 256]"])
    assert found.model.hidden == (512, 256)
    assert config.from_tree(tomllib.loads(config.to_toml(found))) == found


def test_paths_in_a_file_are_relative_to_it_and_built_in_names_are_not(tmp_path):
    text = 'data.path = "a/b.csv"\ndata.test = "t.csv"\nmodel.kind = "m.py:f"\nmodel.parameters.w = [2]\n'
    found = config.read(write(tmp_path, text))
    assert found.data.path == str(tmp_path / "a/b.csv")
    assert found.data.test == str(tmp_path / "t.csv")
    assert found.model.kind == f"{tmp_path}/m.py:f"
    assert config.read(write(tmp_path, MINIMAL)).data.path == "digits"
    given = config.read(write(tmp_path, MINIMAL), {"HPCPS_DATA_TEST": "t.csv"}, ["data.path=a/../b.csv"])
    assert (given.data.path, given.data.test) == (str(Path.cwd() / "b.csv"), str(Path.cwd() / "t.csv"))


def test_the_runs_copy_means_the_same_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    first = config.read(write(tmp_path, 'data.path = "folder"\nmodel.kind = "m.py:f"\nmodel.parameters.w = [2]\n'))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(config.to_toml(first))
    assert config.read(Path("run/config.toml")) == first
    assert first.data.path == str(tmp_path / "folder")


def test_written_out_in_full_and_read_back_the_same(tmp_path):
    settings = ['data.path=we"ird\\name.csv', "model.kind=m.py:f", "model.parameters.w x=[2, 3]", "train.seed=7"]
    found = config.read(None, {}, settings)
    text = config.to_toml(found)
    assert set(tomllib.loads(text)["train"]) == {key.split(".")[1] for key in config.HELP if key.startswith("train.")}
    again = config.from_tree(tomllib.loads(text))
    assert again == found


SERVER = 'train.strategy = "server"\n'
ASYNC = 'server.staleness = "async"\n'
CUDA = 'run.device = "cuda"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.bach = 3", r"c\.toml: train\.bach: unknown key; did you mean train\.batch\?"),
        ("trian.batch = 3", r"trian: unknown section; did you mean train\?"),
        ("train = 3", r"train: must be a table, not 3"),
        ('train.batch = "many"', r"train\.batch: expected `int`, got `str` \(the global batch in samples"),
        ("train.batch = 0", r"train\.batch: expected `int` >= 1 \(the global batch"),
        ('train.strategy = "star"', r"train\.strategy: invalid enum value 'star' \(auto \| ring \| server \| av"),
        ("optimizer.learning_rate = -1", r"optimizer\.learning_rate: expected `float` > 0"),
        ("optimizer.momentum = 0.9", r"optimizer\.momentum is sgd's; adagrad does not use it"),
        ("optimizer.beta1 = 0.5", r"optimizer\.beta1 is adam's, adamw's; adagrad does not use it"),
        ('optimizer.kind = "sgd"\noptimizer.epsilon = 0.5', r"optimizer\.epsilon is adagrad's, .*; sgd does not"),
        ('optimizer.kind = "adam"\noptimizer.weight_decay = 0.5', r"optimizer\.weight_decay is adamw's; adam does not"),
        ('optimizer.kind = "adamw"\noptimizer.beta = 0.5', r"optimizer\.beta is ftrl's; adamw does not use it"),
        ("optimizer.decay = 0.5", r"optimizer\.decay is rmsprop's; adagrad does not use it"),
        ('optimizer.kind = "sgd"\noptimizer.nesterov = true', r"optimizer\.nesterov .* set optimizer\.momentum, too"),
        ('optimizer.kind = "adamw"\noptimizer.l2 = 0.5', r"optimizer\.l2 is not adamw's; use optimizer\.weight_decay"),
        ("optimizer.l1 = -1", r"optimizer\.l1: expected `float` >= 0\.0 \(all but adamw"),
        ("optimizer.clip_norm = 1\nserver.count = 2", r"server\.count or colocated with optimizer\.clip_norm: a shard"),
        (f"{SERVER}optimizer.clip_norm = 1\nserver.colocated = true", r"with optimizer\.clip_norm: a shard"),
        ("server.staleness = 2", r"server\.staleness is the server strategy's; train\.strategy = 'auto' does not"),
        ('train.strategy = "ring"\nserver.count = 2', r"server\.count is the server strategy's; .* 'ring' does not"),
        (f"{SERVER}server.staleness = -1", r"server\.staleness: expected `int` >= 0"),
        (f'{SERVER}server.staleness = "soon"', r"server\.staleness: invalid enum value 'soon'"),
        (f"{SERVER}server.count = 2\nserver.colocated = true", r"server\.count = 2 with server\.colocated"),
        (f"{SERVER}server.warmup_steps = 2", r"server\.warmup_steps is for server\.staleness = N or 'async'"),
        (f'{SERVER}server.delay = "scale"', r"server\.delay is for server\.staleness = N or 'async'"),
        (f"{SERVER}server.record = true", r"server\.record is for server\.staleness = N or 'async'"),
        (f"{SERVER}server.staleness = 1\ntrain.reproducible = true", r"server\.staleness = 1 with train\.reproducible"),
        ("server.threshold = 1\nserver.count = 2", r"server\.count is the server strategy's; train\.strategy = 'auto'"),
        (
            'train.strategy = "ring"\nserver.threshold = 1',
            r"server\.threshold is the server strategy's; .* 'ring' does",
        ),
        ('train.strategy = "averaging"\nserver.kkt = 1', r"server\.kkt is the server strategy's; .* 'averaging' does"),
        ("server.threshold = 1\ntrain.reproducible = true", r"server\.threshold with train\.reproducible: which rows"),
        (
            f"{SERVER}server.kkt = 0.5",
            r"server\.kkt is for optimizer\.kind = 'ftrl', whose zeros last .*, not 'adagrad'",
        ),
        (f'{SERVER}server.kkt = 0.5\noptimizer.kind = "ftrl"', r"server\.kkt is a part of optimizer\.l1, which is 0"),
        (f"{SERVER}server.kkt = 1.5", r"server\.kkt: expected `float` <= 1\.0"),
        (f"{SERVER}server.compensation = 0.5", r"server\.compensation is for server\.delay = 'compensate'; 'none'"),
        (
            f"{SERVER}{ASYNC}server.replicas = 1\nserver.count = 2\nserver.record = true",
            r"record with server\.replicas",
        ),
        (f'{SERVER}{ASYNC}server.record = true\nserver.replay = "x"', r"server\.record with server\.replay"),
        ("train.backup = 1", r"train\.backup with train\.strategy = 'auto': only shards can go on without a worker"),
        ('train.strategy = "averaging"\ntrain.backup = 1', r"train\.backup with .* 'averaging': only shards can go on"),
        (f"{SERVER}train.backup = -1", r"train\.backup: expected `int` >= 0"),
        (
            f"{SERVER}train.backup = 1\ntrain.reproducible = true",
            r"train\.backup with train\.reproducible: who is late",
        ),
        (f"{SERVER}{ASYNC}train.backup = 1", r"train\.backup with server\.staleness = 'async': .* synchronous steps"),
        (
            f"{SERVER}train.backup = 1\nserver.staleness = 2",
            r"train\.backup with server\.staleness = 2: .* synchronous",
        ),
        (f"{SERVER}train.backup = 1\nserver.colocated = true", r"train\.backup with server\.colocated: a late worker"),
        (
            f"{SERVER}train.backup = 1\nserver.threshold = 1",
            r"train\.backup with server\.threshold: rows that were kept",
        ),
        (
            f"{SERVER}train.backup = 1\nserver.replicas = 1\nserver.count = 2\nserver.record = true",
            r"server\.record with server\.replicas: how far",
        ),
        (f'{SERVER}train.backup = 1\nserver.delay = "scale"', r"server\.delay is for server\.staleness = N or 'async'"),
        ('run.device = "gpu"', r"run\.device: invalid enum value 'gpu' \(cpu \| cuda: a GPU for each rank"),
        (
            f'{CUDA}train.strategy = "online"',
            r"run\.device = 'cuda' with train\.strategy = 'online': it learns",
        ),
        (f'{CUDA}train.strategy = "averaging"', r"with train\.strategy = 'averaging': it averages parameters where"),
        (f'{CUDA}optimizer.kind = "o.py:f"', r"with optimizer\.kind = '.*o\.py:f': your own optimizer gets NumPy's"),
        ('train.algorithm = "nccl"', r"train\.algorithm = 'nccl' with run\.device = 'cpu': it sums what is on GPUs"),
        (
            f'{CUDA}train.algorithm = "nccl"\ntrain.reproducible = true',
            r"with train\.reproducible: it adds in an order",
        ),
        (f'{CUDA}train.algorithm = "nccl"\ncompress.kind = "int8"', r"with compress\.kind = 'int8': it adds numbers"),
        (f"{CUDA}run.threads = 2", r"with run\.threads = 2: one thread of a rank keeps a GPU busy; start more ranks"),
        ("train.reproducible = true\ntrain.batch = 4", r"train\.grains = 8 is more than train\.batch = 4"),
        ("model.parameters.w = [1]", r"model\.parameters is for your own training function, not for softmax"),
        ("model.hidden = [64]", r"model\.hidden is mlp's, embedding's; softmax does not use it"),
        ('model.activation = "gelu"', r"model\.activation is mlp's, embedding's; softmax does not use it"),
        (
            "model.hidden = [0]",
            r"model\.hidden\[0\]: expected `int` >= 1 \(mlp, embedding: the widths of the hidden layers\)",
        ),
        ("train.batch =", r"c\.toml: Invalid value"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_its_help(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config.read(write(tmp_path, MINIMAL + text))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data: missing"):
        config.read(write(tmp_path, 'model.kind = "softmax"'))
    with pytest.raises(ConfigError, match=r"model\.kind: missing \(linear \| logistic"):
        config.read(write(tmp_path, 'data.path = "digits"\nmodel.task = "binary"'))
    with pytest.raises(ConfigError, match=r"no_such\.toml: No such file"):
        config.read(tmp_path / "no_such.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.read(tmp_path / "binary.toml")


@pytest.mark.parametrize("setting", ["train.batch", "batch=3", "train.bach=3", "train=3", "=3"])
def test_a_setting_that_cannot_be_used_is_named(tmp_path, setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0] or "^: unknown key"):
        config.read(write(tmp_path, MINIMAL), {}, [setting])


def test_an_environment_variable_with_a_wrong_key_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.bach"):
        config.read(write(tmp_path, MINIMAL), {"HPCPS_TRAIN_BACH": "3"})
