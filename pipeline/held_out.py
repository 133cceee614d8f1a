"""The rows of a store that a training does not learn from, and is validated on. Imports no torch."""

from typing import Final

import numpy as np
from jaxtyping import Int64

from ..storage.random import philox_permutation

_STREAM: Final = (1 << 63) + 1
"""Random numbers that choose the rows: no epoch is numbered so high, so no order of batches uses them."""


def held_out_rows(num_rows: int, share: float) -> Int64[np.ndarray, " held"]:
    """Return a share of the rows of a store, ascending: one at least, and one less than all at most.

    Trainings of one share hold out the same rows, whatever their seed. The rows of a smaller share are among those of a
    larger one.

    >>> held_out_rows(10, 0.2).tolist(), held_out_rows(10, 0.3).tolist()
    ([2, 7], [0, 2, 7])
    """
    count = min(max(1, round(share * num_rows)), num_rows - 1)
    return np.sort(philox_permutation(num_rows, 0, stream=_STREAM, counter=0)[:count])


def others(
    order: Int64[np.ndarray, " rows"], held: Int64[np.ndarray, " held"]
) -> Int64[np.ndarray, " others"]:
    """Return the rows that are not held out, in the order that they have."""
    return order[~np.isin(order, held)]
