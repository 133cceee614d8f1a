"""Bytes of a row in an encoding before its codec, for plans; of one that lacks its basis, the most that they can be."""

import math
from collections.abc import Mapping

import numpy as np

from .basis import Basis
from .encoding import Encoding
from .transform import Transform


def row_widths(encoding: Encoding, num_classes: int) -> dict[str, int]:
    """Return the bytes a row of each array of an encoding, before the codec. Raises ConfigError for too large a k.

    A transform without its basis has as many components as calibration rows or classes, whichever are fewer.

    >>> row_widths(Transform(1e-2, rows=100), 1000)["codes"]
    200
    """
    return {
        spec.name: math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize
        for spec in sized(encoding, num_classes).arrays(num_classes)
    }


def expected_bytes(widths: Mapping[str, int]) -> int:
    """Return the bytes a row that a disk must have: those of `row_widths`, but for rows that are hardly ever written."""
    return sum(width for name, width in widths.items() if name != "escape")


def sized(encoding: Encoding, num_classes: int) -> Encoding:
    """Return an encoding whose arrays have a size: a transform without its basis gets the largest, of zeros."""
    if not isinstance(encoding, Transform) or encoding.basis is not None:
        return encoding
    zero, components = np.zeros((), np.float32), min(encoding.rows, num_classes)
    return encoding.with_basis(
        Basis(
            np.broadcast_to(zero, (components, num_classes)),  # one number in memory
            np.broadcast_to(zero, num_classes),
            np.broadcast_to(zero, components),
            np.broadcast_to(zero, num_classes),
        )
    )
