"""What a run is told: one frozen, typed :class:`Config`, from TOML < environment ``HPCPS_*`` < ``--set``.

Every key has one line of help here; errors repeat it. Paths in a file are relative to that file; paths from the
environment and the command line are relative to the working directory.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct

from hpcps.errors import ConfigError

LARGEST = 2**62
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Rate = Annotated[float, Meta(gt=0, le=1e300)]
NotNegative = Annotated[float, Meta(ge=0, le=1e300)]
HashBits = Annotated[int, Meta(ge=0, le=30)]
Block = Annotated[int, Meta(ge=16, le=65536)]
Share = Annotated[float, Meta(gt=0, le=1)]
Seconds = Annotated[float, Meta(gt=0, le=1e6)]


class Data(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where samples and labels come from."""

    path: str
    format: Literal["auto", "idx", "npz", "npy", "csv", "libsvm"] = "auto"
    labels: str = ""
    test: str = ""
    test_fraction: Fraction = 0.0
    scale: Literal["none", "bytes", "maxabs", "standard"] = "none"
    label_column: str = "auto"
    features: Count = 0
    zero_based: bool = False
    window: Count = 0
    hash_bits: HashBits = 0


class Model(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained."""

    kind: str
    task: Literal["auto", "regression", "binary", "multiclass"] = "auto"
    hidden: tuple[Positive, ...] = (128,)
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    parameters: dict[str, list[Positive]] = {}
    scores: str = ""
    loss: Literal["auto", "squared", "huber", "poisson", "logistic", "hinge", "squared_hinge"] = "auto"
    delta: Rate = 1.0
    factors: Positive = 8
    width: Positive = 16
    combine: Literal["sum", "mean", "concat"] = "sum"


class Optimizer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How gradients change parameters."""

    kind: str = "adagrad"
    learning_rate: Rate = 0.1
    momentum: Fraction = 0.0
    nesterov: bool = False
    decay: Fraction = 0.9
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Rate = 1e-8
    weight_decay: NotNegative = 0.01
    beta: NotNegative = 1.0
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0
    clip_norm: NotNegative = 0.0


class Train(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The loop."""

    epochs: Positive = 5
    batch: Positive = 256
    seed: Count = 0
    dtype: Literal["float32", "float64"] = "float32"
    strategy: Literal["auto", "ring", "server", "averaging"] = "auto"
    average_every: Positive = 10
    average_warmup: Count = 0
    algorithm: Literal["auto", "memory", "ring", "doubling", "hierarchical", "mpi"] = "auto"
    reproducible: bool = False
    grains: Positive = 8
    report_every: Count = 0


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The parameter server."""

    count: Positive = 1
    colocated: bool = False
    replicas: Annotated[int, Meta(ge=0, le=1)] = 0
    staleness: Count | Literal["async"] = 0
    warmup_steps: Count = 0
    admit_after: Annotated[int, Meta(ge=0, lt=65535)] = 0
    evict_after: Count = 0
    delay: Literal["none", "scale", "compensate"] = "none"
    compensation: Rate = 0.04
    record: bool = False
    replay: str = ""


class Compress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What gradients become on their way between workers."""

    kind: Literal["none", "bf16", "int8", "topk"] = "none"
    block: Block = 256
    fraction: Share = 0.01


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where and how the ranks run."""

    device: Literal["cpu", "cuda"] = "cpu"
    threads: Count = 0
    transport: Literal["auto", "mpi", "threads"] = "auto"
    timeout_s: Seconds = 300.0


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run, whole."""

    data: Data
    model: Model
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    server: Server = Server()
    compress: Compress = Compress()
    run: Run = Run()


HELP = {
    "data.path": "a built-in name (digits), a file, a folder or a glob",
    "data.format": "auto | idx | npz | npy | csv | libsvm",
    "data.labels": "the labels' own file, for npy and IDX where the name does not tell it",
    "data.test": "held-out samples: a file, a folder or a glob",
    "data.test_fraction": "the part of the samples to hold out, 0 <= f < 1, chosen by train.seed",
    "data.scale": "none | bytes (x / 255) | maxabs (x / the largest magnitude) | standard (mean 0, deviation 1)",
    "data.label_column": "CSV: the label's column, by name or by number from 0 (negative: from the end)",
    "data.features": "libsvm: the number of features (0: the largest index seen)",
    "data.zero_based": "libsvm: whether indices begin at 0",
    "data.window": "libsvm, CSV: samples of a part in memory at a time, shuffled among themselves (0: all)",
    "data.hash_bits": "CSV: columns are categories, hashed into 2^bits features, 8 <= bits <= 30 (0: numbers)",
    "model.kind": "linear | logistic | softmax | mlp | fm | embedding | matrix-factorization | file.py:name (your own)",
    "model.task": "auto | regression | binary | multiclass: what the labels are",
    "model.parameters": "names and shapes, for your own training function: weight = [10, 64]",
    "model.scores": "file.py:name of a function (params, samples) -> scores, so that your model can predict",
    "model.hidden": "mlp, embedding: the widths of the hidden layers",
    "model.activation": "mlp, embedding: relu | tanh | gelu, after each hidden layer",
    "model.loss": "auto | squared, huber, poisson (regression) | logistic, hinge, squared_hinge (binary)",
    "model.delta": "huber: up to which error the loss is squared, > 0",
    "model.factors": "fm, matrix-factorization: numbers that stand for a feature or an id",
    "model.width": "embedding: numbers that stand for a feature",
    "model.combine": "embedding: sum | mean of a sample's features | concat (each sample has as many)",
    "optimizer.kind": "sgd | adagrad | rmsprop | adam | adamw | ftrl | file.py:name (your own)",
    "optimizer.learning_rate": "step size, > 0",
    "optimizer.momentum": "sgd: the part of the velocity that is kept, 0 <= m < 1",
    "optimizer.nesterov": "sgd with momentum: look ahead along the velocity",
    "optimizer.decay": "rmsprop: decay of the mean square, 0 <= d < 1",
    "optimizer.beta1": "adam, adamw: decay of the mean, 0 <= b < 1",
    "optimizer.beta2": "adam, adamw: decay of the mean square, 0 <= b < 1",
    "optimizer.epsilon": "adagrad, rmsprop, adam, adamw: added to the divisor, > 0",
    "optimizer.weight_decay": "adamw: the part of a parameter taken off in a step, times the learning rate, >= 0",
    "optimizer.beta": "ftrl: added to the root of the summed squares, >= 0",
    "optimizer.l1": "all but adamw: adds l1 * sign(p) to the gradient; ftrl's own, which makes zeros; >= 0",
    "optimizer.l2": "all but adamw: adds l2 * p to the gradient; ftrl's own; >= 0",
    "optimizer.clip_norm": "the norm to which a longer mean gradient is scaled down (0: never)",
    "train.epochs": "passes over the training samples, >= 1",
    "train.batch": "the global batch in samples, whatever the rank count",
    "train.seed": "what all random draws are keyed by, >= 0",
    "train.dtype": "float32 | float64",
    "train.strategy": "auto | ring | server | averaging",
    "train.average_every": "averaging: steps that workers train alone before their parameters are averaged, >= 1",
    "train.average_warmup": "averaging: steps at the start with an averaging after each (post-local SGD)",
    "train.algorithm": "auto | memory | ring | doubling | hierarchical | mpi: how arrays are all-reduced",
    "train.reproducible": "the same bits at any rank and thread count",
    "train.grains": "parts of a reproducible batch, added in a fixed order; at least as many as workers",
    "train.report_every": "steps between progress lines (0: once an epoch)",
    "server.count": "server shards, each on a rank of its own",
    "server.colocated": "every rank is a worker and holds a shard; there are no ranks of servers alone",
    "server.replicas": "0 | 1: copies of each shard, on the rank of the next, that follow it update by update",
    "server.staleness": "0: synchronous | N: a worker may miss the last N steps of others | async",
    "server.warmup_steps": "the first steps are synchronous, whatever the staleness",
    "server.admit_after": "pushes of a key that are dropped, and counted, before it gets a row of its own, < 65535",
    "server.evict_after": "rows that were not pushed in so many updates of their shard are taken away (0: never)",
    "server.delay": "none | scale (by 1 / (1 + age)) | compensate: what is done about gradients of old parameters",
    "server.compensation": "compensate: its strength, > 0",
    "server.record": "keep the order in which shards took what workers sent, in the run's folder",
    "server.replay": "the folder of a recorded run, to be repeated to the last bit",
    "compress.kind": "none | bf16 | int8 | topk: gradients in fewer bytes; what is left out is sent later",
    "compress.block": "int8: numbers that share a scale, 16 <= b <= 65536",
    "compress.fraction": "topk: the part of the numbers that is sent, the largest, 0 < f <= 1",
    "run.device": "cpu",
    "run.threads": "threads of a rank (0: the cores that it may use)",
    "run.transport": "auto | mpi | threads",
    "run.timeout_s": "seconds after which a wait for another rank is an error",
}

OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "ftrl")
_POINT = ("linear", "logistic", "fm", "matrix-factorization")
_FACTORS = ("fm", "matrix-factorization")
USERS = {
    "model.loss": _POINT,
    "model.delta": _POINT,
    "model.factors": _FACTORS,
    "model.hidden": ("mlp", "embedding"),
    "model.activation": ("mlp", "embedding"),
    "model.width": ("embedding",),
    "model.combine": ("embedding",),
    "optimizer.learning_rate": OPTIMIZERS,
    "optimizer.clip_norm": OPTIMIZERS,
    "optimizer.momentum": ("sgd",),
    "optimizer.nesterov": ("sgd",),
    "optimizer.decay": ("rmsprop",),
    "optimizer.beta1": ("adam", "adamw"),
    "optimizer.beta2": ("adam", "adamw"),
    "optimizer.epsilon": ("adagrad", "rmsprop", "adam", "adamw"),
    "optimizer.weight_decay": ("adamw",),
    "optimizer.beta": ("ftrl",),
    "compress.block": ("int8",),
    "compress.fraction": ("topk",),
}
"""The kinds of model, optimiser or compression that use a key, where not all do."""

_SECTIONS = get_type_hints(Config)
_PATHS = ("data.path", "data.labels", "data.test", "model.kind", "model.scores", "optimizer.kind", "server.replay")


def read(path: Path | None, environment: Mapping[str, str] | None = None, settings: Iterable[str] = ()) -> Config:
    """The configuration of ``path`` (TOML), overridden by ``HPCPS_SECTION_KEY`` variables and ``section.key=value``
    settings. Raises ConfigError naming the file or the key."""
    tree = _read_toml(path) if path is not None else {}
    source = str(path) if path is not None else "configuration"
    overrides: dict[str, Any] = {}
    for key, text in [*_environment(environment or {}), *map(_split_setting, settings)]:
        _put(overrides, key, text)
    _make_absolute(overrides, Path.cwd())
    _merge(tree, overrides)
    return from_tree(tree, source)


def from_tree(tree: Mapping[str, Any], source: str = "configuration") -> Config:
    """A checked Config from nested dictionaries. Raises ConfigError naming the key."""
    _refuse_unknown(tree, source)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error))}") from error
    _check(config, source)
    return config


def to_toml(config: Config) -> str:
    """The whole configuration as TOML, defaults included; :func:`read` takes it back."""
    tree = msgspec.to_builtins(config)
    lines = []
    for section, values in tree.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_literal(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _literal(value: Any) -> str:
    """A TOML value; JSON's strings, numbers, booleans and arrays are TOML's."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_literal(key)} = {_literal(item)}" for key, item in value.items())
        return "{" + inside + "}"
    return msgspec.json.encode(value).decode()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    _make_absolute(tree, path.absolute().parent)
    return tree


def _make_absolute(tree: Mapping[str, Any], folder: Path) -> None:
    """Paths relative to ``folder`` as absolute ones, so that the run's copy holds anywhere; names stay names."""
    for key in _PATHS:
        section, name = key.split(".")
        values = tree.get(section)
        if not isinstance(values, dict) or not isinstance(values.get(name), str):
            continue
        value = values[name]
        if section in ("model", "optimizer"):
            is_path = ":" in value
        else:
            is_path = section == "server" or any(mark in value for mark in "/.*?[")
        if value and (is_path or (section == "data" and (folder / value).exists())):
            values[name] = os.path.normpath(folder / value)


def _environment(environment: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """``HPCPS_TRAIN_BATCH=64`` as ``train.batch``; other ``HPCPS_*`` variables are not the configuration's."""
    for name in sorted(environment):
        section, _, key = name.removeprefix("HPCPS_").lower().partition("_")
        if name.startswith("HPCPS_") and section in _SECTIONS and key:
            yield f"{section}.{key}", environment[name]


def _split_setting(setting: str) -> tuple[str, str]:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting}: must be section.key=value")
    return key.strip(), text.strip()


def _put(tree: dict[str, Any], key: str, text: str) -> None:
    section, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    if section not in _SECTIONS or not name:
        raise ConfigError(f"{key}: unknown key{_did_you_mean(key, HELP)}")
    values = tree.setdefault(section, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{section}: must be a table, not {values!r}")
    is_text = get_type_hints(_SECTIONS[section]).get(name) is str
    value = text if is_text else _parse(text)
    if inner:
        values.setdefault(name, {})[inner] = value
    else:
        values[name] = value


def _merge(tree: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Put the overrides over the tree, table by table. What is no table where one should be is refused later."""
    for name, value in overrides.items():
        below = tree.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            _merge(below, value)
        elif below is None or not isinstance(value, dict):
            tree[name] = value


def _parse(text: str) -> Any:
    """A TOML value, or else the text itself, so that ``train.strategy=ring`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_unknown(tree: Mapping[str, Any], source: str) -> None:
    for section, values in tree.items():
        if section not in _SECTIONS:
            raise ConfigError(f"{source}: {section}: unknown section{_did_you_mean(section, _SECTIONS)}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: {section}: must be a table, not {values!r}")
        for name in values:
            if f"{section}.{name}" not in HELP:
                raise ConfigError(f"{source}: {section}.{name}: unknown key{_did_you_mean(f'{section}.{name}', HELP)}")


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    sections = ", ".join(sorted({name.split(".")[0] for name in known}))
    return f"; did you mean {close[0]}?" if close else f"; the sections are {sections}"


def _explain(message: str) -> str:
    """msgspec's message with our key in front and its help behind."""
    place = re.search(r" - at `\$\.?([^`]*)`$", message)
    missing = re.search(r"missing required field `(\w+)`", message)
    key = place.group(1) if place else ""
    if missing:
        name = f"{key}.{missing.group(1)}" if key else missing.group(1)
        return f"{name}: missing{_help(name)}"
    text = message[: place.start()] if place else message
    return f"{key}: {text[:1].lower()}{text[1:]}{_help(key)}"


def _help(key: str) -> str:
    known = re.match(r"\w+\.\w+", key)
    return f" ({HELP[known.group()]})" if known and known.group() in HELP else ""


def _check(config: Config, source: str) -> None:
    """What the types alone cannot say."""
    train = config.train
    if 0 < config.data.hash_bits < 8:
        raise ConfigError(f"{source}: data.hash_bits = {config.data.hash_bits}: must be 0 or 8 to 30")
    if train.reproducible and train.grains > train.batch:
        raise ConfigError(f"{source}: train.grains = {train.grains} is more than train.batch = {train.batch}")
    if config.run.device == "cuda":
        raise ConfigError(f"{source}: run.device = 'cuda': this version has no GPU kernels; use 'cpu'")
    if train.strategy == "server" and train.algorithm != "auto":
        raise ConfigError(f"{source}: train.algorithm is the all-reduce's; train.strategy = 'server' does not use it")
    kind = config.optimizer.kind
    if kind not in OPTIMIZERS and ":" not in kind:
        raise ConfigError(f"{source}: optimizer.kind: no optimizer {kind!r}{_help('optimizer.kind')}")
    _check_averaging(config, source)
    _check_compress(config, source)
    _check_server(config, source)
    _check_users(config, source)
    if config.model.kind == "matrix-factorization" and config.data.scale != "none":
        raise ConfigError(f"{source}: data.scale = {config.data.scale!r}: matrix-factorization has ids, not numbers")
    if ":" not in config.model.kind and (config.model.parameters or config.model.scores):
        name = "parameters" if config.model.parameters else "scores"
        raise ConfigError(f"{source}: model.{name} is for your own training function, not for {config.model.kind}")


def _check_server(config: Config, source: str) -> None:
    """Refuse what the parameter server cannot do, or would ignore."""
    train, server = config.train, config.server
    default, why = Server(), ""
    if config.optimizer.clip_norm and (server.count != 1 or server.colocated):
        why = "count or colocated with optimizer.clip_norm: a shard sees a part of the gradient, not its norm; use 1"
    elif train.strategy != "server" and server != default:
        key = next(name for name in Server.__struct_fields__ if getattr(server, name) != getattr(default, name))
        why = f"{key} is the server strategy's; train.strategy = {train.strategy!r} does not use it"
    elif server.colocated and server.count != 1:
        why = f"count = {server.count} with server.colocated: every rank holds a shard"
    elif train.reproducible and server.admit_after:
        why = "admit_after with train.reproducible: how often a key came is estimated, and by each shard"
    elif server.staleness == 0:
        for name in ("warmup_steps", "delay", "record", "replay"):
            if getattr(server, name) != getattr(default, name):
                why = f"{name} is for server.staleness = N or 'async'; a synchronous run has no delays"
    elif train.reproducible:
        why = f"staleness = {server.staleness!r} with train.reproducible: who is first depends on time; use record"
    if not why and server.delay != "compensate" and server.compensation != default.compensation:
        why = f"compensation is for server.delay = 'compensate'; {server.delay!r} does not use it"
    if not why and server.record and server.replay:
        why = "record with server.replay: the order is known already"
    if why:
        raise ConfigError(f"{source}: server.{why}")


def _check_averaging(config: Config, source: str) -> None:
    """Refuse what workers that train alone cannot do, and their keys elsewhere."""
    train = config.train
    strategy = f"train.strategy = {train.strategy!r}"
    if train.strategy != "averaging":
        for name in ("average_every", "average_warmup"):
            if getattr(train, name) != getattr(Train(), name):
                raise ConfigError(f"{source}: train.{name} is averaging's; {strategy} does not use it")
        return
    why = ""
    if train.reproducible:
        why = "train.reproducible: what a worker computes depends on how many there are; use 'ring' or 'server'"
    elif config.compress.kind != "none":
        why = f"compress.kind = {config.compress.kind!r}: codes are for gradients, not for parameters; use 'ring'"
    elif config.optimizer.kind == "ftrl":
        why = "optimizer.kind = 'ftrl': it makes parameters of sums of its own, which would undo the average"
    if why:
        raise ConfigError(f"{source}: {strategy} with {why}")


def _check_compress(config: Config, source: str) -> None:
    """Refuse what codes cannot do."""
    kind, train = config.compress.kind, config.train
    if kind == "none":
        return
    why = ""
    if train.reproducible:
        why = "train.reproducible: exact sums are not rounded"
    elif train.dtype == "float64" and kind != "topk":
        why = "train.dtype = 'float64': its codes stand for float32; use 'float32', or compress.kind = 'topk'"
    if why:
        raise ConfigError(f"{source}: compress.kind = {kind!r} with {why}")


def _check_users(config: Config, source: str) -> None:
    """Refuse what the kind of model, optimiser or compression would silently ignore."""
    for key, users in USERS.items():
        section, name = key.split(".")
        options = getattr(config, section)
        default = {field.name: field.default for field in msgspec.structs.fields(options)}[name]
        if options.kind not in users and getattr(options, name) != default:
            whose = ", ".join(f"{user}'s" for user in users)
            raise ConfigError(f"{source}: {key} is {whose}; {options.kind} does not use it")
    optimizer = config.optimizer
    if optimizer.nesterov and not optimizer.momentum:
        raise ConfigError(f"{source}: optimizer.nesterov looks ahead along a velocity; set optimizer.momentum, too")
    for name in ("l1", "l2"):
        if optimizer.kind == "adamw" and getattr(optimizer, name):
            raise ConfigError(f"{source}: optimizer.{name} is not adamw's; use optimizer.weight_decay")
        if ":" in optimizer.kind and getattr(optimizer, name):
            raise ConfigError(f"{source}: optimizer.{name} is not for your own optimizer; {optimizer.kind} has no use")
