"""What the types alone cannot say: which options do not go together, or would silently be ignored, and why."""

from __future__ import annotations

import msgspec

from hpcps.config.options import Config, Server, Train, help_of
from hpcps.errors import ConfigError

OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "ftrl")
SIGNALS = ("USR1", "USR2", "TERM", "HUP", "INT")
_POINT = ("linear", "logistic", "fm", "matrix-factorization")
_FACTORS = ("fm", "matrix-factorization")
ONLINE_MODELS = ("linear", "logistic")
ONLINE_OPTIMIZERS = ("sgd", "adagrad", "ftrl")
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
DEVICE_STRATEGIES = ("auto", "ring", "server")
DEVICE_REASONS = {
    "averaging": "it averages parameters where all ranks of a node see them, which is the host's memory; use 'ring'",
    "online": "it learns from one sample after the other, and a GPU has nothing to do side by side",
}
FILTERS = ("threshold", "kkt")
"""The keys of the server that all shards of tables have, those beside all-reduced parameters too."""


def check(config: Config, source: str) -> None:
    """Raise ConfigError, naming the source and the key, for what cannot be done."""
    train = config.train
    if 0 < config.data.hash_bits < 8:
        raise ConfigError(f"{source}: data.hash_bits = {config.data.hash_bits}: must be 0 or 8 to 30")
    if train.reproducible and train.grains > train.batch:
        raise ConfigError(f"{source}: train.grains = {train.grains} is more than train.batch = {train.batch}")
    if 0 < train.straggler_factor <= 1:
        raise ConfigError(f"{source}: train.straggler_factor = {train.straggler_factor:g}: must be 0 or more than 1")
    _check_device(config, source)
    _check_nccl(config, source)
    if train.strategy in ("server", "online") and train.algorithm != "auto":
        strategy = f"train.strategy = {train.strategy!r}"
        raise ConfigError(f"{source}: train.algorithm is the all-reduce's; {strategy} does not use it")
    kind = config.optimizer.kind
    if kind not in OPTIMIZERS and ":" not in kind:
        raise ConfigError(f"{source}: optimizer.kind: no optimizer {kind!r}{help_of('optimizer.kind')}")
    if config.run.survive and (config.server.record or config.server.replay):
        key = "record" if config.server.record else "replay"
        raise ConfigError(f"{source}: run.survive with server.{key}: a record is of a whole run, without a break")
    if config.run.replace and not config.run.survive:
        raise ConfigError(f"{source}: run.replace is for ranks that go on without those that die: add run.survive")
    _check_averaging(config, source)
    _check_online(config, source)
    _check_backup(config, source)
    _check_compress(config, source)
    _check_server(config, source)
    _check_checkpoint(config, source)
    _check_users(config, source)
    if config.model.kind == "matrix-factorization" and config.data.scale != "none":
        raise ConfigError(f"{source}: data.scale = {config.data.scale!r}: matrix-factorization has ids, not numbers")
    if ":" not in config.model.kind and (config.model.parameters or config.model.scores):
        name = "parameters" if config.model.parameters else "scores"
        raise ConfigError(f"{source}: model.{name} is for your own training function, not for {config.model.kind}")


def _check_server(config: Config, source: str) -> None:
    """Refuse what the parameter server cannot do, or would ignore."""
    train, server = config.train, config.server
    default, why = Server(), _why_no_filter(config)
    used = [name for name in Server.__struct_fields__ if getattr(server, name) != getattr(default, name)]
    of_server = [name for name in used if train.strategy != "auto" or name not in FILTERS]
    if config.optimizer.clip_norm and (server.count != 1 or server.colocated):
        why = "count or colocated with optimizer.clip_norm: a shard sees a part of the gradient, not its norm; use 1"
    elif train.strategy != "server" and of_server:
        why = f"{of_server[0]} is the server strategy's; train.strategy = {train.strategy!r} does not use it"
    elif server.colocated and server.count != 1:
        why = f"count = {server.count} with server.colocated: every rank holds a shard"
    elif train.reproducible and server.admit_after:
        why = "admit_after with train.reproducible: how often a key came is estimated, and by each shard"
    elif server.staleness == 0:
        for name in ("warmup_steps", "delay", *(() if train.backup else ("record", "replay"))):
            if getattr(server, name) != getattr(default, name):
                why = f"{name} is for server.staleness = N or 'async'; a synchronous run has no delays"
    elif train.reproducible:
        why = f"staleness = {server.staleness!r} with train.reproducible: who is first depends on time; use record"
    if not why and server.delay != "compensate" and server.compensation != default.compensation:
        why = f"compensation is for server.delay = 'compensate'; {server.delay!r} does not use it"
    if not why and server.record and server.replay:
        why = "record with server.replay: the order is known already"
    if not why and server.replicas and (server.record or server.replay):
        name = "record" if server.record else "replay"
        why = f"{name} with server.replicas: how far a shard is when its copy lets it answer is not recorded"
    if why:
        raise ConfigError(f"{source}: server.{why}")


