"""Linear models of sparse rows, beside scikit-learn, Vowpal Wabbit, LIBLINEAR and SciPy.

Two data sets of ``generate.py``. Learners make one pass over Criteo-shaped rows in their given order, from nothing,
with no penalty; a faster one counts only if its log-loss on held-out rows is not worse. For each learner, ours and
others, the learning rate is the best of a small grid by that log-loss; all else is as its authors set it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from generate import HASH_BITS, TERMS, Rows, criteo, libsvm, log_loss, rcv1, vowpal_wabbit

from families.case import Array, Call, Case, Verdict, kernel, numpy, within

NOTHING = np.empty(0, np.float32)
NOT_WORSE = 0.001  # of log-loss, the noise of the held-out rows
Samples = tuple[Array, Array, Array, Array]  # indptr, indices, values (none where all are 1), labels
EPSILON = 1e-8
FIRST_SQUARES = 1.0  # where AdaGrad's accumulators begin, so that a feature's first steps are not the longest
FEATURES = 2**HASH_BITS
PASSES_MAX = 50


class Learned(NamedTuple):
    """What a pass leaves."""

    weight: Array
    bias: float


class Data(NamedTuple):
    """Rows to learn from, held-out rows, and a folder that holds them as files."""

    train: Rows
    held_out: Rows
    folder: Path

    def loss(self, learned: Learned) -> float:
        return log_loss(self.held_out.scores(learned.weight, learned.bias), self.held_out.labels)


def cases(quick: bool) -> list[Case]:
    count = 20_000 if quick else 300_000
    return [
        *(_in_memory(name, count, 3.0 if name == "online_sgd" else 1.0) for name in LEARNERS),
        *(
            _in_memory(name, count, 5.0, {"Vowpal Wabbit, text": _vowpal_wabbit(count, cached=False)})
            for name in ADAPTIVE
        ),
        *(_from_text(name, count) for name in ADAPTIVE),
        *(_from_binary(name, count) for name in ADAPTIVE),
        _as_good_as_liblinear(),
        *(_csr(name, rows) for name, rows in (("criteo", count), ("rcv1", 0))),
    ]


@functools.cache
def _data(count: int) -> Data:
    """``count`` Criteo-shaped rows and a third as many held out; 0: the rcv1-shaped documents, a fifth held out."""
    rows = criteo(count * 4 // 3) if count else rcv1()
    count = count or len(rows.labels) * 4 // 5
    folder = tempfile.TemporaryDirectory(prefix="hpcps-bench-")
    _FOLDERS.append(folder)
    return Data(rows.cut(0, count), rows.cut(count, len(rows.labels)), Path(folder.name))


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # until the program ends


# Ours: one pass each. State and bias begin at zero within the time that is taken.


def _sgd(kernels: Any, rows: Samples, rate: float) -> Learned:
    weight, bias = np.zeros(FEATURES, np.float32), np.zeros(1, np.float32)
    kernels.online_sgd(weight, bias, *rows, np.arange(len(rows[3])), "logistic", 1.0, rate, 0.0)
    return Learned(weight, float(bias[0]))


def _adagrad(kernels: Any, rows: Samples, rate: float) -> Learned:
    state, bias = np.zeros((FEATURES, 2), np.float32), np.zeros(2, np.float32)
    state[:, 1] = FIRST_SQUARES
    kernels.online_adagrad(state, bias, *rows, np.arange(len(rows[3])), "logistic", 1.0, rate, EPSILON, 0.0)
    return Learned(state[:, 0], float(bias[0]))


def _ftrl(kernels: Any, rows: Samples, rate: float) -> Learned:
    state, bias = np.zeros((FEATURES, 2), np.float32), np.zeros(2, np.float32)
    kernels.online_ftrl(state, bias, *rows, np.arange(len(rows[3])), "logistic", 1.0, rate, 1.0, 0.0, 0.0)
    z, n = state[:, 0], state[:, 1]
    return Learned(-z * rate / (1 + np.sqrt(n)), float(-bias[0] * rate / (1 + np.sqrt(bias[1]))))


LEARNERS = {"online_sgd": _sgd, "online_adagrad": _adagrad, "online_ftrl": _ftrl}
ADAPTIVE = ("online_adagrad", "online_ftrl")  # as Vowpal Wabbit's default is
RATES = {
    "online_sgd": (0.01, 0.02, 0.05, 0.1),
    "online_adagrad": (0.05, 0.1, 0.2, 0.4),
    "online_ftrl": (0.05, 0.1, 0.2, 0.4),
    "Vowpal Wabbit": (0.1, 0.25, 0.5, 1.0),  # 0.5 is its default
}


def _tuned(data: Data, rates: tuple[float, ...], learn: Callable[[float], Learned]) -> float:
    """The rate with the least held-out log-loss."""
    return min(rates, key=lambda rate: data.loss(learn(rate)))


def _tuned_ours(name: str, kernels: Any, data: Data) -> float:
    getattr(kernels, name)  # not there: say so before anything is made
    return _tuned(data, RATES[name], lambda rate: LEARNERS[name](kernels, data.train.plain(), rate))


def _not_worse(count: int) -> Callable[[Any, Any], Verdict]:
    def verify(ours: Learned, peer: Learned | Callable[[], float]) -> Verdict:
        data = _data(count)
        mine = data.loss(ours)
        theirs = data.loss(peer) if isinstance(peer, Learned) else peer()
        return Verdict(int(not mine <= theirs + NOT_WORSE), f"log-loss {mine:.4f}, its {theirs:.4f}")

    return verify


def _in_memory(name: str, count: int, goal: float, peers: Mapping[str, Callable[[], Call]] | None = None) -> Case:
    """Beside scikit-learn's learner if no others are named."""

    def ours(kernels: Any) -> Call:
        data = _data(count)
        rate, rows = _tuned_ours(name, kernels, data), data.train.plain()
        return lambda: LEARNERS[name](kernels, rows, rate)

    def scikit_learn() -> Call:
        from scipy.sparse import csr_matrix
        from sklearn.linear_model import SGDClassifier

        data = _data(count)
        indptr, indices, values, labels = data.train
        matrix = csr_matrix((values, indices, indptr.astype(np.int32)), (len(labels), FEATURES))

        def learn(rate: float) -> Learned:
            model = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=rate, shuffle=False)
            model.partial_fit(matrix, labels, classes=[0.0, 1.0])
            return Learned(model.coef_[0], float(model.intercept_[0]))

        best = _tuned(data, RATES["online_sgd"], learn)
        return lambda: learn(best)

    size = f"{count} rows x {FEATURES}, in memory"
    peers = peers or {"scikit-learn SGDClassifier": scikit_learn}
    return Case(name, size, count, ours, peers, "M rows/s", "none", goal, _not_worse(count))


