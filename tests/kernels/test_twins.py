"""Every kernel of the CPU back end against the reference: what it returns, what it writes, what it leaves alone.

The arguments are made from `SPECS`, so that a new kernel is tested as soon as it has a spec.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hpcps_kernels import SPECS, Argument, Kernels, Spec, load
from hpcps_kernels.cpu.gradient import BLOCK, PANEL, SINGLE_BLOCK

REFERENCE, CPU = load("reference"), load("cpu")
FLOATS = (np.float32, np.float64)

SHAPES = [  # samples, features, classes
    *((n, 5, 3) for n in (0, 1, 3, 4, 5, SINGLE_BLOCK - 1, SINGLE_BLOCK + 1, BLOCK - 1, BLOCK, BLOCK + 1)),
    *((7, d, 3) for d in (1, 7, 8, 15, 16, 17, 33, PANEL - 1, PANEL, PANEL + 1)),
    *((9, 20, k) for k in (1, 2, 4, 5, 6, 10, 11)),
    (2 * BLOCK + 3, 2 * PANEL + 5, 7),
]
LENGTHS = (0, 1, 7, 16, 17, 1000, 4097)
ROWS = [(0, 5, 3), (1, 1, 1), (13, 7, 17), (64, 100, 33)]  # picked, in the source, features
STORED = ("uint8", "int8", "int16", "int32", "int64", "float32", "float64")
HYPER = {
    "learning_rate": 0.3,
    "momentum": 0.85,
    "epsilon": 1e-3,
    "beta1": 0.8,
    "beta2": 0.95,
    "step": 3,
    "gradient_scale": 0.37,
    "scale": 2.0**20 / 3,
}


def make(spec: Spec, lengths: dict[str, int], dtypes: dict[str, str], seed: int = 0) -> list[np.ndarray]:
    """Arrays that fit the spec; `dtypes` settles its letters."""
    rng = np.random.default_rng(seed)
    lengths = {"classes": lengths["K"] if "softmax" in spec.name else 2, **lengths} if "K" in lengths else lengths
    return [_array(a, [lengths[letter] for letter in a.shape], lengths, dtypes, rng) for a in spec.arrays]


def _array(argument: Argument, shape: list[int], lengths: dict[str, int], dtypes: dict[str, str], rng):
    dtype = np.dtype(dtypes.get(argument.dtype, argument.dtype))
    if argument.name == "labels" and dtype.kind == "i":
        return rng.integers(0, lengths["classes"], shape).astype(dtype)
    if argument.name == "index":
        return rng.integers(0, max(lengths["N"], 1), shape)
    if argument.name == "indptr":
        return np.linspace(0, lengths["nnz"], shape[0]).astype(dtype)
    if argument.name == "indices":
        return (np.arange(shape[0]) % lengths["D"]).astype(dtype)
    if argument.name in ("accumulator", "second"):
        return rng.random(shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    scale = lengths.get("D", 1) ** -0.5 if argument.name == "weight" else 1.0
    return (scale * rng.standard_normal(shape)).astype(dtype)


def scalars(spec: Spec) -> list[float]:
    return [HYPER[a.name] for a in spec.scalars]


def cases():
    for spec in SPECS.values():
        if spec.module == "gradient":
            sizes = [{"n": n, "D": d, "K": k, "1": 1} for n, d, k in SHAPES]
            sizes = sizes if "K" in str(spec.arrays) else [s for s in sizes if s["K"] == 3 or s["D"] > 1000]
            yield from ((spec, s, {"F": np.dtype(f).name}) for s in sizes for f in FLOATS)
        elif spec.module in ("reduce", "update"):
            names = ("float32", "float64", "int64") if spec.name == "add_into" else ("float32", "float64")
            yield from ((spec, {"n": n}, {"F": f, "A": f}) for n in LENGTHS for f in names)
        elif spec.module == "rows":
            letter = "S" if spec.name == "gather" else "V"
            for m, n, d in ROWS:
                size = {"m": m, "N": n, "N+1": n + 1, "D": d, "nnz": n * d // 2}
                stored = STORED if letter == "S" and m == 13 else ("float32", "float64")
                yield from ((spec, size, {"F": f, letter: s}) for s in stored for f in ("float32", "float64"))


CASES = list(cases())


def name_of(case) -> str:
    spec, lengths, dtypes = case
    sizes = "-".join(f"{k}{v}" for k, v in lengths.items() if k not in ("1", "N+1"))
    return f"{spec.name}-{sizes}-{'-'.join(dict.fromkeys(dtypes.values()))}"


def test_every_kernel_has_a_spec_and_a_case() -> None:
    assert set(SPECS) == {f.name for f in fields(Kernels)} - {"name"}
    assert {spec.name for spec, _, _ in CASES} == {
        name for name, spec in SPECS.items() if spec.module not in ("text", "meet")
    }  # they have files of their own


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_cpu_does_as_the_reference_does(case) -> None:
    spec, lengths, dtypes = case
    wanted, got, before = (make(spec, lengths, dtypes) for _ in range(3))
    loss = getattr(REFERENCE, spec.name)(*wanted, *scalars(spec))
    result = getattr(CPU, spec.name)(*got, *scalars(spec))
    assert type(result) is type(loss)
    if loss is not None:
        epsilon = float(np.finfo(dtypes["F"]).eps)
        assert result == pytest.approx(loss, rel=spec.tolerance * epsilon, abs=spec.tolerance * epsilon)
    for argument, g, w, b in zip(spec.arrays, got, wanted, before, strict=True):
        if not argument.is_written:
            np.testing.assert_array_equal(g, b, err_msg=f"{argument.name} was only to be read", strict=True)
        elif spec.tolerance == 0:
            np.testing.assert_array_equal(g, w, err_msg=argument.name, strict=True)
        else:
            within = spec.tolerance * np.finfo(w.dtype).eps * max(np.abs(w).max(initial=0), 1)
            np.testing.assert_allclose(g, w, rtol=0, atol=within, err_msg=argument.name)


@pytest.mark.parametrize(
    "name",
    [name for name, spec in SPECS.items() if spec.module != "meet" and any(a.role == "out" for a in spec.arrays)],
)
def test_an_out_argument_is_overwritten_whatever_it_held(name: str) -> None:
    spec = SPECS[name]
    lengths = {"n": 11, "D": 21, "K": 3, "1": 1, "m": 4, "N": 6, "N+1": 7, "nnz": 40}
    dtypes = {"F": "float32", "S": "float32", "V": "float32"}
    for kernels in (REFERENCE, CPU):
        clean, dirty = make(spec, lengths, dtypes), make(spec, lengths, dtypes)
        for argument, array in zip(spec.arrays, dirty, strict=True):
            if argument.role == "out":
                array[...] = np.nan
        for arrays in (clean, dirty):
            getattr(kernels, name)(*arrays, *scalars(spec))
        for c, d in zip(clean, dirty, strict=True):
            np.testing.assert_array_equal(c, d)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [s.name for s in SPECS.values() if s.module == "update"])
def test_an_update_gives_the_same_bits_for_any_slice(name: str, dtype) -> None:
    spec, kernel = SPECS[name], getattr(CPU, name)
    whole, sliced = (make(spec, {"n": 203}, {"F": np.dtype(dtype).name}) for _ in range(2))
    kernel(*whole, *scalars(spec))
    cuts = [0, 1, 2, 4, 7, 12, 28, 45, 108, 203]
    for lo, hi in pairwise(cuts):
        kernel(*[array[lo:hi] for array in sliced], *scalars(spec))
    for w, s in zip(whole, sliced, strict=True):
        assert w.tobytes() == s.tobytes()


def moved(array: np.ndarray, elements: int) -> np.ndarray:
    """A copy that begins `elements` into a buffer, so that vectors lie across other cache lines."""
    room = np.empty(array.size + elements, array.dtype)
    copy = room[elements:].reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("name", [s.name for s in SPECS.values() if s.module in ("gradient", "reduce", "rows")])
def test_the_same_bits_wherever_the_arrays_lie(name: str) -> None:
    spec = SPECS[name]
    lengths = {"n": 71, "D": 37, "K": 7, "1": 1, "m": 9, "N": 11, "N+1": 12, "nnz": 90}
    dtypes = {"F": "float32", "S": "float32", "V": "float32", "A": "float32"}
    seen = set()
    for elements in (0, 1, 3, 8):
        arrays = [moved(a, elements) for a in make(spec, lengths, dtypes)]
        loss = getattr(CPU, name)(*arrays, *scalars(spec))
        seen.add((loss, *(a.tobytes() for a in arrays)))
    assert len(seen) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("model", ["linear", "logistic", "softmax"])
def test_nan_and_inf_reach_the_loss(model: str, dtype, value: float) -> None:
    spec = SPECS[f"{model}_loss_gradient"]
    for at in range(10):
        arrays = make(spec, {"n": 10, "D": 19, "K": 3, "1": 1}, {"F": np.dtype(dtype).name})
        arrays[2][at, at] = value
        assert not np.isfinite(getattr(CPU, spec.name)(*arrays))
        assert not np.isfinite(arrays[0]).all()


@pytest.mark.parametrize("kernels", [REFERENCE, CPU], ids=["reference", "cpu"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_max_abs_tells_of_nan_before_inf(kernels: Kernels, dtype) -> None:
    for at in (0, 50, 99):
        x = np.linspace(-3, 2, 100, dtype=dtype)
        assert kernels.max_abs(x) == 3
        x[at] = -np.inf
        assert kernels.max_abs(x) == np.inf
        x[(at + 7) % 100] = -np.nan
        assert np.isnan(kernels.max_abs(x))
    assert kernels.max_abs(np.zeros(3, dtype)) == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_fixed_point_holds_large_values_and_rounds_half_to_even(dtype) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.0**61, -(2.0**61), 2.0**40 + 2.0**20], dtype)
    out = np.arange(x.size)
    CPU.add_fixed(out, x, 1.0)
    assert (out - np.arange(x.size)).tolist() == [0, 2, 2, 0, -2, 2**61, -(2**61), 2**40 + 2**20]
    CPU.from_fixed(x, out, 0.5)
    np.testing.assert_array_equal(x, (out * 0.5).astype(dtype), strict=True)
