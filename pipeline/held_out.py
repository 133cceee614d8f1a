"""The rows of a store that a training does not learn from, and is validated on. Imports no torch."""

import logging
from typing import Final

import numpy as np
from jaxtyping import Int64

from ..storage.errors import ConfigError, some_of
from ..storage.random import philox_permutation
from .experiment.training import Train, ValidatedTrain

log = logging.getLogger(__name__)
_SHOWN: Final = 8
"""Classes that a warning names."""

_STREAM: Final = (1 << 63) + 1
"""Random numbers that choose the rows: no epoch is numbered so high, so no order of batches uses them."""


def held_out_rows(num_rows: int, share: float) -> Int64[np.ndarray, " held"]:
    """Return a share of the rows of a store, ascending: one at least, and one less than all at most.

    Trainings of one share hold out the same rows, whatever their seed. The rows of a smaller share are among those of a
    larger one.

    >>> held_out_rows(10, 0.2).tolist(), held_out_rows(10, 0.3).tolist()
    ([2, 7], [0, 2, 7])
    """
    order = philox_permutation(num_rows, 0, stream=_STREAM, counter=0)
    return np.sort(order[: _held_out_count(num_rows, share)])


def _held_out_count(num_rows: int, share: float) -> int:
    return min(max(1, round(share * num_rows)), num_rows - 1)


def others(
    order: Int64[np.ndarray, " rows"], held: Int64[np.ndarray, " held"]
) -> Int64[np.ndarray, " others"]:
    """Return the rows that are not held out, in the order that they have."""
    return order[~np.isin(order, held)]


def check_shares(train: Train, num_rows: int, where: str, *, rows: float = 1.0) -> None:
    """Refuse shares that leave less than a batch to learn from, of a store that has a batch.

    rows: the share that it learns from, of the rows that are not held out. where: the training in messages. Raises
    ConfigError.
    """
    held = train.held_out if isinstance(train, ValidatedTrain) else None
    left = num_rows if held is None else num_rows - _held_out_count(num_rows, held)
    learned = max(1, round(rows * left))
    least = min(train.batch_size, num_rows)
    if learned >= least:
        return
    key, value = ("train.validation", held) if left < least else ("rows", rows)
    raise ConfigError(
        f"{where}: {key}",
        expected=f"a share that leaves a batch of {least:,} rows to learn from",
        found=f"{value:g}, which leaves {learned:,} of {num_rows:,} rows",
        remedy=f"{'lower validation' if left < least else 'raise rows'}, or set train.batch_size = {learned}",
    )


def warn_of_lost_classes(
    labels: Int64[np.ndarray, " all"],
    learned: Int64[np.ndarray, " rows"],
    held: Int64[np.ndarray, " held"] | None,
    where: str,
) -> None:
    """Warn of classes that have rows, but none to learn from, or none to validate on.

    labels: of all rows, -1 where unknown. learned, held: numbers of rows; None for a training that holds none out.
    """
    there = np.unique(labels[labels >= 0])
    for rows, doing, remedy in (
        (learned, "learn from", "take a larger share of the rows, or lower validation"),
        (held, "validate on", "raise validation, or name a set of examples to validate on"),
    ):
        if rows is None:
            continue
        lost = np.setdiff1d(there, labels[rows])
        if len(lost):
            log.warning(
                "%s: no row of %d of %d classes to %s: %s; %s",
                where,
                len(lost),
                len(there),
                doing,
                some_of(lost.astype(str).tolist(), _SHOWN),
                remedy,
            )
