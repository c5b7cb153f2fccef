"""What a run can be told: sections of keys, typed, each key with one line of help."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

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
    strategy: Literal["auto", "ring", "server", "averaging", "online"] = "auto"
    average_every: Positive = 10
    average_warmup: Count = 0
    algorithm: Literal["auto", "memory", "ring", "doubling", "hierarchical", "mpi", "nccl"] = "auto"
    reproducible: bool = False
    grains: Positive = 8
    report_every: Count = 0
    straggler_factor: NotNegative = 2.0
    backup: Count = 0


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The parameter server."""

    count: Positive = 1
    colocated: bool = False
    replicas: Annotated[int, Meta(ge=0, le=1)] = 0
    staleness: Count | Literal["async"] = 0
    warmup_steps: Count = 0
    admit_after: Annotated[int, Meta(ge=0, lt=65535)] = 0
    evict_after: Count = 0
    threshold: NotNegative = 0.0
    kkt: Annotated[float, Meta(ge=0, le=1)] = 0.0
    delay: Literal["none", "scale", "compensate"] = "none"
    compensation: Rate = 0.04
    record: bool = False
    replay: str = ""


class Compress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What gradients become on their way between workers."""

    kind: Literal["none", "bf16", "int8", "topk"] = "none"
    block: Block = 256
    fraction: Share = 0.01


class Checkpoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept so that a run can go on later."""

    every_steps: Count = 0
    every_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    keep: Positive = 2
    path: str = ""
    signals: str = "USR1,TERM"


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where and how the ranks run."""

    device: Literal["cpu", "cuda"] = "cpu"
    threads: Count = 0
    transport: Literal["auto", "mpi", "threads"] = "auto"
    hosts: str = ""
    timeout_s: Seconds = 300.0
    survive: bool = False
    replace: bool = False
    restarts: Count = 3
    heartbeat_s: Seconds = 1.0


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run, whole."""

    data: Data
    model: Model
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    server: Server = Server()
    compress: Compress = Compress()
    checkpoint: Checkpoint = Checkpoint()
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
    "train.strategy": "auto | ring | server | averaging | online (each sample is a step)",
    "train.average_every": "averaging: steps that workers train alone before their parameters are averaged, >= 1",
    "train.average_warmup": "averaging: steps at the start with an averaging after each (post-local SGD)",
    "train.algorithm": "auto | memory | ring | doubling | hierarchical | mpi | nccl (GPUs): how arrays are all-reduced",
    "train.reproducible": "the same bits at any rank and thread count",
    "train.grains": "parts of a reproducible batch, added in a fixed order; at least as many as workers",
    "train.report_every": "steps between progress lines (0: once an epoch)",
    "train.straggler_factor": "workers so many times slower than the median of the others are named (0: none)",
    "train.backup": "server: a step goes on without its so many latest workers, whose gradients are dropped (0: waits)",
    "server.count": "server shards, each on a rank of its own",
    "server.colocated": "every rank is a worker and holds a shard; there are no ranks of servers alone",
    "server.replicas": "0 | 1: copies of each shard, on the rank of the next, that follow it update by update",
    "server.staleness": "0: synchronous | N: a worker may miss the last N steps of others | async",
    "server.warmup_steps": "the first steps are synchronous, whatever the staleness",
    "server.admit_after": "pushes of a key that are dropped, and counted, before it gets a row of its own, < 65535",
    "server.evict_after": "rows that were not pushed in so many updates of their shard are taken away (0: never)",
    "server.threshold": "a row is pushed when its mean gradients have added up to an element beyond it (0: at once)",
    "server.kkt": "ftrl: a row of zeros is pushed when its gradients are beyond this part of l1, 0 <= k <= 1 (0: off)",
    "server.delay": "none | scale (by 1 / (1 + age)) | compensate: what is done about gradients of old parameters",
    "server.compensation": "compensate: its strength, > 0",
    "server.record": "keep the order in which shards took what workers sent, in the run's folder",
    "server.replay": "the folder of a recorded run, to be repeated to the last bit",
    "compress.kind": "none | bf16 | int8 | topk: gradients in fewer bytes; what is left out is sent later",
    "compress.block": "int8: numbers that share a scale, 16 <= b <= 65536",
    "compress.fraction": "topk: the part of the numbers that is sent, the largest, 0 < f <= 1",
    "checkpoint.every_steps": "steps between checkpoints (0: none)",
    "checkpoint.every_s": "seconds between checkpoints (0: none)",
    "checkpoint.keep": "how many checkpoints are kept, the newest, >= 1",
    "checkpoint.path": "the folder of the checkpoints, seen by all ranks (default: checkpoint, in the run's folder)",
    "checkpoint.signals": "signals that mean: one more checkpoint, then stop; of USR1, USR2, TERM, HUP, INT",
    "run.device": "cpu | cuda: a GPU for each rank, or shared by several",
    "run.threads": "threads of a rank (0: the cores that it may use; one with a GPU)",
    "run.transport": "auto | mpi | threads",
    "run.hosts": "where --ranks N starts them: host, or host:slots, with commas (default: the launcher's own choice)",
    "run.survive": "go on without ranks that die; --survive sets it, and starts ranks that can",
    "run.replace": "survive: fresh ranks take the places of those that have died (Open MPI; threads)",
    "run.restarts": "survive: how often ranks are replaced, and a job that has ended without an end is started again",
    "run.heartbeat_s": "survive, on several hosts: a rank that is not heard of for so many seconds counts as dead",
    "run.timeout_s": "seconds after which a wait for another rank is an error",
}


def help_of(key: str) -> str:
    """The line of help of a key, in brackets; nothing for what is no key."""
    known = re.match(r"\w+\.\w+", key)
    return f" ({HELP[known.group()]})" if known and known.group() in HELP else ""
