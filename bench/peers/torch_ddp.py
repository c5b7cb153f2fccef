"""Train on Fashion-MNIST with PyTorch and report samples per second.

The peer of the training bench: softmax regression, `nn.Linear(784, 10)`, or a perceptron 784-512-256-10 with ReLU
(`--model mlp`), mean cross-entropy, SGD with momentum, one global batch split evenly over the ranks. Several ranks use
`DistributedDataParallel` on gloo over the loopback device, with gloo's all-reduce or with hpcps's (`--hook hpcps`); one
rank is plain PyTorch. It runs alone, in an environment that holds torch and NumPy, and hpcps where its hook is used:

    python torch_ddp.py --data FOLDER --ranks 2 --epochs 5 --json result.json

What is timed: an epoch of training steps, the shuffle and the gathering of batches included, the evaluation and the
reading of files not. Warm-up steps come first and are undone, so that the accuracy is that of `--epochs` epochs. As
with `drop_last=True`, the samples left over from the last whole batch sit an epoch out, and are not counted.
"""

import argparse
import copy
import gzip
import json
import os
import statistics
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

LOOPBACK = "127.0.0.1"
PIXELS, CLASSES = 784, 10
HIDDEN = (512, 256)
WARM_UP_STEPS = 50


def parse_arguments() -> argparse.Namespace:
    """Return the command line; a batch that the ranks cannot share evenly is refused."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the four IDX .gz files")
    parser.add_argument("--ranks", type=int, default=1, help="processes")
    parser.add_argument("--model", choices=("softmax", "mlp"), default="softmax")
    parser.add_argument("--hook", choices=("none", "hpcps"), default="none", help="who sums the gradients of DDP")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256, help="global batch, whatever the rank count")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds allowed to the whole run")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    options = parser.parse_args()
    if min(options.ranks, options.epochs, options.batch, options.threads) < 1 or options.timeout <= 0:
        parser.error("--ranks, --epochs, --batch, --threads and --timeout must be positive")
    if options.batch % options.ranks:
        parser.error(f"--batch {options.batch} is not a multiple of --ranks {options.ranks}")
    if options.hook != "none" and options.ranks == 1:
        parser.error("--hook needs several --ranks")
    return options


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Return the bytes of a gzipped IDX file of `dims` dimensions, shaped as its header says."""
    content = gzip.decompress(path.read_bytes())
    if content[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(f"{path}: not an IDX file of unsigned bytes in {dims} dimensions")
    shape = np.frombuffer(content, ">u4", count=dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images, float32 (samples, 784) in [0, 1], and labels, int64 (samples,), of `train` or `t10k`."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    scaled = np.multiply(images.reshape(-1, PIXELS), np.float32(1 / 255), dtype=np.float32)
    return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))


