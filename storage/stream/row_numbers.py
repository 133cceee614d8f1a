"""Numbers of rows, as the augmentation of their views was given them.

A view is replayed from seed, view and row. In a store that `logitstore concat` made, the rows of each source keep the numbers
that they had there:

    row of the store       0 1 2 3 4 5 6
    of the sources         0 1 2 3│0 1 2        identity of samples: "numbered": [4, 3]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..format.documents import integer, invalid, shorten
from .making import Augment


class NumberedAnew:
    """An augmentation that is given the numbers that rows had in the sources of their store."""

    def __init__(self, augment: Augment, starts: Int64[np.ndarray, " sources"]) -> None:
        """Wrap an augmentation. starts: the first row of each source."""
        self._augment, self.starts = augment, starts

    def __call__(self, inputs: NDArray[Any], view: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        source = np.searchsorted(self.starts, rows, "right") - 1
        return self._augment(inputs, view, rows - self.starts[source])


def numbered_rows(identity: Mapping[str, Any], num_rows: int, where: str) -> list[int]:
    """Return the rows after which the numbers begin anew; all rows for a store that is no concatenation.

    identity: of samples. Raises ManifestInvalid for numbers that do not add up to the rows of the store.

    >>> numbered_rows({"numbered": [4, 3]}, 7, "spec.json"), numbered_rows({}, 7, "spec.json")
    ([4, 3], [7])
    """
    given = identity.get("numbered", [num_rows])
    if not isinstance(given, list) or sum(integer(one, 1, where, "numbered") for one in given) != num_rows:
        raise invalid(f"{where}: numbered", f"numbers of rows, {num_rows} together", shorten(given))
    return given


def as_numbered(
    augment: Augment | None, identity: Mapping[str, Any], num_rows: int, where: str
) -> Augment | None:
    """Return an augmentation that is given the numbers that rows had in the sources of their store.

    identity: of samples. Raises ManifestInvalid.
    """
    rows = numbered_rows(identity, num_rows, where)
    if augment is None or len(rows) == 1:
        return augment
    return NumberedAnew(augment, np.cumsum([0, *rows[:-1]], dtype=np.int64))


def starts_of(augment: Augment | None) -> Int64[np.ndarray, " sources"] | None:
    """Return the first row of each source of which an augmentation is given numbers; None for those of the store itself."""
    return augment.starts if isinstance(augment, NumberedAnew) else None


def numbered_from(augment: Augment | None, starts: Int64[np.ndarray, " sources"] | None) -> Augment | None:
    """Return an augmentation as one with these `starts_of` is numbered, for another process."""
    return augment if augment is None or starts is None else NumberedAnew(augment, starts)
