"""Models: numerical gradients, scikit-learn's losses, and a user's own function with all it can get wrong."""

from concurrent.futures import ThreadPoolExecutor

import hpcps_kernels
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from hpcps import models
from hpcps.config import Model as Options
from hpcps.errors import ConfigError, ModelError
from hpcps.models import Batch, Facts

KERNELS = hpcps_kernels.load("cpu")
FEATURES, CLASSES, SAMPLES = 5, 3, 11


def batch_for(task, rng):
    samples = rng.normal(size=(SAMPLES, FEATURES))
    if task == "regression":
        return Batch(samples, rng.normal(size=SAMPLES))
    return Batch(samples, rng.integers(0, 2 if task == "binary" else CLASSES, SAMPLES))


PERCEPTRONS = [
    {"kind": "mlp", "hidden": hidden, "activation": activation, "task": task}
    for hidden in ((), (4,), (7, 3))
    for activation in ("relu", "tanh", "gelu")
    for task in ("auto", "binary", "regression")
]


@pytest.mark.parametrize(
    "options", [{"kind": "linear"}, {"kind": "logistic"}, {"kind": "softmax"}, *PERCEPTRONS], ids=str
)
def test_gradients_are_the_numerical_derivatives_of_the_loss(options):
    rng = np.random.default_rng(5)
    model = models.make(Options(**options), Facts(FEATURES, CLASSES), "float64", KERNELS)
    params = model.init(rng)
    params.flat[:] = rng.normal(size=len(params.flat))
    batch = batch_for(model.task, rng)
    gradient = params.on(np.full(len(params.flat), np.nan))
    loss = model.loss_gradient(params, batch, gradient)
    assert loss == pytest.approx(model.loss(params, batch), rel=1e-12)
    for i in range(len(params.flat)):
        ahead, behind = params.on(params.flat.copy()), params.on(params.flat.copy())
        ahead.flat[i] += 1e-5
        behind.flat[i] -= 1e-5
        numerical = (model.loss(ahead, batch) - model.loss(behind, batch)) / 2e-5
        assert gradient.flat[i] == pytest.approx(numerical, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", ["linear", "logistic", "softmax"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_prepared_gradient_is_that_of_what_is_then_in_the_arrays(kind, dtype):
    rng = np.random.default_rng(6)
    model = models.make(Options(kind=kind), Facts(FEATURES, CLASSES), dtype, KERNELS)
    params = model.init(rng)
    found, wanted = (params.on(np.empty_like(params.flat)) for _ in range(2))
    batch = batch_for(model.task, rng)
    labels = batch.labels.astype(dtype) if model.task == "regression" else batch.labels
    batch = Batch(batch.samples.astype(dtype), labels)
    call = model.prepare(params, batch, found)
    for _ in range(3):
        params.flat[:] = rng.normal(size=len(params.flat))
        fresh = batch_for(model.task, rng)
        batch.samples[:], batch.labels[:] = fresh.samples, fresh.labels
        assert call() == model.loss_gradient(params, batch, wanted)
        assert found.flat.tobytes() == wanted.flat.tobytes()


def grains_of(model, sizes, dtype):
    """A batch of grains, and a call for some of them, each pushed on a stack of its own."""
    rng = np.random.default_rng(8)
    params = model.init(rng)
    params.flat[:] = rng.normal(size=len(params.flat))
    count, bounds = sum(sizes), np.cumsum([0, *sizes])
    samples = rng.normal(size=(count, 40)).astype(dtype)
    labels = rng.normal(size=count) if model.task == "regression" else rng.integers(0, 2, count)

    def call(first, last, adds):
        low, high = bounds[first], bounds[last]
        stack = np.full((len(adds) + 1, len(params.flat)), np.nan, dtype)
        batch = Batch(samples[low:high], labels[low:high])
        losses = model.grain_gradients(params, batch, bounds[first : last + 1] - low, np.array(adds), stack)
        gradient = params.on(np.empty(len(params.flat), dtype))
        return losses, stack, model.loss_gradient(params, batch, gradient), gradient.flat

    return call


@pytest.mark.parametrize("sizes", [(32, 32, 32), (5, 1, 7), (15, 15, 14)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "softmax"},
        {"kind": "logistic"},
        {"kind": "linear", "loss": "huber"},
        {"kind": "mlp", "hidden": (70, 9)},
        {"kind": "mlp", "hidden": (4,), "activation": "gelu", "task": "binary"},
        {"kind": "mlp", "hidden": (), "task": "regression"},
    ],
    ids=str,
)
def test_grains_together_have_the_bits_of_grains_alone(options, sizes, dtype):
    with threadpool_limits(1):
        model = models.make(Options(**options), Facts(40, CLASSES), dtype, KERNELS)
        call = grains_of(model, sizes, dtype)
        losses, stack, whole_loss, whole = call(0, 3, [0, 0, 2])
        alone = [call(grain, grain + 1, [0]) for grain in range(3)]
        pair, _ = call(1, 3, [0, 1])[:2]
    assert losses.tolist() == [float(one[0][0]) for one in alone]
    assert pair.tolist() == losses[1:].tolist()
    total = alone[0][1][0] + (alone[1][1][0] + alone[2][1][0])
    assert stack[0].tobytes() == total.tobytes()
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    assert losses.sum() == pytest.approx(whole_loss, rel=tolerance)
    np.testing.assert_allclose(stack[0], whole, rtol=tolerance, atol=tolerance * np.abs(whole).max())


