"""Variety of a batch, when the transfer set lies sorted by class.

The set has 1000 classes of 131 examples each, one class after another. Batches have 256 rows. The first
EPOCHS epochs of a stream are measured, whole batches only, beside as many full shuffles of all rows. In each
batch:

- classes: the number of different classes;
- neighbours: the share of its pairs of rows from the same stretch of RUN consecutive examples *of the
  transfer set*. RUN is the number of rows in a run of chunks;
- same chunk: the share of its pairs in the same run of chunks *of the store*, and its largest share from one
  run.

In the default order a capture has permuted the examples. Rows of one chunk are then no more alike than any
others, and only "neighbours" would harm a student. That a window holds few chunks is by design. "Within 5 %"
compares classes and neighbours as ratios to those of a full shuffle, and the same chunk as a difference in
percentage points.

With order = "as_is" the store lies as the set does. The entropy of the labels of a batch, in bits, is then
compared with the bound of scDataset (D'Ascenzo & Cultrera di Montesano 2025, arXiv 2506.01883). Suppose K
classes with entropy H(p). A batch of m rows drawn one by one has H(p) - (K - 1) / (2 m ln 2), which nothing
exceeds. A batch of B whole blocks has at least H(p) - (K - 1) / (2 B ln 2). Here a batch is drawn from the w
runs of a window, and loses at most both:

    H(p) - (K - 1) / (2 w ln 2) - (K - 1) / (2 m ln 2)  <=  E[H(batch)]  <=  H(p) - (K - 1) / (2 m ln 2).

Either loss is the first term of a series (Miller 1955). It is accurate only if w and m are larger than K: for
ten classes, not for a thousand. So the expectations themselves are computed, too. One is of m draws from all
rows. The other is of m draws from w blocks that each hold one class, drawn from p. Blocks of several classes,
and drawing without replacement, can only add to the latter. The w in both is the number of runs from which a
batch takes its rows, the median over batches.

Alone, with fewer rows a class: python benchmarks/variety.py [rows_per_class]
"""

import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from encoding import bar
from numpy.typing import NDArray
from scipy.stats import binom

import logitstore
from logitstore.pipeline.experiment.document import parse_experiment
from logitstore.pipeline.transfer import TransferRows