def _why_no_filter(config: Config) -> str:
    """What rows that are kept back do not go with."""
    train, server, optimizer = config.train, config.server, config.optimizer
    used = [name for name in FILTERS if getattr(server, name)]
    if not used or train.strategy not in ("auto", "server"):
        return ""
    if train.reproducible:
        return f"{used[0]} with train.reproducible: which rows are kept back depends on who computes which samples"
    if server.kkt and optimizer.kind != "ftrl":
        return f"kkt is for optimizer.kind = 'ftrl', whose zeros last while gradients are small, not {optimizer.kind!r}"
    if server.kkt and not optimizer.l1:
        return "kkt is a part of optimizer.l1, which is 0: without it no weight stays zero"
    return ""


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


def _check_online(config: Config, source: str) -> None:
    """Refuse what cannot be learned from one sample at a time."""
    if config.train.strategy != "online":
        return
    optimizer, why = config.optimizer, ""
    if config.model.kind not in ONLINE_MODELS:
        why = f"model.kind = {config.model.kind!r}: it is for {' and '.join(ONLINE_MODELS)}"
    elif optimizer.kind not in ONLINE_OPTIMIZERS:
        why = f"optimizer.kind = {optimizer.kind!r}: it is for {', '.join(ONLINE_OPTIMIZERS)}"
    elif optimizer.momentum:
        why = "optimizer.momentum: the features that a sample has not would move, too"
    elif optimizer.clip_norm:
        why = "optimizer.clip_norm: there is no gradient of a batch"
    elif optimizer.l1 and optimizer.kind != "ftrl":
        why = "optimizer.l1: it needs optimizer.kind = 'ftrl'"
    elif config.train.reproducible:
        why = "train.reproducible: who is first depends on time"
    elif config.compress.kind != "none":
        why = f"compress.kind = {config.compress.kind!r}: nothing is sent"
    if why:
        raise ConfigError(f"{source}: train.strategy = 'online' with {why}")


def _check_backup(config: Config, source: str) -> None:
    """Refuse what cannot go on without late workers, or would not be helped by it."""
    train, server = config.train, config.server
    if not train.backup:
        return
    why = ""
    if train.strategy != "server":
        why = f"train.strategy = {train.strategy!r}: only shards can go on without a worker; use 'server'"
    elif train.reproducible:
        why = "train.reproducible: who is late depends on time; use server.record"
    elif server.staleness != 0:
        why = f"server.staleness = {server.staleness!r}: backup workers are for synchronous steps, server.staleness = 0"
    elif server.colocated:
        why = "server.colocated: a late worker does not serve its shard meanwhile, so that all wait; use server.count"
    elif any(getattr(server, name) for name in FILTERS):
        name = next(name for name in FILTERS if getattr(server, name))
        why = f"server.{name}: rows that were kept back for a push are lost where that is dropped"
    if why:
        raise ConfigError(f"{source}: train.backup with {why}")


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


def _check_checkpoint(config: Config, source: str) -> None:
    """Refuse what checkpoints cannot do, and signals that there are not."""
    options, server = config.checkpoint, config.server
    for name in signal_names(config):
        if name not in SIGNALS:
            raise ConfigError(f"{source}: checkpoint.signals: no signal {name!r}{help_of('checkpoint.signals')}")
    if (options.every_steps or options.every_s) and (server.record or server.replay):
        key, name = "every_steps" if options.every_steps else "every_s", "record" if server.record else "replay"
        why = "a record is of a whole run, from its first step"
        raise ConfigError(f"{source}: checkpoint.{key} with server.{name}: {why}")


def _check_device(config: Config, source: str) -> None:
    """Refuse what GPUs are not used for."""
    if config.run.device != "cuda":
        return
    why = ""
    if config.train.strategy not in DEVICE_STRATEGIES:
        why = f"train.strategy = {config.train.strategy!r}: {DEVICE_REASONS[config.train.strategy]}"
    elif ":" in config.model.kind:
        why = f"model.kind = {config.model.kind!r}: your own training function gets NumPy's arrays"
    elif ":" in config.optimizer.kind:
        why = f"optimizer.kind = {config.optimizer.kind!r}: your own optimizer gets NumPy's arrays"
    elif config.run.threads > 1:
        why = f"run.threads = {config.run.threads}: one thread of a rank keeps a GPU busy; start more ranks"
    if why:
        raise ConfigError(f"{source}: run.device = 'cuda' with {why}")


def _check_nccl(config: Config, source: str) -> None:
    """Refuse what NCCL cannot sum."""
    if config.train.algorithm != "nccl":
        return
    why = ""
    if config.run.device != "cuda":
        why = f"run.device = {config.run.device!r}: it sums what is on GPUs"
    elif config.train.reproducible:
        why = "train.reproducible: it adds in an order of its own; use 'auto'"
    elif config.compress.kind != "none":
        why = f"compress.kind = {config.compress.kind!r}: it adds numbers, not codes; use 'auto'"
    if why:
        raise ConfigError(f"{source}: train.algorithm = 'nccl' with {why}")


def signal_names(config: Config) -> list[str]:
    """Which signals are to stop the run after one more checkpoint: ``["USR1", "TERM"]``."""
    names = config.checkpoint.signals.upper().split(",")
    return [name.strip().removeprefix("SIG") for name in names if name.strip()]


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
