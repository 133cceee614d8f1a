"""The refinement of the rows of a capture in the transform encoding: how its bytes are spent, from one byte a row.

Components are looked for in an inner chunk of some blocks alone, as codes are most of the bytes of such a capture.
"""

import contextlib
import math
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from ..encodings.refine import ESCAPED
from ..errors import ShardCorrupt, ShardMissing
from ..format.constants import TRANSFORM
from ..format.layouts import BASIS
from .reader import CaptureReader

_MOST_CHUNKS: Final = 8
"""Chunks in which components are looked for."""


@dataclass(frozen=True)
class Refinement:
    """The components of a capture, and the refinement of its rows."""

    components: int
    """Axes of the basis."""
    alive: float | None
    """Components with a code other than 0 in an inner chunk of rows, the mean of up to 8; None if they are damaged."""
    basis_bytes: int
    """Bytes of the basis and of the small arrays beside it."""
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
    return Refinement(
        components, _alive(capture), basis_bytes(capture), int(counts.sum()), int(counts[ESCAPED]), fine
    )


def _alive(capture: CaptureReader) -> float | None:
    """Count the components with a code in some chunks, spread over the capture; their mean."""
    grid, found = capture.reader.grid, []
    blocks = list(product(range(capture.num_views), range(grid.num_blocks)))
    number, chunk_rows = min(_MOST_CHUNKS, len(blocks)), capture.part.layouts["codes"].chunk_rows
    with contextlib.suppress(ShardCorrupt, ShardMissing):  # `verify` reports them
        for view, block in (blocks[(2 * i + 1) * len(blocks) // (2 * number)] for i in range(number)):
            codes = capture.reader.read("codes", grid.rows(block)[:chunk_rows], view)
            found.append(int(codes.any(axis=0).sum()))
        return sum(found) / len(found)
    return None


def basis_bytes(capture: CaptureReader) -> int:
    """Return the bytes of the basis of a capture and of the small arrays beside it; 0 for an encoding without one."""
    layouts = (capture.part.layouts.get(name) for name in BASIS)
    return sum(math.prod(one.shape) * one.numpy_dtype.itemsize for one in layouts if one is not None)


def quantile(refine: dict[int, int], share: float) -> int | None:
    """Return the refinement that a share of the rows do not exceed; None without rows.

    >>> [quantile({4: 10, 8: 89, 30: 1}, share) for share in (0.0, 0.5, 1.0)], quantile({}, 0.5)
    ([4, 8, 30], None)
    """
    rows, below = sum(refine.values()), 0
    for value in sorted(refine):
        below += refine[value]
        if below >= share * rows:
            return value
    return None
