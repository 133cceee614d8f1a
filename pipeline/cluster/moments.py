"""What are the mean and the second moment of many rows of probabilities, a slice of them at a time?

1. `with_slice` adds the rows of a slice to the moments of the rows before it.
2. `merge` joins the moments of disjoint sets of rows into those of their union.

Numbers: probabilities are float64, the products of a slice float32, the sums over slices float64. Before it is
cast, each column of a slice is centred, and divided by the mean that it had in earlier rows: a class whose probability is never
above 1e-20 keeps its covariance to the same relative accuracy as the others, and one that is nearly constant at 1
loses nothing by cancellation. What goes over a slice, or over a matrix, goes over it in pieces that stay in the
cache of a core: a slice of 1024 rows of 1000 classes costs its product and half as much again.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from scipy.linalg.blas import sger  # type: ignore[import-untyped]  # it has no annotations

SLICE_ROWS = 1024
"""Most rows whose products are summed in float32."""


SLICE_VALUES = 1 << 23
"""Most values of a slice (64 MiB in float64), unless `SLICE_ROWS_MIN` rows need more."""


SLICE_ROWS_MIN = 256


PIECE_VALUES = 1 << 17
"""Values that are worked on at a time: 1 MiB in float64."""


_FAR = 1e12
"""Mean of a column that is scaled by other rows, of which the products of its values are still float32."""


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
    """Sum of the products of the differences from the means, in units of the scales."""
    scale: Float64[np.ndarray, "classes"] | None = None
    """Unit of each column, while slices are added; None for 1."""
    left_scale: Float64[np.ndarray, "lines"] | None = None
    """Unit of each line."""

    def lines(self, piece: slice) -> Float64[np.ndarray, "some classes"]:
        """Some lines of the second moment, in units of 1."""
        if self.scale is None or self.left_scale is None:
            return self.scatter[piece]
        return np.asarray(self.scatter[piece] * self.left_scale[piece, None] * self.scale)


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


class _Scratch(threading.local):
    """Arrays of this thread that are written anew for every slice: memory that is taken anew costs more than what is done in it."""

    def __init__(self) -> None:
        self._held = dict[str, np.ndarray]()

    def array(self, name: str, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        """The array of a name, with anything in it; what was got by this name before is overwritten."""
        size = shape[0] * shape[1]
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)

    def forget(self) -> None:
        """Let go of the memory."""
        self._held.clear()


_scratch = _Scratch()


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
    if before is None:
        return _moments(_about_own_mean(rows, classes, fill), combinations)
    found = _added(before, rows, classes, fill, combinations, owned=owned)
    if found is None:
        alone = with_slice(None, rows, classes, fill, combinations)
        return _in_units_of_its_mean(merge([before, alone]), before.left_scale, alone.left_scale)
    return found


@dataclass(frozen=True, eq=False)
class _Columns:
    """The rows of a slice, less a centre, each column divided by its scale, as float32."""

    values: Float32[np.ndarray, "rows classes"]
    centre: Float64[np.ndarray, "classes"]
    """What was taken away."""
    scale: Float64[np.ndarray, "classes"]
    """What was divided by."""
    rise: Float64[np.ndarray, "classes"]
    """The mean of the rows less the centre."""


def _moments(columns: _Columns, combinations: Combinations | None) -> Moments:
    """The moments of a slice about its own mean, in units of it."""
    lines = _lines(columns, combinations, None)
    assert lines is not None  # units of its own always do
    product = lines.values.T @ columns.values  # NumPy sees where both are one, and BLAS computes half of it
    scatter = product.astype(np.float64)
    return Moments(len(columns.values), columns.centre, lines.mean, scatter, columns.scale, lines.scale)


def _added(
    before: Moments,
    rows: int,
    classes: int,
    fill: Callable[[slice, Float64[np.ndarray, "some classes"]], None],
    combinations: Combinations | None,
    *,
    owned: bool,
) -> Moments | None:
    """The moments of the rows before and of a slice about their mean; None where the units are too small for the slice.

    About the mean m of the rows before, the second moments of both add up; about the joint mean m + δ of all N rows they
    are less by N δ δᵀ.
    """
    assert before.scale is not None and before.left_scale is not None
    columns = _about(before.mean, before.scale, rows, classes, fill)
    lines = None if columns is None else _lines(columns, combinations, before.left_scale)
    if columns is None or lines is None:
        return None
    product = _scratch.array("product", (lines.values.shape[1], classes), np.float32)
    np.matmul(lines.values.T, columns.values, out=product)
    count = before.count + rows
    step = columns.rise * (rows / count)
    left_step = step if lines.rise is None else lines.rise * (rows / count)
    # In place: the transpose of the product is a matrix as BLAS has them.
    scaled, left_scaled = step / before.scale, left_step / before.left_scale
    sger(-count, scaled, left_scaled, a=product.T, overwrite_a=1)
    out = before.scatter if owned else np.empty_like(before.scatter)
    for piece in pieces(*out.shape):
        update = _scratch.array("piece", (piece.stop - piece.start, classes), np.float64)
        update[...] = product[piece]
        np.add(update, before.scatter[piece], out=out[piece])
    left_mean = None if before.left_mean is None else before.left_mean + left_step
    return Moments(count, before.mean + step, left_mean, out, before.scale, before.left_scale)


def _in_units_of_its_mean(
    moments: Moments,
    left_scale: Float64[np.ndarray, "lines"] | None,
    other_left_scale: Float64[np.ndarray, "lines"] | None,
) -> Moments:
    """Moments in units to which slices can be added; the left ones are those of its parts, where they are no classes."""
    scale = np.maximum(moments.mean, _SMALLEST)
    assert left_scale is not None and other_left_scale is not None
    left = scale if moments.left_mean is None else np.maximum(left_scale, other_left_scale)
    for piece in pieces(*moments.scatter.shape):
        moments.scatter[piece] /= scale
        moments.scatter[piece] /= left[piece, None]
    return Moments(moments.count, moments.mean, moments.left_mean, moments.scatter, scale, left)


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
            line += part.lines(piece)
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


def _about(
    centre: Float64[np.ndarray, "classes"],
    scale: Float64[np.ndarray, "classes"],
    rows: int,
    classes: int,
    fill: Callable[[slice, Float64[np.ndarray, "some classes"]], None],
) -> _Columns | None:
    """The rows less a centre, in units that other rows had, in one pass; None where these do not do.

    A class that is hardly ever likely in those rows, and often here, would leave float32.
    """
    inverse, total = 1 / scale, np.zeros(classes)
    columns = _scratch.array("columns", (rows, classes), np.float32)
    cached = _scratch.array("piece", (next(pieces(rows, classes)).stop, classes), np.float64)
    with np.errstate(over="ignore"):
        for piece in pieces(rows, classes):
            some = cached[: piece.stop - piece.start]
            fill(piece, some)
            some -= centre
            total += some.sum(axis=0)
            some *= inverse
            columns[piece] = some
    # What is above the centre is at most `rows` times what the mean is above it, and the centre itself.
    rise = total / rows
    if ((rise + centre) * inverse > _FAR).any():
        return None
    return _Columns(columns, centre, scale, rise)


def _about_own_mean(
    rows: int, classes: int, fill: Callable[[slice, Float64[np.ndarray, "some classes"]], None]
) -> _Columns:
    """The rows less their mean, each column divided by it, in two passes."""
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
        some *= inverse
        columns[piece] = some
    return _Columns(columns, mean, scale, np.zeros(classes))


@dataclass(frozen=True, eq=False)
class _Lines:
    """The lines of the second moment: the columns themselves, or combinations of them."""

    values: Float32[np.ndarray, "rows lines"]
    scale: Float64[np.ndarray, "lines"]
    mean: Float64[np.ndarray, "lines"] | None = None
    """Combinations of the centre; None where the lines are the columns."""
    rise: Float64[np.ndarray, "lines"] | None = None
    """Combinations of the columns' rise."""


def _lines(
    columns: _Columns, combinations: Combinations | None, scale: Float64[np.ndarray, "lines"] | None
) -> _Lines | None:
    """The lines of a slice. scale: their units; of their own where None. None where these are too small."""
    if combinations is None:
        return _Lines(columns.values, columns.scale)
    left = np.zeros((len(columns.values), combinations.width), np.float32)
    mean, rise = np.zeros(combinations.width), np.zeros(combinations.width)
    # Of one power of ten, so that rare classes alone do not leave float32.
    largest = columns.scale.max()
    for first, stripe in combinations.stripes():
        part = slice(first, first + len(stripe))
        mean += columns.centre[part] @ stripe
        rise += columns.rise[part] @ stripe
        left += columns.values[:, part] @ (stripe * (columns.scale[part, None] / largest).astype(np.float32))
    highest = np.maximum(np.abs(left).max(axis=0), np.float32(1e-30)).astype(np.float64) * largest
    if scale is None:
        scale = highest
    elif (highest > _FAR * scale).any():
        return None
    left *= (largest / scale).astype(np.float32)
    return _Lines(left, scale, mean, rise)
