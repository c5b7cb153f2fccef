"""Times by CUDA's events: a copy on the device, our kernel and its peers in turn, in every round."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from hpcps_kernels import load

from on_gpu.cases import Case

COPY_BYTES = 512 * 2**20
WARM_UPS = 3


def seconds(cupy: Any, call: Callable[[], Any]) -> float:
    """How long the GPU takes for it, or the host, if that is longer."""
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3


def wrong(case: Case, ours: Any, theirs: Any) -> int:
    """How many elements are further off than the case allows, of the largest magnitude; nan is always off."""
    a, b = np.asarray(ours, np.float64).reshape(-1), np.asarray(theirs, np.float64).reshape(-1)
    return int(a.size - np.count_nonzero(np.abs(a - b) <= case.tolerance * np.abs(b).max(initial=0)))


def measure(cupy: Any, case: Case, rounds: int) -> dict[str, object]:
    """The row of a case. What fails is told in it, and does not end the others."""
    row: dict[str, object] = {"case": case.name, "size": case.size, "limit": "copy"}
    try:
        return row | _measured(cupy, case, rounds)
    except Exception as error:
        return row | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _measured(cupy: Any, case: Case, rounds: int) -> dict[str, object]:
    kernel, arrays = getattr(load("gpu"), case.kernel), [cupy.asarray(x) for x in case.operands()]
    given = [cupy.asarray(x) for x in case.operands()]
    peers = {name: lambda peer=peer: peer(cupy, *given) for name, peer in case.peers.items()}
    answer = kernel(*arrays, *case.scalars)
    ours = answer if case.makes is None else cupy.asnumpy(arrays[case.makes])
    off = sum(wrong(case, ours, cupy.asnumpy(peer())) for peer in peers.values())
    a, b = cupy.zeros(COPY_BYTES, "uint8"), cupy.zeros(COPY_BYTES, "uint8")
    calls = {
        "copy": lambda: a.data.copy_from_device_async(b.data, COPY_BYTES),
        "hpcps": lambda: kernel(*arrays, *case.scalars),
    }
    calls |= peers
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + WARM_UPS):
        for name, call in calls.items():
            spent = seconds(cupy, call)
            if number >= WARM_UPS:
                taken[name].append(spent)
    medians = {name: median(all_of) for name, all_of in taken.items()}
    limit, own = 2 * COPY_BYTES / medians.pop("copy"), medians.pop("hpcps")
    told: dict[str, object] = {"median_s": own, "rate": case.bytes / own / 1e9, "unit": "GB/s", "wrong": off}
    told |= {"limit_rate": limit / 1e9, "fraction": case.bytes / own / limit}
    if medians:
        best = min(medians, key=medians.__getitem__)
        told |= {"peer": best, "peer_s": medians[best], "ratio": medians[best] / own}
    return told
