"""Calibration rows of the transform encoding: a seeded draw, from which the basis of a capture is made.

The draw is a pure function of the encoding's seed and of the number of rows, so that a capture that is begun anew has the
same basis. The basis decides about bytes alone: the guarantee of each row never depends on it.
"""

from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from ..storage.api import Capture
from ..storage.encodings.transform import Transform
from ..storage.random import philox_permutation

_STREAM: Final = (1 << 63) + 17
"""Stream of the draw: no epoch, and not that of the order of a store."""


def drawn(num_rows: int, encoding: Transform) -> Int64[np.ndarray, " rows"]:
    """Draw the calibration rows of an encoding, ascending; all rows if there are fewer.

    >>> drawn(10, Transform(1e-2, rows=3)).tolist(), drawn(2, Transform(1e-2, rows=3)).tolist()
    ([6, 8, 9], [0, 1])
    """
    order = philox_permutation(num_rows, encoding.seed, stream=_STREAM, counter=0)
    return np.sort(order[: encoding.rows])


def drawn_of_views(
    num_views: int, num_rows: int, encoding: Transform
) -> list[tuple[int, Int64[np.ndarray, " rows"]]]:
    """Draw calibration rows from all views alike; the rows of each view that has some, ascending.

    >>> [(view, len(rows)) for view, rows in drawn_of_views(2, 3, Transform(1e-2, rows=5))]
    [(0, 2), (1, 3)]
    """
    views, rows = np.divmod(drawn(num_views * num_rows, encoding), num_rows)
    return [(int(view), rows[views == view]) for view in np.unique(views)]


def capture_rows(source: Capture, encoding: Transform) -> Float32[np.ndarray, "rows classes"]:
    """Read calibration rows of a capture, as `read` decodes them."""
    views, rows, _ = source.shape
    return np.concatenate(
        [source.read(of_view, view) for view, of_view in drawn_of_views(views, rows, encoding)]
    )