def test_losses_agree_with_scikit_learn_at_the_same_parameters():
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(6)
    samples = rng.normal(size=(200, FEATURES)).astype(np.float32)
    for kind, classes in (("softmax", CLASSES), ("logistic", 2)):
        labels = rng.integers(0, classes, 200)
        theirs = linear_model.LogisticRegression(C=10.0).fit(samples, labels)
        ours = models.make(Options(kind=kind), Facts(FEATURES, classes), "float32", KERNELS)
        params = ours.init(rng)
        params["weight"][...] = theirs.coef_.reshape(params["weight"].shape)
        params["bias"][...] = theirs.intercept_
        expected = metrics.log_loss(labels, theirs.predict_proba(samples))
        assert ours.loss(params, Batch(samples, labels)) / 200 == pytest.approx(expected, abs=1e-5)
        predicted = models.predict(ours, ours.scores(params, samples))
        assert np.array_equal(predicted, theirs.predict(samples))


def test_an_unknown_model_names_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"model\.kind = 'sofmax' is not known; use one of linear, logistic, softmax, mlp"
    ):
        models.make(Options(kind="sofmax"), Facts(1, 2), "float32", KERNELS)


@pytest.mark.parametrize("task", ["multiclass", "binary", "regression"])
def test_a_perceptron_is_its_layers_written_out(task):
    rng = np.random.default_rng(8)
    model = models.make(Options(kind="mlp", hidden=(6,), task=task), Facts(FEATURES, CLASSES), "float64", KERNELS)
    assert (model.task, models.task_of(Options(kind="mlp", task=task))) == (task, task)
    params = model.init(rng)
    params["bias1"][:] = rng.normal(size=6)
    samples = rng.normal(size=(SAMPLES, FEATURES))
    hidden = np.maximum(samples @ params["weight1"].T + params["bias1"], 0)
    scores = model.scores(params, samples)
    expected = hidden @ params["weight2"].T + params["bias2"]
    np.testing.assert_allclose(scores, expected if task == "multiclass" else expected[:, 0], rtol=1e-12)
    kept = scores.copy()
    model.loss(params, batch_for(task, rng))
    assert np.array_equal(scores, kept)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_perceptrons_first_weights_are_random_the_same_for_a_seed_and_within_their_limits(activation):
    model = models.make(Options(kind="mlp", hidden=(50, 20), activation=activation), Facts(30, 10), "float32", KERNELS)
    params, again = (model.init(np.random.default_rng(3)) for _ in range(2))
    assert params.sha256() == again.sha256()
    shapes = {
        "weight1": (50, 30),
        "bias1": (50,),
        "weight2": (20, 50),
        "bias2": (20,),
        "weight3": (10, 20),
        "bias3": (10,),
    }
    assert params.shapes == shapes
    for layer, (inputs, outputs) in enumerate([(30, 50), (50, 20), (20, 10)], 1):
        he = activation == "relu" and layer < 3
        limit = np.sqrt(6 / inputs if he else 6 / (inputs + outputs))
        assert 0.9 * limit < np.abs(params[f"weight{layer}"]).max() <= np.float32(limit)
        assert not params[f"bias{layer}"].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", ["auto", "binary"])
def test_a_perceptrons_gradient_has_the_same_bits_on_any_thread_and_wherever_arrays_lie(dtype, task):
    rng = np.random.default_rng(9)
    options = Options(kind="mlp", hidden=(33, 17), activation="gelu", task=task)
    model = models.make(options, Facts(29, 7), dtype, KERNELS)
    params = model.init(rng)
    samples = rng.normal(size=(37, 29)).astype(dtype)
    labels = rng.integers(0, 7 if task == "auto" else 2, 37)

    def gradient(shift):
        def moved(array):
            room = np.empty(array.size + shift, array.dtype)
            room[shift:] = array.reshape(-1)
            return room[shift:].reshape(array.shape)

        out = params.on(moved(np.empty_like(params.flat)))
        for n in (5, 37):  # memory of several batch sizes
            loss = model.loss_gradient(params.on(moved(params.flat)), Batch(moved(samples[:n]), labels[:n]), out)
        return loss, out.flat.tobytes()

    with threadpool_limits(1), ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(gradient, [0, 1, 3, 8, 0, 5] * 5))) == 1


def test_a_label_that_is_no_class_is_refused_by_a_perceptron():
    rng = np.random.default_rng(2)
    for task in ("multiclass", "binary"):
        model = models.make(Options(kind="mlp", task=task), Facts(FEATURES, CLASSES), "float64", KERNELS)
        params = model.init(rng)
        batch = Batch(rng.normal(size=(2, FEATURES)), np.array([0, CLASSES]))
        with pytest.raises(ValueError, match="label"):
            model.loss_gradient(params, batch, params.on(np.empty_like(params.flat)))


