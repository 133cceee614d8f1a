"""What is a run of rows before a teacher is shown it?

Inputs and labels as the transfer set has them, their digests, and any view of them on demand. What a user's own data set
raises is turned into one line that names the rows.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt64
from numpy.typing import NDArray

from ..storage.digest import digest_rows
from ..storage.errors import BadDataError, BadLogitsError, FactoryError, LogitStoreError
from ..storage.inputs import Augment
from .factories import describe_exception
from .transfer import TransferRows

ViewOf = Callable[[int], tuple[NDArray[Any], NDArray[np.uint64]]]
"""Gives what is shown of a view, and its digests."""


@dataclass(frozen=True)
class Prepared:
    """Some rows of a block as the transfer set has them."""

    rows: range
    """Which rows of the store."""
    inputs: Shaped[np.ndarray, "rows ..."]
    """(rows, …)."""
    labels: Int64[np.ndarray, " rows"]
    """Class of each, -1 where unknown."""
    digests: UInt64[np.ndarray, " rows"]
    """Of the inputs."""


def prepare(rows: TransferRows, which: range, make_view: Augment | None) -> tuple[Prepared, ViewOf]:
    """Some rows, and what makes a view of them. Raises what the transfer set raises, BadDataError by name."""
    with _naming_rows(which):
        inputs, labels = rows.rows(which)
    digests = digest_rows(inputs)
    numbers = np.arange(which.start, which.stop, dtype=np.int64)

    def view_of(view: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        shown = inputs if make_view is None else make_view(inputs, view, numbers)
        # A view that is the row as it is comes back as the very array.
        return shown, digests if shown is inputs else digest_rows(shown)

    return Prepared(which, inputs, labels, digests), view_of


@contextmanager
def naming_indices(source: Int64[np.ndarray, " rows"]) -> Iterator[None]:
    """Add to an error of one row of the store which example of the transfer set that is: its order is another.

    source: by row of the store, the index in the transfer set.
    """
    try:
        yield
    except (BadLogitsError, FactoryError) as error:
        found = re.search(r"\brow (\d+)", error.where)
        if found is None or "transfer set" in error.where:
            raise
        where = f"{error.where[: found.end()]} (index {source[int(found[1])]} of the transfer set){error.where[found.end() :]}"
        again = type(error)(where, expected=error.expected, found=error.found, remedy=error.remedy)
        raise again from error.__cause__


@contextmanager
def _naming_rows(rows: range) -> Iterator[None]:
    try:
        yield
    except (LogitStoreError, OSError, MemoryError):
        raise
    except Exception as error:
        raise BadDataError(
            f"transfer_set, rows {rows.start} to {rows.stop - 1} of the store",
            expected="their inputs and labels",
            found=describe_exception(error),
            remedy="mend the data set (-vv shows where), and run the same command again",
        ) from error