CLASSES, ROWS_PER_CLASS, BATCH, EPOCHS = 1000, 131, 256, 4
WITHIN = 0.05
COARSE = 10
"""Classes of the second labelling: each joins a hundred neighbouring classes."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Variety:
    """Means over batches."""

    classes: float
    """Different classes of a batch."""
    neighbours: float
    """Share of its pairs that are neighbours in the transfer set."""
    same_chunk: float
    """Share of its pairs that lie in one run of chunks."""
    largest: float
    """Largest share of it that comes from one run of chunks."""


def counts_of(values: Rows) -> Rows:
    """Count each different value."""
    return np.unique(values, return_counts=True)[1]


def pairs_alike(values: Rows) -> float:
    """Compute the share of the pairs of values that are equal."""
    counts = counts_of(values)
    return float((counts * (counts - 1)).sum() / (len(values) * (len(values) - 1)))


def variety_of(batches: Iterable[Rows], labels: Rows, source: Rows, run: int) -> Variety:
    """Measure the variety of batches.

    labels, source: of each row of the store. run: rows of a run of chunks.
    """
    found = [
        (
            len(counts_of(labels[rows])),
            pairs_alike(source[rows] // run),
            pairs_alike(rows // run),
            counts_of(rows // run).max() / len(rows),
        )
        for rows in batches
    ]
    return Variety(*(float(mean) for mean in np.mean(found, axis=0)))


def entropy(values: Rows) -> float:
    """Compute the entropy of the distribution of the values, bits."""
    shares = counts_of(values) / len(values)
    return float(-(shares * np.log2(shares)).sum())


# The two ways to make batches


def make_store(
    folder: Path, order: Literal["shuffled", "as_is"], rows_per_class: int
) -> tuple[logitstore.Store, Rows]:
    """Make a store of the sorted set in an order of stage one, without inputs; return it and its source."""
    labels = np.repeat(np.arange(CLASSES), rows_per_class)
    np.savez(folder / "sorted.npz", inputs=np.zeros((len(labels), 1), np.uint8), labels=labels)
    rows = TransferRows(
        parse_experiment(
            {
                "transfer_set": {
                    "factory": "logitstore.pipeline.datasets:arrays",
                    "args": {"file": "sorted.npz"},
                    "num_classes": CLASSES,
                    "order": order,
                },
                "teacher": [{"name": "unused", "factory": "none:none", "weights": "none"}],
            },
            where="benchmark",
            base=folder,
        )
    )
    store = logitstore.create_store(
        folder / f"{order}.zarr",
        num_classes=CLASSES,
        labels=labels[rows.source],
        digests=np.zeros(len(labels), np.uint64),
    )
    return store, rows.source


def streamed(store: logitstore.Store, rank: int = 0, world_size: int = 1) -> Iterator[Rows]:
    """Yield the rows of whole batches, epoch after epoch."""
    stream = store.stream(
        BATCH, teachers=[], inputs=False, seed=0, rank=rank, world_size=world_size, drop_last=True
    )
    for _ in range(EPOCHS):
        for batch in stream:
            yield batch.rows


def shuffled(num_rows: int) -> Iterator[Rows]:
    """Yield the same of full shuffles."""
    random = np.random.default_rng(0)
    for _ in range(EPOCHS):
        yield from random.permutation(num_rows)[: num_rows // BATCH * BATCH].reshape(-1, BATCH)


# The bound


def first_order(shares: NDArray[np.float64], draws: float) -> float:
    """Compute the loss of entropy of `draws` draws from a distribution, to first order, bits."""
    return (len(shares) - 1) / (2 * draws * math.log(2))


def expected_entropy(count_of_class: NDArray[np.float64]) -> float:
    """Compute the expected entropy, bits, from the distribution of the count of each class.

    count_of_class: (classes, m + 1), each row a distribution of 0 … m.
    """
    m = count_of_class.shape[1] - 1
    shares = np.arange(1, m + 1) / m
    return float(-(count_of_class[:, 1:] * (shares * np.log2(shares))).sum())


def of_draws(shares: NDArray[np.float64], m: int) -> float:
    """Compute the expected entropy of m draws from a distribution, bits."""
    return expected_entropy(binom.pmf(np.arange(m + 1), m, shares[:, None]))


def of_blocks(shares: NDArray[np.float64], m: int, w: int) -> float:
    """Compute the same of m draws from w blocks, each of one class that is drawn from the distribution."""
    blocks = binom.pmf(np.arange(w + 1), w, shares[:, None])
    draws = binom.pmf(np.arange(m + 1), m, (np.arange(w + 1) / w)[:, None])
    return expected_entropy(blocks @ draws)


# The table


def line(what: str, found: Variety) -> str:
    """Format one line of the table."""
    return f"  {what:40s} {found.classes:9.1f} {found.neighbours:11.3%} {found.same_chunk:11.3%} {found.largest:14.1%}"


def default_order(folder: Path, rows_per_class: int) -> None:
    """Print the default order beside a full shuffle."""
    store, source = make_store(folder, "shuffled", rows_per_class)
    labels, run = store.samples.labels, store.grid.run_rows
    print(
        f"  {f'runs of {run} rows':40s} {'classes':>9s} {'neighbours':>11s} {'same chunk':>11s} {'largest share':>14s}"
    )
    full = variety_of(shuffled(store.num_rows), labels, source, run)
    ours = variety_of(streamed(store), labels, source, run)
    print(line("full shuffle", full))
    print(line("stream, default order", ours))
    ranks = [variety_of(streamed(store, rank, 8), labels, source, run) for rank in range(8)]
    print(line("the same, rank with the fewest, of 8", min(ranks, key=lambda found: found.classes)))
    ratio = ours.classes / full.classes
    bar("classes of a batch / of a full shuffle", f"{ratio:.3f}", f">= {1 - WITHIN:g}", ratio >= 1 - WITHIN)
    ratio = ours.neighbours / full.neighbours
    bar("neighbours / of a full shuffle", f"{ratio:.3f}", f"<= {1 + WITHIN:g}", ratio <= 1 + WITHIN)
    beyond = ours.same_chunk - full.same_chunk
    bar("pairs of one chunk, beyond a full shuffle", f"{100 * beyond:.2f} points", "<= 5", beyond <= WITHIN)


def as_is(folder: Path, rows_per_class: int) -> None:
    """Print the order of the transfer set, and the bound."""
    store, source = make_store(folder, "as_is", rows_per_class)
    labels, run = store.samples.labels, store.grid.run_rows
    batches = list(streamed(store))
    print(line('stream, order = "as_is"', variety_of(batches, labels, source, run)))
    ranks = [variety_of(streamed(store, rank, 8), labels, source, run) for rank in range(8)]
    print(line("the same, rank with the fewest, of 8", min(ranks, key=lambda found: found.classes)))
    blocks = runs_of_a_batch(batches, run)
    print(
        f"  entropy of the labels of a batch, bits; its rows come from {blocks} of {store.grid.num_runs} runs"
    )
    print(f"  {'':14s} {'H(p)':>7s} {'below':>8s} {'as is':>8s} {'above':>8s}   {'first order':>17s}")
    for classes in (COARSE, CLASSES):
        grouped = labels * classes // CLASSES
        shares = np.bincount(grouped) / len(grouped)
        whole = float(-(shares * np.log2(shares)).sum())
        found = float(np.mean([entropy(grouped[rows]) for rows in batches]))
        low, high = of_blocks(shares, BATCH, blocks), of_draws(shares, BATCH)
        above = whole - first_order(shares, BATCH)
        below = above - first_order(shares, blocks)
        print(
            f"  {f'{classes} classes':14s} {whole:7.3f} {low:8.3f} {found:8.3f} {high:8.3f}   {below:8.3f} {above:8.3f}"
        )
        within = low <= found <= high
        bar(f"entropy of {classes} classes, as_is, bits", f"{found:.3f}", f"{low:.3f} … {high:.3f}", within)
        if classes < blocks:
            within = below <= found <= above
            what = "the same, against the bound of scDataset to first order"
            bar(what, f"{found:.3f}", f"{below:.3f} … {above:.3f}", within)


def runs_of_a_batch(batches: list[Rows], run: int) -> int:
    """Return the number of runs from which a batch takes its rows, the median."""
    return int(median(len(counts_of(rows // run)) for rows in batches))


def main(rows_per_class: int = ROWS_PER_CLASS) -> None:
    """Print the table."""
    print(f"variety: {CLASSES} classes x {rows_per_class} rows sorted by class, batches of {BATCH}")
    with tempfile.TemporaryDirectory() as folder:
        default_order(Path(folder), rows_per_class)
        as_is(Path(folder), rows_per_class)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
