"""Sparse labelled rows drawn from a known linear model, in the shape of public data sets, for those who have none.

    python bench/generate.py criteo --rows 100000 --out train.svm

``criteo``: 39 fields, each with one value whose frequencies follow a power law, hashed to 2^22 features, all values 1.
``rcv1``: 20,242 documents x 47,236 terms, 74 terms a document, tf-idf weights, rows of length 1. Labels are 0 or 1.
Scores of the true model are linear, so that held-out log-loss tells learners apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

FIELDS, HASH_BITS = 39, 22
PIECE_ROWS = 250_000
DOCUMENTS, TERMS, TERMS_EACH = 20_242, 47_236, 74


class Rows(NamedTuple):
    """Compressed sparse rows: row i owns entries indptr[i] .. indptr[i + 1] - 1, its indices rising."""

    indptr: Array  # (n + 1,) int64
    indices: Array  # (nnz,) int32
    values: Array  # (nnz,) float32
    labels: Array  # (n,) float32, 0 or 1

    def plain(self) -> tuple[Array, Array, Array, Array]:
        """The same, with no values where all are 1."""
        values = self.values[:0] if (self.values[:1000] == 1).all() and (self.values == 1).all() else self.values
        return self.indptr, self.indices, values, self.labels

    def cut(self, begin: int, end: int) -> Rows:
        """Rows begin .. end - 1."""
        entries = slice(self.indptr[begin], self.indptr[end])
        indptr = self.indptr[begin : end + 1] - self.indptr[begin]
        return Rows(indptr, self.indices[entries], self.values[entries], self.labels[begin:end])

    def scores(self, weight: Array, bias: float = 0.0) -> Array:
        """Row by row the sum of value * weight, plus the bias, in float64. No row may be empty."""
        products = self.values * weight[self.indices].astype(np.float64)
        return np.add.reduceat(products, self.indptr[:-1]) + bias


def log_loss(scores: Array, labels: Array) -> float:
    """The mean log-loss of raw scores."""
    return float(np.mean(np.logaddexp(0, scores) - labels * scores))


def criteo(n: int, seed: int = 0, bits: int = HASH_BITS) -> Rows:
    """n rows with one of 2^bits hashed features for each of the fields; about a quarter of the labels are 1."""
    rng = np.random.default_rng(seed)
    values_of = np.exp(np.linspace(np.log(4), np.log(10**6), FIELDS))  # how many values a field has
    drawn = np.exp(rng.random((n, FIELDS)) * np.log(values_of)).astype(np.uint64)
    keys = (drawn * np.uint64(FIELDS) + np.arange(FIELDS, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    indices = np.sort((keys >> np.uint64(64 - bits)).astype(np.int32), axis=1)
    indices = _distinct(indices, 2**bits)
    indptr = np.arange(n + 1, dtype=np.int64) * FIELDS
    rows = Rows(indptr, indices.reshape(-1), np.ones(indices.size, np.float32), np.empty(n, np.float32))
    truth = np.random.default_rng(1).standard_normal(2**bits) * 0.25
    return rows._replace(labels=_drawn_labels(rng, rows.scores(truth, -1.4)))


def rcv1(n: int = DOCUMENTS, seed: int = 0) -> Rows:
    """n documents of two classes as tf-idf weights of distinct terms, in rows of Euclidean length 1.

    Terms come by Zipf's law; one that leans to a class by p is kept with probability (1 +- p) / 2 in its documents, so
    that the true log-odds are linear in the terms' counts.
    """
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.5
    leaning = np.clip(np.random.default_rng(1).standard_normal(TERMS) * 0.2, -0.9, 0.9)
    sizes = np.maximum(rng.lognormal(np.log(TERMS_EACH) - 0.18, 0.6, n), 5).astype(np.int64) * 8 // 3
    documents = []
    for size, label in zip(sizes, labels, strict=True):
        terms = np.exp(rng.random(size) * np.log(TERMS)).astype(np.int32) - 1
        kept = rng.random(size) * 2 < 1 + np.where(label, 1, -1) * leaning[terms]
        documents.append(np.unique(terms[kept], return_counts=True))
    indices = np.concatenate([terms for terms, _ in documents])
    counts = np.concatenate([often for _, often in documents])
    indptr = np.concatenate([[0], np.cumsum([len(terms) for terms, _ in documents])])
    rarity = np.log(n / np.maximum(np.bincount(indices, minlength=TERMS), 1))
    values = (1 + np.log(counts)) * (rarity[indices] + 0.01)
    values /= np.repeat(np.sqrt(np.add.reduceat(values**2, indptr[:-1])), np.diff(indptr))
    return Rows(indptr, indices, values.astype(np.float32), labels.astype(np.float32))


def libsvm(rows: Rows) -> str:
    """The rows as libsvm text, counted from 0: ``1 3:0.5 17:1`` a line."""
    pairs = np.stack([rows.indices, rows.values], axis=1).astype(object)  # whole numbers keep all their digits
    return _lines(rows, " %d:%.7g", pairs, negative="0")


def vowpal_wabbit(rows: Rows) -> str:
    """The rows as Vowpal Wabbit's text, labels -1 and 1; values of 1 are left out, as its users do."""
    if (rows.values == 1).all():
        return _lines(rows, " %d", rows.indices[:, None], negative="-1 |")
    return _lines(rows, " %d:%.7g", np.stack([rows.indices, rows.values], axis=1).astype(object), negative="-1 |")


def _lines(rows: Rows, entry: str, entries: Array, negative: str) -> str:
    heads = (negative, negative.replace("-1", "1") if "1" in negative else "1")
    bounds, labels = rows.indptr.tolist(), rows.labels.tolist()
    width, flat = entries.shape[1], entries.reshape(-1).tolist()
    spans = zip(labels, bounds[:-1], bounds[1:], strict=True)
    return "".join(
        heads[label > 0] + (entry * (end - begin)) % tuple(flat[begin * width : end * width]) + "\n"
        for label, begin, end in spans
    )


def _distinct(indices: Array, end: int) -> Array:
    """Sorted rows without repeats: of two features with one hash, one moves to the next."""
    while (same := indices[:, 1:] == indices[:, :-1]).any():
        indices[:, 1:][same] = (indices[:, 1:][same] + 1) % end
        indices.sort(axis=1)
    return indices


def _drawn_labels(rng: np.random.Generator, scores: Array) -> Array:
    return (rng.random(len(scores)) < 1 / (1 + np.exp(-scores))).astype(np.float32)


def main() -> None:
    """Write a file of libsvm text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("criteo", "rcv1"))
    parser.add_argument("--rows", type=int, default=DOCUMENTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    with chosen.out.open("w") as file:
        if chosen.kind == "rcv1":
            file.write(libsvm(rcv1(chosen.rows, chosen.seed)))
        else:  # of any number, piece by piece
            for piece, begin in enumerate(range(0, chosen.rows, PIECE_ROWS)):
                file.write(libsvm(criteo(min(PIECE_ROWS, chosen.rows - begin), chosen.seed + piece)))


if __name__ == "__main__":
    main()
