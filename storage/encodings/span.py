"""The span of a teacher's logits, in which its basis is looked for: that of calibration rows, or that of a head.

    RowSpan     orthonormal axes of calibration rows: no row is known but these
    HeadSpan    orthonormal axes of the columns of a weight, and of the constant that a row is centred by: every row that the
                head can make lies in it, also one unlike all calibration rows

The axes of a head are columns · mixing, a matrix of features by features. They are never held: 768 axes of 21,843 classes would
take 128 MiB in float64. Sums over classes go over some of them at a time.
"""

from collections.abc import Iterator
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from .feature_logits import FeatureLogits, row_slices

_LEAST_SHARE: Final = 1e-10
"""Share of the largest variance below which an axis is rounding alone."""
_CLASSES: Final = 2048
"""Classes that are processed together."""


@runtime_checkable
class Span(Protocol):
    """Orthonormal axes of logits, up to an offset."""

    def centre(self, peak: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " classes"]:
        """Return the mean of the centred calibration rows. peak: the largest logit of each."""

    def rows(self, peak: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, "rows axes"]:
        """Return the centred calibration rows on the axes, their mean subtracted."""

    def coordinates(self, values: Float64[np.ndarray, "some classes"]) -> Float64[np.ndarray, "some axes"]:
        """Return the products of values and axes."""

    def weighted(self, weight: Float64[np.ndarray, " classes"]) -> Float64[np.ndarray, "axes axes"]:
        """Return the products of axes with axes, each class weighted."""

    def combined(self, mixing: Float64[np.ndarray, "some axes"]) -> Float32[np.ndarray, "some classes"]:
        """Return sums of axes."""


class RowSpan:
    """The span of calibration rows; see `Span`."""

    def __init__(self, logits: Float32[np.ndarray, "rows classes"]) -> None:
        """Find the axes from the smaller of the two Gram matrices. logits: centred, the largest of each row 0."""
        self._centre: NDArray[np.float64] = logits.mean(axis=0, dtype=np.float64)
        spread = logits - self._centre
        rows, classes = spread.shape
        if classes <= rows:
            size, axes = np.linalg.eigh(spread.T @ spread)
            axes = axes[:, size > size[-1] * _LEAST_SHARE].T
        else:
            size, of_rows = np.linalg.eigh(spread @ spread.T)
            kept = size > size[-1] * _LEAST_SHARE
            axes = (of_rows[:, kept].T @ spread) / np.sqrt(size[kept])[:, None]
        self._axes: NDArray[np.float64] = np.ascontiguousarray(axes[::-1])
        self._rows: NDArray[np.float64] = spread @ self._axes.T

    def centre(self, peak: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " classes"]:
        return self._centre

    def rows(self, peak: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, "rows axes"]:
        return self._rows

    def coordinates(self, values: Float64[np.ndarray, "some classes"]) -> Float64[np.ndarray, "some axes"]:
        products: NDArray[np.float64] = values @ self._axes.T
        return products

    def weighted(self, weight: Float64[np.ndarray, " classes"]) -> Float64[np.ndarray, "axes axes"]:
        products: NDArray[np.float64] = (self._axes * weight) @ self._axes.T
        return products

    def combined(self, mixing: Float64[np.ndarray, "some axes"]) -> Float32[np.ndarray, "some classes"]:
        return np.ascontiguousarray(mixing @ self._axes, np.float32)


class HeadSpan:
    """The span of a head's columns and of the constant row; see `Span`."""

    def __init__(self, logits: FeatureLogits) -> None:
        """Find the axes from the Gram matrix of the columns. logits: calibration rows, any constant a row."""
        self._features, self._head = logits.features, logits.head
        gram = self._products(None)
        # Columns of one length: a feature of large weights is no more of a direction than others.
        length = np.sqrt(np.diag(gram))
        self._length = np.where(length > 0, length, 1)
        size, mixing = np.linalg.eigh(gram / self._length[:, None] / self._length)
        kept = size > size[-1] * _LEAST_SHARE
        size, mixing = size[kept][::-1], mixing[:, kept][:, ::-1]
        self._mixing = mixing / np.sqrt(size) / self._length[:, None]
        """(features and constant, axes): the axes are columns · mixing."""
        self._of_features = mixing * np.sqrt(size) * self._length[:, None]
        """(features and constant, axes): the coordinates of a row are its features · this."""

    def centre(self, peak: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " classes"]:
        mean = self._features.mean(axis=0, dtype=np.float64)
        centre = np.empty(self._head.num_classes)
        for part, columns in self._columns():
            centre[part] = columns[:, :-1] @ mean
        centre -= peak.mean()
        return centre if self._head.bias is None else centre + self._head.bias

    def rows(self, peak: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, "rows axes"]:
        features = np.column_stack([self._features, -peak])  # float64
        rows: NDArray[np.float64] = (features - features.mean(axis=0)) @ self._of_features
        return rows

    def coordinates(self, values: Float64[np.ndarray, "some classes"]) -> Float64[np.ndarray, "some axes"]:
        products = np.zeros((len(values), len(self._length)))
        for part, columns in self._columns():
            products += values[:, part] @ columns
        mixed: NDArray[np.float64] = products @ self._mixing
        return mixed

    def weighted(self, weight: Float64[np.ndarray, " classes"]) -> Float64[np.ndarray, "axes axes"]:
        mixed: NDArray[np.float64] = self._mixing.T @ self._products(weight) @ self._mixing
        return mixed

    def combined(self, mixing: Float64[np.ndarray, "some axes"]) -> Float32[np.ndarray, "some classes"]:
        of_columns = mixing @ self._mixing.T
        axes = np.empty((len(mixing), self._head.num_classes), np.float32)
        for part, columns in self._columns():
            axes[:, part] = of_columns @ columns.T
        return axes

    def _products(
        self, weight: Float64[np.ndarray, " classes"] | None
    ) -> Float64[np.ndarray, "columns columns"]:
        """Return the products of columns with columns, each class weighted."""
        number = self._head.num_features + 1
        products = np.zeros((number, number))
        for part, columns in self._columns():
            products += columns.T @ (columns if weight is None else columns * weight[part, None])
        return products

    def _columns(self) -> Iterator[tuple[slice, Float64[np.ndarray, "some columns"]]]:
        """Yield the columns of some classes: those of the weight, and the constant."""
        for part in row_slices(self._head.num_classes, _CLASSES):
            weight = self._head.weight[part]
            yield part, np.column_stack([weight, np.ones(len(weight))])


def span_of(logits: Float32[np.ndarray, "rows classes"] | FeatureLogits) -> Span:
    """Return the span of calibration rows, or that of their head. logits: an array is centred. Inside `one_thread`."""
    return HeadSpan(logits) if isinstance(logits, FeatureLogits) else RowSpan(logits)