GOOD = """
import numpy as np

def f(params, samples, labels):
    residual = samples @ params["w"] - labels
    return (residual ** 2).sum() / 2, {"w": residual @ samples}

def scores(params, samples):
    return samples @ params["w"]

class Model:
    task = "regression"
    def init(self, rng):
        return {"w": rng.normal(size=5), "c": np.zeros(())}
    def loss_gradient(self, params, batch, gradient_out):
        residual = batch.samples @ params["w"] + params["c"] - batch.labels
        gradient_out["w"][:] = residual @ batch.samples
        gradient_out["c"][...] = residual.sum()
        return (residual ** 2).sum() / 2
    def scores(self, params, samples):
        return samples @ params["w"] + params["c"]

model = Model()
number = 3
class NoInit:
    def loss_gradient(self, params, batch, gradient_out): return 0.0
class Strange(Model):
    task = "clustering"
"""


def write(tmp_path, text):
    file = tmp_path / "m.py"
    file.write_text(text)
    return file


def load(file, name, **options):
    return models.make(Options(kind=f"{file}:{name}", **options), Facts(5, 0), "float64", None)


def test_a_users_function(tmp_path):
    file = write(tmp_path, GOOD)
    shapes = {"w": [5]}
    model = load(file, "f", parameters=shapes, task="regression", scores=f"{file}:scores")
    assert (model.task, model.can_predict) == ("regression", True)
    rng = np.random.default_rng(1)
    batch = batch_for("regression", rng)
    params = model.init(rng)
    gradient = params.on(np.empty_like(params.flat))
    assert model.loss_gradient(params, batch, gradient) == pytest.approx((batch.labels**2).sum() / 2)
    assert np.allclose(gradient["w"], -batch.labels @ batch.samples)
    assert model.scores(params, batch.samples).shape == (SAMPLES,)
    assert not load(file, "f", parameters=shapes).can_predict


def test_matrices_of_a_users_function_begin_random_but_the_same_for_a_seed(tmp_path):
    file = write(tmp_path, GOOD)
    model = load(file, "f", parameters={"w": [5], "m": [4, 6]})
    first, second = (model.init(np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first.flat, second.flat)
    assert not first["w"].any()
    assert 0 < np.abs(first["m"]).max() <= np.sqrt(6 / 10)


@pytest.mark.parametrize("name", ["Model", "model"])
def test_a_users_object_or_class(tmp_path, name):
    model = load(write(tmp_path, GOOD), name)
    rng = np.random.default_rng(1)
    batch = batch_for(model.task, rng)
    params = model.init(rng)
    gradient = params.on(np.full(6, np.nan))
    loss = model.loss_gradient(params, batch, gradient)
    assert loss == model.loss(params, batch)
    assert np.isfinite(gradient.flat).all()


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (GOOD, "absent", r"m\.py: has no 'absent'"),
        (GOOD, "number", "is neither a function nor an object"),
        (GOOD, "f", "needs its parameters' shapes"),
        (GOOD, "NoInit", "has no method init"),
        (GOOD, "Strange", "its task is 'clustering', expected one of regression"),
        ("def f(:\n", "f", r"m\.py:1: invalid syntax"),
        ("import no_such_module_at_all", "f", r"m\.py: ModuleNotFoundError: No module named"),
        ("class C:\n  def __init__(self): raise ValueError('a\\nb')\n", "C", r"m\.py:2: ValueError: a b"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, name, message):
    with pytest.raises(ModelError, match=message):
        load(write(tmp_path, text), name)
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "absent.py", name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1.0", r"returned float, expected \(loss, gradients\)"),
        ("return 1.0, [1]", "gradients are list, expected a dict"),
        ("return 1.0, {}", "gradients are of nothing, expected w"),
        ("return 1.0, {'v': samples[0]}", "gradients are of v, expected w"),
        ("return 1.0, {'w': samples}", r"gradient 'w' has shape \(11, 5\), expected \(5,\)"),
        ("return 1.0, {'w': samples[0] * float('nan')}", "gradient 'w' is not finite"),
        ("return 1.0, {'w': ['a'] * 5}", "gradient 'w' has dtype <U1, expected numbers"),
        ("return float('nan'), {'w': samples[0]}", "the loss is nan"),
        ("return samples, {'w': samples[0]}", "the loss is ndarray, expected one number"),
        ("x = 1\n    return x / 0, {}", r"m\.py:3: ZeroDivisionError: division by zero"),
        ("params['w'][0] = 1\n    return 0.0, {}", r"m\.py:2: ValueError: assignment destination is read-only"),
    ],
)
def test_what_a_users_function_gets_wrong_is_one_line(tmp_path, body, message):
    model = load(write(tmp_path, f"def f(params, samples, labels):\n    {body}\n"), "f", parameters={"w": [5]})
    rng = np.random.default_rng(1)
    params = model.init(rng)
    with pytest.raises(ModelError, match=message) as caught:
        model.loss_gradient(params, batch_for("multiclass", rng), params.on(np.empty(5)))
    assert "\n" not in str(caught.value)
