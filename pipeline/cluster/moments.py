"""Mean and second moment of rows of probabilities, added up slice by slice.

1. `Moments.add` joins the rows of one slice with those of the slices before.
2. `merge` joins the moments of disjoint sets of rows.

A slice is centred by its own mean in float64, each column divided by that mean, and multiplied in float32; slices are added
in float64. The division keeps classes whose probability never exceeds 1e-20 as accurate as all others: their products
would not be float32 numbers. The centring keeps a class that is nearly constant at 1.
Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

SLICE_ROWS = 2048
"""Maximum number of rows whose products are summed in float32."""
SLICE_VALUES = 1 << 23
"""Maximum number of values of a slice (64 MiB in float64), unless `SLICE_ROWS_MIN` rows need more."""
SLICE_ROWS_MIN = 256
PIECE_VALUES = 1 << 17
"""Values that are worked on at a time, so that they stay in the cache of a core: 1 MiB in float64."""
_SMALLEST = 1e-300
"""Minimum scale of a column; its inverse is still a float64."""


_KEPT = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: type) -> NDArray[np.floating]:
    """Return an array of any content that this thread uses again: new memory costs a fifth of the time of a slice."""
    kept: dict[str, NDArray[np.floating]] = _KEPT.__dict__.setdefault("arrays", {})
    if name not in kept or kept[name].shape != shape:
        kept[name] = np.empty(shape, dtype)
    return kept[name]


@runtime_checkable
class Combinations(Protocol):
    """Linear combinations of the classes: a matrix (classes, combinations) that is never whole in memory."""

    @property
    def width(self) -> int:
        """Number of combinations."""

    def stripes(self) -> Iterator[tuple[int, Float32[np.ndarray, "some combinations"]]]:
        """Yield some rows at a time, in order, each with the number of the first."""


@dataclass(eq=False)
class Moments:
    """Mean and centred second moment of some rows, between lines and classes.

    The lines are the classes themselves, or `Combinations` of them.
    """

    count: int
    """Number of rows."""
    mean: Float64[np.ndarray, "classes"]
    """Mean of each class."""
    line_mean: Float64[np.ndarray, "lines"]
    """Mean of each line."""
    scatter: Float64[np.ndarray, "lines classes"]
    """Sum over rows of (line - its mean)(class - its mean)."""

    @staticmethod
    def zeros(lines: int, classes: int) -> "Moments":
        """Return the moments of no rows."""
        return Moments(0, np.zeros(classes), np.zeros(lines), np.zeros((lines, classes)))

    def copy(self) -> "Moments":
        """Return moments that share no memory with these."""
        return Moments(self.count, self.mean.copy(), self.line_mean.copy(), self.scatter.copy())

    def add(
        self,
        probabilities: Float64[np.ndarray, "rows classes"],
        combinations: Combinations | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Add the rows of a slice, at least one. combinations: the same at every call; None where lines are classes.

        overwrite: reuse the memory of `probabilities`, contiguous and lost afterwards, for the float32 columns.
        """
        mean = probabilities.mean(axis=0)
        # A probability is at most `rows` times its mean: squares of the quotients are float32 numbers.
        scale = np.maximum(mean, _SMALLEST)
        inverse = 1 / scale
        if overwrite:  # each piece is written below those that are still to be read
            flat = probabilities.reshape(-1).view(np.float32)
            columns = flat[: probabilities.size].reshape(probabilities.shape)
        else:
            columns = np.empty(probabilities.shape, np.float32)
        for piece in pieces(len(columns), len(mean)):
            np.multiply(probabilities[piece] - mean, inverse, out=columns[piece], casting="unsafe")
        lines, line_mean, line_scale = columns, mean, scale
        if combinations is not None:
            lines, line_mean, line_scale = _combined(columns, mean, scale, combinations)
        product = scratch("product", (len(line_mean), len(mean)), np.float32)
        np.matmul(lines.T, columns, out=product)  # where both are one array, BLAS computes half of it
        self._join(len(probabilities), mean, line_mean, product, scale, line_scale)

    def _join(
        self,
        count: int,
        mean: Float64[np.ndarray, "classes"],
        line_mean: Float64[np.ndarray, "lines"],
        scatter: NDArray[np.floating],
        scale: Float64[np.ndarray, "classes"] | float = 1.0,
        line_scale: Float64[np.ndarray, "lines"] | None = None,
    ) -> None:
        """Add other rows in place. scale, line_scale: units of the columns and lines of `scatter`; 1 unless given."""
        total = self.count + count
        step, line_step = mean - self.mean, line_mean - self.line_mean
        between = line_step * (self.count * count / total)
        for piece in pieces(*scatter.shape):
            update = scatter[piece] * scale
            if line_scale is not None:
                update *= line_scale[piece, None]
            update += between[piece, None] * step
            self.scatter[piece] += update
        self.mean += step * (count / total)
        self.line_mean += line_step * (count / total)
        self.count = total


def merge(parts: Sequence[Moments]) -> Moments:
    """Return the moments of the union of disjoint sets of rows; at least one set."""
    total = parts[0].copy()
    for part in parts[1:]:
        total._join(part.count, part.mean, part.line_mean, part.scatter)
    return total


def slice_rows(classes: int) -> int:
    """Return the number of rows of a slice.

    >>> slice_rows(10), slice_rows(1000), slice_rows(8192), slice_rows(1 << 20)
    (2048, 2048, 1024, 256)
    """
    return min(SLICE_ROWS, max(SLICE_ROWS_MIN, SLICE_VALUES // classes))


def pieces(lines: int, width: int) -> Iterator[slice]:
    """Yield slices of the lines of a matrix that stay in the cache.

    >>> list(pieces(5, PIECE_VALUES // 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, PIECE_VALUES // width)
    return (slice(first, min(first + step, lines)) for first in range(0, lines, step))


def _combined(
    columns: Float32[np.ndarray, "rows classes"],
    mean: Float64[np.ndarray, "classes"],
    scale: Float64[np.ndarray, "classes"],
    combinations: Combinations,
) -> tuple[Float32[np.ndarray, "rows lines"], Float64[np.ndarray, "lines"], Float64[np.ndarray, "lines"]]:
    """Return combinations of columns in units of `scale`, their means, and their own units."""
    lines = np.zeros((len(columns), combinations.width), np.float32)
    line_mean = np.zeros(combinations.width)
    # Divided by one number for all classes, so that rare classes alone stay float32 numbers.
    largest = scale.max()
    for first, stripe in combinations.stripes():
        part = slice(first, first + len(stripe))
        line_mean += mean[part] @ stripe
        lines += columns[:, part] @ (stripe * (scale[part, None] / largest).astype(np.float32))
    highest = np.maximum(np.abs(lines).max(axis=0), np.float32(1e-30))
    lines /= highest
    return lines, line_mean, highest * largest
