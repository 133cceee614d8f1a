"""The batches that a loader must deliver, their check and their clock.

A row of the data is a uint8 image 3 x 32 x 32, an int64 label and float16 logits of 1000 classes. The first
four bytes of the image are the row's number, and the largest logit is 0. So every batch identifies its rows,
and each value can be compared.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES, BATCH, INPUT_SHAPE = 1000, 256, (3, 32, 32)
FIELDS = ("inputs", "labels", "logits")
WARM_UP = 16
"""Batches before the clock starts: starting workers and filling buffers cost a loader nothing."""
NEIGHBOURS = 0.05
"""Largest share of rows that may follow the row before them in the data: 0.004 % in a full shuffle of 131,072."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs, labels and logits."""
Source = dict[str, NDArray[Any]]
"""The data by field, mapped from their files."""


class WrongBatches(Exception):
    """A loader that does not deliver the rows that were given to it."""


def make_source(folder: Path, rows: int) -> Source:
    """Draw the data, and keep each field in a .npy file."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (rows, *INPUT_SHAPE), dtype=np.uint8)
    inputs[:, 0, 0, :4] = np.arange(rows, dtype="<u4").view(np.uint8).reshape(rows, 4)
    logits = random.standard_normal((rows, CLASSES), dtype=np.float32) * 2.5
    logits -= logits.max(axis=1, keepdims=True)
    fields = (inputs, random.integers(0, CLASSES, rows), logits.astype(np.float16))
    folder.mkdir(parents=True)
    for name, array in zip(FIELDS, fields, strict=True):
        np.save(folder / f"{name}.npy", array)
    return open_source(folder)


def open_source(folder: Path) -> Source:
    """Map the data read-only."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FIELDS}


def rows_of(inputs: Tensor) -> NDArray[np.int64]:
    """Return the row numbers of these images."""
    first = inputs[:, 0, 0, :4].to(torch.int64).numpy()
    return np.asarray(first @ (256 ** np.arange(4)), np.int64)


def check(batches: Iterable[Batch], source: Source, workers: int) -> dict[str, int]:
    """Compare one epoch with the data, value by value, and count the rows: delivered, repeated, missing.

    A loader may leave out or repeat a batch a worker. Some give every worker equal shares, or full batches
    alone. Values are compared, not their types: some widen them. Raises WrongBatches.
    """
    num_rows = len(source["labels"])
    seen = np.zeros(num_rows, np.int64)
    followed, previous = 0, -2
    for number, (inputs, labels, logits) in enumerate(batches):
        shapes = tuple(inputs.shape[1:]), tuple(labels.shape[1:]), tuple(logits.shape[1:])
        if shapes != (INPUT_SHAPE, (), (CLASSES,)) or not len(inputs) == len(labels) == len(logits) <= BATCH:
            raise WrongBatches(f"batch {number}: {inputs.shape}, {labels.shape}, {logits.shape}")
        rows = rows_of(inputs)
        if not ((rows >= 0) & (rows < num_rows)).all():
            raise WrongBatches(f"batch {number}: there is no row {rows.max()}")
        for name, given in zip(FIELDS, (inputs, labels, logits), strict=True):
            if not bool((given == torch.from_numpy(source[name][rows])).all()):
                raise WrongBatches(f"batch {number}: {name} are not those of the rows")
        np.add.at(seen, rows, 1)
        followed += int((np.diff(rows, prepend=previous) == 1).sum())
        previous = int(rows[-1])
    found = {
        "rows": int(seen.sum()),
        "repeated": int((seen - 1).clip(0).sum()),
        "missing": int((seen == 0).sum()),
    }
    allowed = BATCH * max(1, workers)
    if max(found["repeated"], found["missing"]) > allowed or seen.max() > 2:
        raise WrongBatches(f"not every row once, but for {allowed} of them: {found}")
    if followed > NEIGHBOURS * num_rows:
        raise WrongBatches(f"not shuffled: {followed} of {num_rows} rows follow the row before them")
    return found


def check_the_check(source: Source) -> None:
    """Assert that `check` finds a wrong logit, a repeated batch, a missing batch, and an unshuffled order."""
    order = np.random.default_rng(1).permutation(len(source["labels"]))

    def epoch(order: NDArray[np.int64]) -> list[Batch]:
        starts = range(0, len(order), BATCH)
        return [_take(source, order[start : start + BATCH]) for start in starts]

    def wrong_logit(order: NDArray[np.int64]) -> list[Batch]:
        batches = epoch(order)
        batches[1][2][3, 5] -= 1
        return batches

    wrong = {
        "a wrong logit": wrong_logit(order),
        "batches that come twice": [*epoch(order), *epoch(order[: 2 * BATCH])],
        "batches that do not come": epoch(order[2 * BATCH :]),
        "the order of the data": epoch(np.sort(order)),
    }
    check(epoch(order), source, 0)
    for what, batches in wrong.items():
        try:
            check(batches, source, 0)
        except WrongBatches:
            continue
        raise WrongBatches(f"the check does not see {what}")


def _take(source: Source, rows: NDArray[np.int64]) -> Batch:
    inputs, labels, logits = (torch.from_numpy(source[name][rows]) for name in FIELDS)
    return inputs, labels, logits


def rows_a_second(batches: Iterator[Batch], least_rows: int, least_seconds: float) -> tuple[float, int]:
    """Measure rows a second of full batches after `WARM_UP` of them, and count the timed rows.

    Reads on until both least_rows and least_seconds have passed, or the epoch has ended. Returns 0 if it was
    too short.
    """
    for _ in range(WARM_UP):
        next(batches, None)
    rows, start, seconds = 0, time.perf_counter(), 0.0
    for inputs, labels, logits in batches:
        if len(inputs) != BATCH:
            continue
        rows += len(labels) if len(labels) == len(logits) else 0
        seconds = time.perf_counter() - start
        if rows >= least_rows and seconds >= least_seconds:
            break
    return (rows / seconds if rows else 0.0), rows
