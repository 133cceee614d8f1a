"""The refinement of the rows of a capture in the transform encoding: how its bytes are spent, from one byte a row."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from ..encodings.refine import ESCAPED
from ..format.constants import TRANSFORM
from .reader import CaptureReader


@dataclass(frozen=True)
class Refinement:
    """The components of a capture, and the refinement of its rows."""

    components: int
    """Axes of the basis."""
    rows: int
    """Rows of all views."""
    escaped: int
    """Rows among them that the basis does not reach; their codes are those of an error budget."""
    refine: dict[int, int]
    """Number of the other rows by `refine`: steps of a row are divided by √2 as often as this."""


def refinement(capture: CaptureReader) -> Refinement | None:
    """Return the refinement of a capture; None for another encoding. Raises ShardMissing, ShardCorrupt, ManifestInvalid."""
    if capture.part.form != TRANSFORM:
        return None
    counts = np.zeros(ESCAPED + 1, np.int64)
    grid = capture.reader.grid
    for view, block in product(range(capture.num_views), range(grid.num_blocks)):
        rows = grid.rows(block)
        refine = np.empty(len(rows), np.uint8)
        capture.read_stored_into("refine", rows, view, refine)
        counts += np.bincount(refine, minlength=ESCAPED + 1)
    (components,) = capture.part.layouts["codes"].row_shape
    fine = {value: int(counts[value]) for value in np.flatnonzero(counts[:ESCAPED]).tolist()}
    return Refinement(components, int(counts.sum()), int(counts[ESCAPED]), fine)
