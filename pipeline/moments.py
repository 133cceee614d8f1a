"""What are the mean and the second moment of many rows of probabilities, a slice of them at a time?

1. `with_slice` adds the rows of a slice to the moments of the rows before it.
2. `merge` joins the moments of disjoint sets of rows into those of their union.

Numbers: probabilities are float64, the products of a slice float32, the sums over slices float64. Before it is
cast, each column of a slice is centred and divided by its mean: a class whose probability is never
above 1e-20 keeps its covariance to the same relative accuracy as the others, and one that is nearly constant at 1
loses nothing by cancellation. What goes over a slice, or over a matrix, goes over it in pieces that stay in the
cache of a core: a slice of 1024 rows of 1000 classes costs its product and half as much again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

SLICE_ROWS = 1024
"""Most rows whose products are summed in float32."""
SLICE_VALUES = 1 << 23
"""Most values of a slice (64 MiB in float64), unless `SLICE_ROWS_MIN` rows need more."""
SLICE_ROWS_MIN = 256
PIECE_VALUES = 1 << 16
"""Values that are worked on at a time: 512 KiB in float64."""
_SMALLEST = 1e-300
"""A scale below it is taken to be it; its inverse is still a float64."""


@runtime_checkable
class Combinations(Protocol):
    """Linear combinations of the classes: a matrix (classes, combinations) that is never whole in memory."""

    @property
    def width(self) -> int:
        """Number of combinations."""

    def stripes(self) -> Iterator[tuple[int, Float32[np.ndarray, "some combinations"]]]:
        """Its rows, some at a time, in order, each with the number of the first."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and centred second moment of some rows.

    The second moment is that of each class with each class, or, where there are `Combinations` of the classes, that
    of each combination with each class.
    """

    count: int
    """Number of rows."""
    mean: Float64[np.ndarray, "classes"]
    """Their mean."""
    left_mean: Float64[np.ndarray, "lines"] | None
    """Mean of the combinations; None where the lines are the classes."""
    scatter: Float64[np.ndarray, "lines classes"]
    """Sum of the products of the differences from the means."""


def slice_rows(classes: int) -> int:
    """Rows of a slice.

    >>> slice_rows(10), slice_rows(1000), slice_rows(8192), slice_rows(1 << 20)
    (1024, 1024, 1024, 256)
    """
    return min(SLICE_ROWS, max(SLICE_ROWS_MIN, SLICE_VALUES // classes))


def pieces(lines: int, width: int) -> Iterator[slice]:
    """Slices of the lines of a matrix whose part stays in the cache.

    >>> list(pieces(5, PIECE_VALUES // 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, PIECE_VALUES // width)
    return (slice(first, min(first + step, lines)) for first in range(0, lines, step))


def with_slice(
    before: Moments | None,
    rows: int,
    classes: int,
    fill: Callable[[slice, Float64[np.ndarray, "some classes"]], None],
    combinations: Combinations | None = None,
    *,
    owned: bool = False,
) -> Moments:
    """The moments of the rows before and those of a slice.

    before: of other rows; None where there are none.
    rows, classes: size of the slice; at least one row.
    fill: writes the probabilities of some rows of the slice into a float64 array.
    combinations: the lines of the second moment, the same at every call; the classes themselves where None.
    owned: whether the matrix of `before` may be written to; otherwise it is left as it is.
    """
    centred, mean, scale = _centred(rows, classes, fill)
    left, left_mean, left_scale = centred, None, scale
    if combinations is not None:
        left, left_mean, left_scale = _combined(centred, mean, scale, combinations)
    product = left.T @ centred  # NumPy sees where both are the same, and BLAS computes half of it
    if before is None:
        joint = _joined([rows], [mean], [left_mean])
    else:
        joint = _joined([before.count, rows], [before.mean, mean], [before.left_mean, left_mean])
    out = before.scatter if before is not None and owned else np.empty((len(product), classes))
    for piece in pieces(len(product), classes):
        update = np.multiply(product[piece], scale, dtype=np.float64)
        if before is None:
            np.multiply(update, left_scale[piece, None], out=out[piece])
            continue
        update *= left_scale[piece, None]
        update += joint.left_between[:, piece].T @ joint.between
        np.add(update, before.scatter[piece], out=out[piece])
    return Moments(joint.count, joint.mean, joint.left_mean, out)


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of the union of disjoint sets of rows; at least one set.

    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
    variances", eq. 2.1, here for several sets at once.
    """
    joint = _joined(
        [part.count for part in parts], [part.mean for part in parts], [part.left_mean for part in parts]
    )
    out = np.empty_like(parts[0].scatter)
    for piece in pieces(*out.shape):
        line = joint.left_between[:, piece].T @ joint.between
        for part in parts:
            line += part.scatter[piece]
        out[piece] = line
    return Moments(joint.count, joint.mean, joint.left_mean, out)


@dataclass(frozen=True, eq=False)
class _Joint:
    """What the means of disjoint sets of rows say of their union."""

    count: int
    mean: Float64[np.ndarray, "classes"]
    left_mean: Float64[np.ndarray, "lines"] | None
    left_between: Float64[np.ndarray, "parts lines_or_classes"]
    """Times `between`, transposed: what the sets' means add to the second moment."""
    between: Float64[np.ndarray, "parts classes"]


def _joined(
    counts: Sequence[int],
    means: Sequence[Float64[np.ndarray, "classes"]],
    left_means: Sequence[Float64[np.ndarray, "lines"] | None],
) -> _Joint:
    weights = np.array(counts, np.float64)
    mean, between = _about_mean(weights, np.stack(means))
    given = [left_mean for left_mean in left_means if left_mean is not None]
    if not given:
        return _Joint(sum(counts), mean, None, between, between)
    left_mean, left_between = _about_mean(weights, np.stack(given))
    return _Joint(sum(counts), mean, left_mean, left_between, between)


def _about_mean(
    weights: Float64[np.ndarray, "parts"], means: Float64[np.ndarray, "parts width"]
) -> tuple[Float64[np.ndarray, "width"], Float64[np.ndarray, "parts width"]]:
    """The weighted mean of means, and the differences from it times the roots of the weights."""
    mean = np.asarray((weights / weights.sum()) @ means)
    return mean, np.sqrt(weights)[:, None] * (means - mean)


def _centred(
    rows: int, classes: int, fill: Callable[[slice, Float64[np.ndarray, "some classes"]], None]
) -> tuple[
    Float32[np.ndarray, "rows classes"], Float64[np.ndarray, "classes"], Float64[np.ndarray, "classes"]
]:
    """The rows less their mean, each column divided by its mean; the mean; what was divided by."""
    probabilities = np.empty((rows, classes))
    total = np.zeros(classes)
    for piece in pieces(rows, classes):
        some = probabilities[piece]
        fill(piece, some)
        total += some.sum(axis=0)
    mean = total / rows
    # No probability is above `rows` times the mean, nor below 0: their squares stay within float32.
    scale = np.maximum(mean, _SMALLEST)
    inverse = 1 / scale
    columns = np.empty((rows, classes), np.float32)
    for piece in pieces(rows, classes):
        some = probabilities[piece]
        some -= mean
        np.multiply(some, inverse, out=columns[piece], casting="same_kind")
    return columns, mean, scale


def _combined(
    centred: Float32[np.ndarray, "rows classes"],
    mean: Float64[np.ndarray, "classes"],
    scale: Float64[np.ndarray, "classes"],
    combinations: Combinations,
) -> tuple[Float32[np.ndarray, "rows lines"], Float64[np.ndarray, "lines"], Float64[np.ndarray, "lines"]]:
    """The same of the combinations of the rows, from the rows centred and scaled."""
    left = np.zeros((len(centred), combinations.width), np.float32)
    left_mean = np.zeros(combinations.width)
    # Of one power of ten, so that rare classes alone do not leave float32.
    largest = scale.max()
    for first, stripe in combinations.stripes():
        part = slice(first, first + len(stripe))
        left_mean += mean[part] @ stripe
        left += centred[:, part] @ (stripe * (scale[part, None] / largest).astype(np.float32))
    highest = np.maximum(np.abs(left).max(axis=0), np.float32(1e-30))
    left /= highest
    return left, left_mean, highest.astype(np.float64) * largest
