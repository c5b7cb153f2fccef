"""Kills runs while they write checkpoints, again and again: each time the newest one must be whole and right.

    python bench/kills.py --kills 200

A run writes a checkpoint at every step, and is killed (SIGKILL) at a moment drawn at random; then it goes on from there
with another number of ranks, by another strategy. Parameters and optimiser state of the newest checkpoint are compared,
bit by bit, with those that a run had at that step which nobody has killed. Ends with status 1 if one was missing,
damaged or wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common
import numpy as np

import hpcps
from hpcps.checkpoint import CheckpointFolder, newest
from hpcps.checkpoint.folder import name_of
from hpcps.config import Config, as_tree, from_tree
from hpcps.snapshot import Snapshot
from hpcps.together import Alone

WAYS = {
    "1 rank": (1, {"strategy": "ring"}, {}),
    "2 ranks, all-reduce": (2, {"strategy": "ring"}, {}),
    "3 ranks, 1 shard": (3, {"strategy": "server"}, {}),
    "3 ranks, 3 shards": (3, {"strategy": "server"}, {"colocated": True}),
}
STATES = ("parameters", "state.first", "state.second")


def config(train: dict[str, object], server: dict[str, object], keep: int) -> Config:
    """A perceptron of 0.3 million parameters: a checkpoint has 4 MB."""
    return from_tree(
        {
            "data": {"path": "digits", "scale": "maxabs"},
            "model": {"kind": "mlp", "hidden": [512, 512]},
            "optimizer": {"kind": "adam", "learning_rate": 1e-3},
            "train": {"batch": 64, "epochs": 3, "reproducible": True, **train},
            "server": server,
            "checkpoint": {"every_steps": 1, "keep": keep},
            "run": {"threads": 1},
        }
    )


def digest(snapshot: Snapshot) -> str:
    """Of parameters and state, however they are cut up."""
    found = hashlib.sha256(repr(snapshot.position.losses).encode())
    for name in STATES:
        array = np.empty(snapshot.count(name), np.float32)
        snapshot.fill(array, name)
        found.update(array.tobytes())
    return found.hexdigest()


def reference(folder: Path) -> dict[int, str]:
    """What a run that nobody kills has at each step."""
    told = config({"strategy": "ring"}, {}, 1000)
    hpcps.train(told, out=folder)
    checkpoints, found = CheckpointFolder(folder / "checkpoint"), {}
    for step in checkpoints.steps()[::-1]:
        one = newest(checkpoints, Alone(), as_tree(told))
        assert one is not None
        assert one.manifest.position.steps == step
        found[step] = digest(one.snapshot)
        os.rename(checkpoints.at(step), folder / name_of(step))
    return found


def killed_run(told: Config, ranks: int, folder: Path, wait_s: float, last: int) -> bool:
    """Train in a child, and kill it so long after its first checkpoint; returns whether it came to its end first."""
    child = os.fork()
    if not child:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            hpcps.train(told, ranks=ranks, out=folder)
        os._exit(0)
    checkpoints = CheckpointFolder(folder / "checkpoint")
    while checkpoints.steps()[-1:] <= [last]:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.0005)
    time.sleep(wait_s)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--kills", type=int, default=200)
    told.add_argument("--seed", type=int, default=0)
    told.add_argument("--json", type=Path)
    chosen = told.parse_args()
    draw, wrong, outcomes = random.Random(chosen.seed), [], Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        right = reference(Path(scratch) / "reference")
        number = kills = last = 0
        while kills < chosen.kills:
            way = draw.choice(list(WAYS))
            ranks, train, server = WAYS[way]
            folder = Path(scratch) / f"run{number}"
            ended = killed_run(config(train, server, 2), ranks, folder, draw.uniform(0, 0.06), last)
            if ended:
                number, last = number + 1, 0
                continue
            kills += 1
            half = any(entry.name.startswith(".") for entry in (folder / "checkpoint").iterdir())
            one = newest(CheckpointFolder(folder / "checkpoint"), Alone(), as_tree(config(train, server, 2)))
            step = -1 if one is None else one.manifest.position.steps
            if one is None or one.damaged or step <= last or digest(one.snapshot) != right[step]:
                wrong.append((kills, way, step, one.damaged if one else "none"))
            outcomes[way, "while it was written" if half else "between two"] += 1  # type: ignore[index]
            last = step
    for (way, when), count in sorted(outcomes.items()):
        print(f"{way:22} killed {when:22} {count:4}")
    print(f"{chosen.kills} kills, {len(wrong)} wrong")
    for one in wrong:
        print("wrong:", one)
    if chosen.json:
        rows = [{"case": f"{way}, {when}", "kills": count} for (way, when), count in sorted(outcomes.items())]
        common.write_json(chosen.json, ["numpy", "numba"], [*rows, {"case": "wrong", "wrong": len(wrong)}])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