class Trainer:
    """One rank's model, optimiser, data and batch buffers."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        self.rank, self.ranks = rank, options.ranks
        self.local_batch = options.batch // options.ranks
        self.images, self.labels = read_split(options.data, "train")
        self.steps = len(self.labels) // options.batch
        if self.steps == 0:
            raise ValueError(f"--batch {options.batch} exceeds the {len(self.labels)} training samples")

        # The seed is the same on every rank, so all agree on the shuffle and each takes its slice of every batch.
        torch.manual_seed(options.seed)
        self.shuffler = torch.Generator().manual_seed(options.seed)
        self.net = network(options.model)
        self.model = distribute(self.net, options) if self.ranks > 1 else self.net
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=options.learning_rate, momentum=options.momentum, fused=True
        )

        # Batches are gathered into the same buffers every time: they stay in cache, and nothing is allocated.
        self.batch_images = torch.empty(self.local_batch, PIXELS)
        self.batch_labels = torch.empty(self.local_batch, dtype=torch.int64)

    def shuffled_batches(self) -> tuple[Tensor, ...]:
        """Return this rank's sample indices of each step of a freshly shuffled epoch."""
        order = torch.randperm(len(self.labels), generator=self.shuffler)
        order = order[: self.steps * self.ranks * self.local_batch]
        return order.view(self.steps, self.ranks, self.local_batch)[:, self.rank].contiguous().unbind()

    def step(self, samples: Tensor) -> None:
        """Take one step on the samples of these indices; with several ranks, blocks until all have."""
        torch.index_select(self.images, 0, samples, out=self.batch_images)
        torch.index_select(self.labels, 0, samples, out=self.batch_labels)

        loss = cross_entropy(self.model(self.batch_images), self.batch_labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def warm_up(self) -> None:
        """Take `WARM_UP_STEPS` steps, then forget them: weights, momentum and shuffle start afresh."""
        weights = copy.deepcopy(self.net.state_dict())
        shuffle = self.shuffler.get_state()
        batches = self.shuffled_batches()
        for index in range(WARM_UP_STEPS):
            self.step(batches[index % self.steps])
        self.net.load_state_dict(weights)
        self.optimizer.state.clear()
        self.shuffler.set_state(shuffle)

    def timed_epoch(self) -> float:
        """Train one epoch and return its seconds, from when all ranks are ready to when this one is done."""
        if self.ranks > 1:
            dist.barrier()
        start = time.perf_counter()
        for samples in self.shuffled_batches():
            self.step(samples)
        return time.perf_counter() - start


def network(model: str) -> nn.Module:
    """Return the network of this name."""
    if model == "softmax":
        return nn.Linear(PIXELS, CLASSES)
    wide, narrow = HIDDEN
    return nn.Sequential(
        nn.Linear(PIXELS, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, CLASSES)
    )


def distribute(net: nn.Module, options: argparse.Namespace) -> DistributedDataParallel:
    """Wrap a network so that `backward` averages its gradients over the ranks, with no copy out of the bucket."""
    model = DistributedDataParallel(net, gradient_as_bucket_view=True, static_graph=True)
    if options.hook == "hpcps":
        import hpcps.torch

        hpcps.torch.use(model, timeout_s=options.timeout)
    return model


def slowest(seconds: list[float]) -> list[float]:
    """Return the maximum over the ranks of each duration; a collective call."""
    durations = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(durations, dist.ReduceOp.MAX)
    return durations.tolist()


@torch.no_grad()
def accuracy(net: nn.Module, folder: Path) -> float:
    """Return the share of the test images that the network labels correctly."""
    images, labels = read_split(folder, "t10k")
    return (net(images).argmax(dim=1) == labels).double().mean().item()


def result_of(options: argparse.Namespace, steps: int, epoch_s: list[float], score: float) -> dict:
    """Return the result as written to the JSON file; `samples_per_s` is the median over epochs."""
    version = torch.__version__.partition("+")[0]
    summed_by = "hpcps" if options.hook == "hpcps" else "gloo"
    return {
        "peer": f"torch {version} ddp {summed_by}" if options.ranks > 1 else f"torch {version}",
        "model": options.model,
        "ranks": options.ranks,
        "threads": options.threads,
        "samples_per_s": steps * options.batch / statistics.median(epoch_s),
        "epoch_s": epoch_s,
        "accuracy": score,
        "epochs": options.epochs,
    }


def publish(result: dict, path: Path | None) -> None:
    """Print the result, and write it to a file if one is named."""
    text = json.dumps(result, indent=2)
    print(text, flush=True)
    if path:
        path.write_text(text + "\n")


def train(options: argparse.Namespace, rank: int) -> None:
    """Train one rank's part; rank 0 evaluates and publishes."""
    torch.set_num_threads(options.threads)
    trainer = Trainer(options, rank)
    trainer.warm_up()
    epoch_s = [trainer.timed_epoch() for _ in range(options.epochs)]
    if options.ranks > 1:
        epoch_s = slowest(epoch_s)
    if rank == 0:
        score = accuracy(trainer.net, options.data)
        publish(result_of(options, trainer.steps, epoch_s, score), options.json)


def run_rank(rank: int, options: argparse.Namespace, port: int) -> None:
    """Join the process group if there are several ranks, and train."""
    if options.ranks == 1:
        train(options, rank)
        return
    limit = timedelta(seconds=options.timeout)
    store = dist.TCPStore(LOOPBACK, port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks, timeout=limit)
    try:
        train(options, rank)
    finally:
        dist.destroy_process_group()


def join_ranks(ranks: mp.ProcessContext, timeout: float) -> None:
    """Wait for every rank; raises what a rank raised, or `TimeoutError` after killing those that are late."""
    deadline = time.monotonic() + timeout
    while not ranks.join(timeout=max(0.0, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"the ranks did not finish within {timeout} s")


def main() -> None:
    """Start the ranks and wait for them; any failure ends the program with a status other than zero."""
    options = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

    # The store takes a port that the system says is free, so that two runs at once never meet.
    store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    ranks = mp.spawn(run_rank, (options, store.port), nprocs=options.ranks, join=False)
    join_ranks(ranks, options.timeout)


if __name__ == "__main__":
    main()
