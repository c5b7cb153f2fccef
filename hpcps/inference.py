"""Uses a finished run: measure it on held-out samples, predict with it. One process, no ranks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hpcps_kernels
import numpy as np

from hpcps import config, data, models, report
from hpcps.config import Config
from hpcps.data import Block
from hpcps.errors import ConfigError, DataError, ModelError
from hpcps.loader import Loaders
from hpcps.models import Model
from hpcps.run_folder import CONFIG, MODEL, Trained, read_model, read_summary
from hpcps.tables import whole_tables
from hpcps.together import Alone
from hpcps.worker import EVALUATION_SAMPLES, Score
from hpcps.worker import evaluate as score_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Finished:
    """A finished run, ready to be used."""

    config: Config
    trained: Trained
    model: Model

    loaders: Loaders


def read(folder: Path) -> Finished:
    """The finished run in ``folder``. Raises DataError or ModelError naming what is missing or damaged."""
    read_summary(folder)
    told = config.read(folder / CONFIG)
    trained = read_model(folder)
    kernels = hpcps_kernels.load("cpu")
    model = models.make(told.model, trained.facts, told.train.dtype, kernels)
    check(folder / MODEL, trained, model, told.train.dtype)
    trained = dataclasses.replace(trained, params=trained.params.ordered(model.tables))
    tables = whole_tables(model, trained.params, kernels)
    loaders = Loaders(tables, trained.shift, trained.scale, told.train.dtype, kernels)
    return Finished(told, trained, model, loaders)


def check(file: Path, trained: Trained, model: Model, dtype: str) -> None:
    """Raise DataError unless the classes and parameters of ``file`` are those of the model, as far as it says what its
    parameters are."""
    params, wanted = trained.params, models.shapes_of(model)
    classes = 0 if trained.classes is None else len(trained.classes)
    if (classes > 0) != (model.task != "regression") or (model.task == "binary" and classes != 2):
        raise DataError(f"{file}: holds {classes} classes, for a model whose labels are {model.task}")
    if wanted is None:
        return
    for name in sorted({*wanted, *params}):
        have, want = params.shapes.get(name, "missing"), wanted.get(name, "not there")
        if have != want:
            raise DataError(f"{file}: {name} is {have}, in a model of {CONFIG} it would be {want}")
    if params.flat.dtype != dtype:
        raise DataError(f"{file}: its parameters are {params.flat.dtype}, {CONFIG} says {dtype}")


def evaluate(folder: Path, source: str | None = None) -> dict[str, float]:
    """Mean loss and quality of the run in ``folder`` on ``source``, or on the samples that the run itself held out.

    Raises DataError, ModelError, and ConfigError where nothing was held out.
    """
    run = read(folder)
    blocks = [_read_samples(run, source, with_labels=True)] if source else _held_out(run)
    count = sum(len(block) for block in blocks)
    if not count:
        raise ConfigError(f"{folder}: the run held no samples out; give --input FILE")
    model, params, loaders = run.model, run.trained.params, run.loaders
    with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is an error
        scores = [score_of(model, params, loaders.tables, block, loaders.of(block)) for block in blocks]
    total = Score(math.fsum(score.loss for score in scores), math.fsum(score.quality for score in scores))
    return report.measures(run.model, total, count).said()


def predict(folder: Path, source: str) -> Array:
    """The predictions of the run in ``folder`` for the samples of ``source``: original labels, int64 (n,), of a
    classifier; floats of a regression. Raises DataError, ModelError."""
    run = read(folder)
    if not run.model.can_predict:
        raise ModelError(f"{run.config.model.kind}: cannot predict; name a function of its file in model.scores")
    block = _read_samples(run, source, with_labels=False)
    loader = run.loaders.of(block)
    found = []
    for start in range(0, len(block), EVALUATION_SAMPLES):
        batch = loader.load(np.arange(start, min(start + EVALUATION_SAMPLES, len(block))))
        values = batch.samples.values if isinstance(batch.samples, models.Sparse) else batch.samples
        if not np.isfinite(values).all():
            raise DataError(data.find_bad(block) or f"{source}: a sample is not finite once scaled")
        seen = run.loaders.tables.pick(run.trained.params, batch)
        with np.errstate(over="ignore", invalid="ignore"):
            scores = run.model.scores(seen, batch.samples)
            if np.isnan(scores).any():
                raise ModelError(f"{folder}: a score is not a number; the run's parameters are too large, or damaged")
            found.append(models.predict(run.model, scores))
    predicted = np.concatenate(found)
    return predicted if run.trained.classes is None else run.trained.classes[predicted]


def as_lines(predictions: Array) -> str:
    """One prediction a line."""
    return "".join(f"{value}\n" for value in predictions.tolist())


def _read_samples(run: Finished, source: str, with_labels: bool) -> Block:
    options = replace_path(run.config, source)
    trained = run.trained
    return data.load_samples(
        source, options, features=trained.facts.features, classes=trained.classes, with_labels=with_labels
    )


def replace_path(told: Config, source: str) -> config.Data:
    """The run's data options, for another file of whatever format."""
    import msgspec

    return msgspec.structs.replace(told.data, path=source, format="auto", labels="", test="", test_fraction=0.0)


def _held_out(run: Finished) -> list[Block]:
    """The run's own held-out samples, found as the run found them."""
    from hpcps.comm.topology import chunk_bounds
    from hpcps.job import TEST_BLOCKS
    from hpcps.run import task

    told = run.config
    dataset = data.load_data(
        told.data,
        task=task(told),
        cut=lambda count: [0, count],
        owned=range(1),
        cut_test=lambda count: chunk_bounds(count, TEST_BLOCKS),
        owned_test=range(TEST_BLOCKS),
        together=Alone(),
        seed=told.train.seed,
    )
    return list(dataset.test.values())