_BEST: dict[int, float] = {}  # Vowpal Wabbit's rate for so many rows


def _vowpal_wabbit(count: int, cached: bool) -> Callable[[], Call]:
    """One pass of its default learner over a file of text, or over the binary cache that it made of it."""

    def make() -> Call:
        from vowpalwabbit import Workspace

        data = _data(count)
        train, held_out, model = (data.folder / name for name in ("train.vw", "held_out.vw", "model.vw"))
        if not train.exists():
            train.write_text(vowpal_wabbit(data.train))
            held_out.write_text(vowpal_wabbit(data.held_out))
        cache = f"--cache_file {data.folder / 'train.cache'}" if cached else ""
        options = f"-d {train} {cache} -b {HASH_BITS} --loss_function logistic --no_stdin --quiet"

        def learn(rate: float) -> Callable[[], float]:
            Workspace(f"{options} -l {rate}").finish()
            return lambda: held_out_loss(rate)

        def held_out_loss(rate: float) -> float:
            """Learns again, because to write the model takes time of its own."""
            found = data.folder / "predictions"
            Workspace(f"{options} -l {rate} -f {model}").finish()
            Workspace(f"-t -i {model} -d {held_out} -r {found} --quiet").finish()
            return log_loss(np.loadtxt(found), data.held_out.labels)

        best = _BEST.get(count) or min(RATES["Vowpal Wabbit"], key=held_out_loss)
        _BEST[count] = best  # the same from text and from its cache
        return lambda: learn(best)

    return make


def _from_text(name: str, count: int) -> Case:
    """Parsing included."""

    def ours(kernels: Any) -> Call:
        data = _data(count)
        rate = _tuned_ours(name, kernels, data)
        path = data.folder / "train.svm"
        if not path.exists():
            path.write_text(libsvm(data.train))

        def call() -> Learned:
            parsed = kernels.parse_libsvm(np.fromfile(path, np.uint8), True)
            rows = parsed.indptr, parsed.indices, parsed.values, parsed.labels.astype(np.float32)
            return LEARNERS[name](kernels, rows, rate)

        return call

    peers = {"Vowpal Wabbit, text": _vowpal_wabbit(count, cached=False)}
    size = f"{count} rows x {FEATURES}, from text"
    return Case(f"parse_libsvm + {name}", size, count, ours, peers, "M rows/s", "none", 1.0, _not_worse(count))


