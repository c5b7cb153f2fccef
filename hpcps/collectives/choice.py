"""Which algorithm sums arrays of how many bytes."""

from __future__ import annotations

from dataclasses import dataclass

from hpcps.errors import ConfigError

ALGORITHMS = ("memory", "ring", "doubling", "hierarchical", "mpi")
IN_WORDS = {
    "memory": "shared memory",
    "ring": "ring",
    "doubling": "recursive doubling",
    "hierarchical": "shared memory in nodes, rings between them",
    "mpi": "the MPI library's",
}
DOUBLING_BYTES = 32 << 10
"""Between nodes: up to here fewer messages are faster than fewer bytes, if nobody has measured."""


@dataclass(frozen=True)
class Layout:
    """Where the ranks run, and so what they can do."""

    ranks: int
    nodes: int
    shares_memory: bool
    """Whether the ranks of each node share memory."""
    has_native: bool
    """Whether the transport has an all-reduce of its own."""

    @property
    def is_one_memory(self) -> bool:
        """Whether all ranks share memory."""
        return self.nodes == 1 and self.shares_memory

    @property
    def is_hierarchical(self) -> bool:
        """Whether there are nodes, more than one, with more than one rank."""
        return self.nodes > 1 and self.shares_memory

    def why_not(self, algorithm: str) -> str:
        """Why an algorithm cannot be used here; nothing where it can."""
        if algorithm == "memory" and not self.is_one_memory:
            return "the ranks do not share memory"
        if algorithm == "hierarchical" and not self.is_hierarchical:
            return "there are no several nodes whose ranks share memory"
        if algorithm == "mpi" and not self.has_native:
            return "the ranks do not talk by MPI"
        return ""


@dataclass(frozen=True)
class Choice:
    """``algorithm``: one of ALGORITHMS, or "auto": then ``table`` decides, rows of (largest bytes, algorithm),
    ascending, and where it is empty a rule."""

    algorithm: str = "auto"
    table: tuple[tuple[int, str], ...] = ()

    @property
    def is_memory_alone(self) -> bool:
        """Whether ranks of one node never do anything but add up in memory."""
        return self.algorithm == "memory" or (
            self.algorithm == "auto" and all(algorithm == "memory" for _, algorithm in self.table)
        )

    def check(self, layout: Layout) -> None:
        """Raise ConfigError where the algorithm cannot be used."""
        reason = layout.why_not(self.algorithm)
        if reason and layout.ranks > 1:
            error = ConfigError(f"train.algorithm = {self.algorithm!r}: {reason}; use 'auto'")
            error.known_to_all = True  # all ranks have the same layout
            raise error

    def pick(self, size_bytes: int, layout: Layout) -> str:
        """The algorithm for arrays of so many bytes."""
        if self.algorithm != "auto":
            return self.algorithm
        for largest, algorithm in self.table:
            if size_bytes <= largest and not layout.why_not(algorithm):
                return algorithm
        if layout.is_one_memory:
            return "memory"
        if size_bytes <= DOUBLING_BYTES:
            return "doubling"
        return "hierarchical" if layout.is_hierarchical else "ring"
