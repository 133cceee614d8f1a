"""Cost of combining a generalist with its specialists.

1. The arithmetic: ln q of rows of 1000 classes, with one or three active specialists (of 50 classes) each.
   The yardstick is a plain softmax of the same rows (NumPy, in pieces that stay in the cache). Both take one
   thread.
2. The whole: `combine` over a store, reading, combining, writing and sealing, on all cores.

Alone, with fewer rows: python benchmarks/combine.py [rows]
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import compare, line, seconds

from logitstore.pipeline.combine.experts import Experts, active_specialists
from logitstore.pipeline.combine.solve import combine_rows
from logitstore.pipeline.combine.stage import combine
from logitstore.storage.api import Store, create_store

ROWS, CLASSES, SET, ROUNDS = 65_536, 1000, 50, 5
BATCH = 8192
"""Rows of a call: a block of a store of 1000 classes."""
PIECE = 64
"""Rows of the plain softmax at a time."""


def some_sets(partitions: int) -> list[NDArray[np.int64]]:
    """Return the columns of specialists whose sets hold every class `partitions` times.

    That many specialists are active in every row.
    """
    rng = np.random.default_rng(1)
    sets = []
    for _ in range(partitions):
        order = rng.permutation(CLASSES)
        sets += [np.array([*sorted(order[k : k + SET]), -1]) for k in range(0, CLASSES, SET)]
    return sets


def said_of(logits: NDArray[np.float32], own: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Return a specialist's logits: the generalist's, with a deviation of 1."""
    outside = np.setdiff1d(np.arange(CLASSES), own)
    dustbin = np.log(np.exp(logits[:, outside]).sum(axis=1, keepdims=True))
    agreed = np.concatenate([logits[:, own[:-1]], dustbin], axis=1)
    return agreed + np.random.default_rng(seed).standard_normal(agreed.shape, np.float32)


def some_logits(rows: int) -> NDArray[np.float32]:
    """Draw logits (rows, CLASSES), the largest of each row 0."""
    logits = 3 * np.random.default_rng(0).standard_normal((rows, CLASSES), np.float32)
    return logits - logits.max(axis=1, keepdims=True)


def softmax(logits: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Compute the plain softmax by NumPy's fastest calls."""
    for first in range(0, len(logits), PIECE):
        piece = logits[first : first + PIECE]
        values = piece - piece.max(axis=1, keepdims=True)
        np.exp(values, out=values)
        values /= values.sum(axis=1, keepdims=True)
        out[first : first + PIECE] = values


def arithmetic(logits: NDArray[np.float32], active: int) -> None:
    """Time `active_specialists` and `combine_rows` against the softmax."""
    sets = some_sets(active)
    experts = Experts.of(sets, CLASSES)
    batches: list[Any] = []
    for first in range(0, len(logits), BATCH):
        part = logits[first : first + BATCH]
        asked = active_specialists(part, experts)
        batches.append((part, [said_of(part[asked[:, m]], own, m) for m, own in enumerate(sets)]))
    out = np.empty_like(logits)

    def combined() -> None:
        for number, (part, said) in enumerate(batches):
            place = out[number * BATCH : number * BATCH + len(part)]
            combine_rows(part, experts, active_specialists(part, experts), said, out=place)

    found = compare(combined, lambda: softmax(logits, out), ROUNDS)
    rate = f"{len(logits) / found.ours:,.0f}"
    what = "one active specialist" if active == 1 else f"{active} active specialists"
    print(line(f"rows/s, {what}, one thread", rate, found), flush=True)
    print(line(f"speed, {what} / plain softmax", f"{1 / found.ratio:.2f}", found), flush=True)


def some_store(path: Path, logits: NDArray[np.float32], active: int) -> Store:
    """Make a store of a generalist and its specialists."""
    store = create_store(path, num_classes=CLASSES, digests=np.arange(len(logits), dtype=np.uint64))
    with store.capture("wide", provenance={"teacher": {"name": "wide"}}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits[rows.start : rows.stop])
    made_from = {"capture": "wide", "seal": store.teachers["wide"].digest}
    for number, own in enumerate(some_sets(active)):
        head = {"kind": "specialist", "generalist": made_from, "dustbin_corrected": True}
        name = f"expert-{number}"
        with store.capture(name, provenance={"head": head}, classes=own.tolist()) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, said_of(logits[rows.start : rows.stop], own, number))
    return store


def whole(logits: NDArray[np.float32], active: int) -> None:
    """Time `combine` over a store, from the first byte read to the seal."""
    with tempfile.TemporaryDirectory(prefix="logitstore-bench-") as folder:
        store = some_store(Path(folder) / "store.zarr", logits, active)
        names = [f"expert-{number}" for number in range(active * CLASSES // SET)]
        times = []
        for number in range(3):
            wish = {"generalist": "wide", "specialists": names, "name": f"combined-{number}"}
            times.append(seconds(lambda wish=wish: combine(store, **wish)))  # type: ignore[misc]
        what = "one active specialist" if active == 1 else f"{active} active specialists"
        rate = f"{len(logits) / sorted(times)[1]:,.0f}"
        spread = f"{min(times):.2f} … {max(times):.2f} s"
        print(f"  {f'rows/s, {what}, store to store, all cores':58s} {rate:>10s}   ({spread})", flush=True)


def main(rows: int = ROWS) -> None:
    """Print the table."""
    print(
        f"combine: {rows:,} rows of {CLASSES} classes, sets of {SET}; at least 100,000 rows/s "
        "with one active specialist"
    )
    logits = some_logits(rows)
    for active in (1, 3):
        arithmetic(logits, active)
    for active in (1, 3):
        whole(logits, active)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