def _from_binary(name: str, count: int) -> Case:
    """From files in each one's own binary form."""

    def ours(kernels: Any) -> Call:
        data = _data(count)
        rate = _tuned_ours(name, kernels, data)
        paths = [data.folder / f"{field}.npy" for field in Rows._fields]
        for path, array in zip(paths, data.train.plain(), strict=True):
            np.save(path, array)
        return lambda: LEARNERS[name](kernels, tuple(map(np.load, paths)), rate)

    peers = {"Vowpal Wabbit, cache": _vowpal_wabbit(count, cached=True)}
    size = f"{count} rows x {FEATURES}, from .npy files"
    return Case(name, size, count, ours, peers, "M rows/s", "none", 5.0, _not_worse(count))


def _as_good_as_liblinear() -> Case:
    """The time until the held-out log-loss of rcv1-shaped rows is LIBLINEAR's, with its defaults; whole passes."""

    def ours(kernels: Any) -> Call:
        data = _data(0)
        goal = min(data.loss(_liblinear(data, solver)()) for solver in (0, 7))
        order = np.arange(len(data.train.labels))

        def learn(rate: float, passes: int) -> Learned:
            state, bias = np.zeros((TERMS, 2), np.float32), np.zeros(2, np.float32)
            for _ in range(passes):
                kernels.online_adagrad(state, bias, *data.train, order, "logistic", 1.0, rate, EPSILON, 0.0)
            return Learned(state[:, 0], float(bias[0]))

        passes, rate = next(
            (passes, rate)
            for passes in range(1, PASSES_MAX + 1)
            for rate in (0.1, 0.2, 0.4, 0.8)
            if passes == PASSES_MAX or data.loss(learn(rate, passes)) <= goal
        )
        return lambda: learn(rate, passes)

    def solver(number: int) -> Callable[[], Call]:
        return lambda: _liblinear(_data(0), number)

    def verify(ours: Learned, peer: Learned) -> Verdict:
        mine, theirs = _data(0).loss(ours), _data(0).loss(peer)
        return Verdict(int(not mine <= theirs + NOT_WORSE), f"log-loss {mine:.4f}, its {theirs:.4f}")

    peers = {"LIBLINEAR -s 0": solver(0), "LIBLINEAR -s 7": solver(7)}
    rows = len(_data(0).train.labels)
    size, name = f"{rows} rows x {TERMS}", "online_adagrad, as good as LIBLINEAR"
    return Case(name, size, rows, ours, peers, "M rows/s", "none", 1.0, verify)


def _liblinear(data: Data, solver: int) -> Call:
    from liblinear.liblinearutil import parameter, problem, train
    from scipy.sparse import csr_matrix

    indptr, indices, values, labels = data.train
    matrix = csr_matrix((values.astype(np.float64), indices, indptr), (len(labels), TERMS))
    given = problem(labels.astype(np.float64), matrix)  # converted outside the time that is taken
    options = parameter(f"-s {solver} -q")

    def call() -> Learned:
        model = train(given, options)
        sign = 1 if model.get_labels()[0] == 1 else -1
        return Learned(sign * np.ctypeslib.as_array(model.w, (model.nr_feature,)).copy(), 0.0)

    return call


def _csr(name: str, count: int) -> Case:
    """Loss and gradient of all rows, beside two products with a SciPy matrix."""
    rows, features = _data(count).train, FEATURES if count else TERMS

    def operands() -> list[tuple[Array, ...]]:
        weight = np.random.default_rng(2).standard_normal(features, np.float32) * np.float32(0.1)
        gradients = np.empty(features, np.float32), np.empty(1, np.float32)
        return [(*gradients, *rows, NOTHING, weight, np.zeros(1, np.float32))]

    @functools.cache
    def matrix() -> Any:
        from scipy.sparse import csr_matrix

        return csr_matrix((rows.values, rows.indices, rows.indptr), (len(rows.labels), features))

    def with_scipy(weight_gradient, bias_gradient, indptr, indices, values, labels, _, weight, bias) -> Any:
        scores = matrix() @ weight + bias
        (np.logaddexp(0, scores) - labels * scores).sum()
        residual = 1 / (1 + np.exp(-scores)) - labels
        return matrix().T @ residual, residual.sum()

    ours = kernel("csr_loss_gradient", operands, "logistic", 1.0)
    peers = {"SciPy": numpy(operands, with_scipy)}
    size = f"{len(rows.labels)} rows x {features}"
    return Case(
        f"csr_loss_gradient, {name}", size, len(rows.labels), ours, peers, "M rows/s", "none", verify=within(1e-4)
    )
