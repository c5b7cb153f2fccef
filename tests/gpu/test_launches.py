"""How often a training step has a GPU do something, and waits for it: docs/GPU.md says it, and this counts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hpcps_kernels.gpu._launch import Instance
from on_cpu import DeviceArray, LateStream, OnCpu, in_the_place_of_gpus
from trainings import DENSE, OF_MLP, SPARSE, changed, of_sparse, told, train

from hpcps.config import Config

ROW = re.compile(r"^\| ([\w, `-]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)
TABLE = {
    tuple(re.findall(r"`([^`]+)`", names)): tuple(map(int, counts))
    for names, *counts in ROW.findall((Path(__file__).parents[2] / "docs" / "GPU.md").read_text())
}
"""Kernels, CuPy's own operations, copies up, waits; by settings of the model"""


class CountedStream(LateStream):
    def to_device(self, out: DeviceArray, array: np.ndarray[Any, Any]) -> None:
        self._device.count("up")
        super().to_device(out, array)


class Counted(OnCpu):
    """What it was asked for; memory that is filled with zeros counts as a launch, and so does a matrix product."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.counts: Counter[str] = Counter()
        self._is_within = False

    def count(self, what: str) -> None:
        self.counts[what] += not self._is_within

    def launch(self, instance: Instance, *rest: Any) -> None:
        self.count("kernel")
        super().launch(instance, *rest)

    def multiply(self, *arrays: DeviceArray) -> None:
        self.count("cupy")
        super().multiply(*arrays)

    multiply_alone = multiply

    def zeros(self, shape: Any, dtype: Any) -> DeviceArray:
        self.count("cupy")
        return super().zeros(shape, dtype)

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        return self._within(super().empty, shape, dtype)

    def argsort(self, keys: DeviceArray) -> DeviceArray:
        self.count("cupy")
        return self._within(super().argsort, keys)

    def running_sum(self, x: DeviceArray) -> DeviceArray:
        self.count("cupy")
        return self._within(super().running_sum, x)

    def put(self, array: np.ndarray[Any, Any]) -> DeviceArray:
        self.count("up")
        return super().put(array)

    def read(self, array: DeviceArray) -> np.ndarray[Any, Any]:
        self.count("wait")
        return super().read(array)

    def stream(self) -> CountedStream:
        return CountedStream(self)

    def _within(self, call: Any, *given: Any) -> DeviceArray:
        """What the stand-in does by other calls of its own is no other operation."""
        self._is_within = True
        try:
            found: DeviceArray = call(*given)
        finally:
            self._is_within = False
        return found


def a_step(folder: Path, asked: Config, compiled: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """The counts of a step: of all but the first steps, divided."""
    counts, steps = [], []
    for epochs in (1, 3):
        gpu = Counted(compiled)
        in_the_place_of_gpus([gpu], monkeypatch.setattr)
        summary, _ = train(folder / str(epochs), changed(asked, "train", epochs=epochs))
        counts.append(gpu.counts)
        steps.append(summary["steps"])
    more = {what: counts[1][what] - counts[0][what] for what in ("kernel", "cupy", "up", "wait")}
    found = {what: divmod(count, steps[1] - steps[0]) for what, count in more.items()}
    assert not any(rest for _, rest in found.values()), found  # all steps are alike
    return tuple(each for each, _ in found.values())


@pytest.mark.parametrize("names", TABLE, ids=" ".join)
def test_the_table_of_launches_is_true(tmp_path, data, compiled, monkeypatch, names) -> None:
    settings = "run.device=cuda", "data.test_fraction=0"
    for name in names:
        if name in DENSE:
            asked = told(data, name, *[OF_MLP] * (name == "mlp"), *settings)
        else:
            asked = of_sparse(data, name.partition(",")[0], *settings)
        assert a_step(tmp_path / name, asked, compiled, monkeypatch) == TABLE[names], name


def test_the_table_has_all_models() -> None:
    assert {name for names in TABLE for name in names} == {*DENSE, "logistic, sparse", *SPARSE} - {"logistic by hinge"}
