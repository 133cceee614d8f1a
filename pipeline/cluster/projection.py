"""Random projection of the columns of a covariance whose matrix does not fit into memory.

1. `Projection` is a random matrix of signs, the first bits of the Philox counter of a class: any process makes them again and
   no file holds them. Beside the projections it keeps whole columns of a few classes.
2. `projected_columns` projects the columns in one pass over the store. With probabilities p, their mean μ and the matrix G,
   the mean of Gᵀ(p - μ)(p - μ)ᵀ is GᵀC, which needs no C.
3. `measure_error` compares the distances between the columns of those few classes with the projected ones.

A projection keeps each squared distance in the mean, with a relative standard deviation of about √(2/d). Source: Johnson &
Lindenstrauss 1984; with signs, Achlioptas 2003, "Database-friendly random projections".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64

from ...storage.progress import Progress, silent
from ...storage.random import raw_words
from .covariance import second_moments
from .kmeans import squared_distances
from .memory import SAMPLE
from .moments import Combinations
from .softened import Softened

_STRIPE_VALUES: Final = 1 << 22


@dataclass(frozen=True)
class Projection(Combinations):
    """Random signs of each class, divided by √dimensions, and unit vectors of a sample of classes."""

    classes: int
    """Number of classes."""
    dimensions: int
    """Dimensions of the projection; a multiple of 64."""
    seed: int
    """Seed of the signs and of the sample."""

    @property
    def sample(self) -> tuple[int, ...]:
        """Return the classes whose columns are kept whole, ascending."""
        generator = np.random.default_rng([self.seed, self.classes])
        chosen = generator.choice(self.classes, min(SAMPLE, self.classes), replace=False)
        return tuple(sorted(chosen.tolist()))

    @property
    def width(self) -> int:
        """Return the number of dimensions and sampled classes together."""
        return self.dimensions + len(self.sample)

    def signs(self, first: int, last: int) -> Float32[np.ndarray, "classes dimensions"]:
        """Return the rows of the random matrix for classes first…last - 1: ±1/√dimensions.

        >>> Projection(classes=9, dimensions=64, seed=0).signs(0, 9).shape
        (9, 64)
        """
        words = raw_words(self.seed, 0, np.arange(first, last), self.dimensions // 64)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, bitorder="little")
        size = np.float32(1 / math.sqrt(self.dimensions))
        return np.where(bits, size, -size)

    def stripes(self) -> Iterator[tuple[int, Float32[np.ndarray, "some combinations"]]]:
        """Yield some rows at a time: see `Combinations`."""
        sample = np.array(self.sample)
        step = max(1, _STRIPE_VALUES // self.width)
        for first in range(0, self.classes, step):
            last = min(first + step, self.classes)
            unit = (np.arange(first, last)[:, None] == sample).astype(np.float32)
            yield first, np.hstack([self.signs(first, last), unit])


@dataclass(frozen=True, eq=False)
class ProjectedColumns:
    """The projected columns of a covariance."""

    columns: Float64[np.ndarray, "classes dimensions"]
    """Projection of each class's column."""
    error: "ProjectionError"
    """Error of the projection, measured on a sample."""


@dataclass(frozen=True)
class ProjectionError:
    """Relative errors of the squared distances between sampled columns."""

    classes: int
    """Number of sampled classes; each pair is a distance."""
    rms: float
    """Root mean square of the errors."""
    largest: float
    """Largest error."""
    expected: float
    """√(2/dimensions), the expected error of random signs."""


def projected_columns(
    softened: Softened,
    dimensions: int,
    *,
    seed: int = 0,
    scheduler: Any = "threads",
    memory: int | None = None,
    progress: Progress = silent,
) -> ProjectedColumns:
    """Project the columns of the covariance of softened outputs, in one pass over the store.

    dimensions: a multiple of 64. seed: of the projection. Other arguments and errors are those of `covariance`.
    """
    projection = Projection(softened.shape[2], dimensions, seed)
    total = second_moments(softened, projection, scheduler=scheduler, memory=memory, progress=progress)
    lines = total.scatter / total.count
    columns = np.ascontiguousarray(lines[:dimensions].T)
    sample = list(projection.sample)
    return ProjectedColumns(columns, measure_error(lines[dimensions:], columns[sample]))


def measure_error(
    exact: Float64[np.ndarray, "sample classes"], projected: Float64[np.ndarray, "sample dimensions"]
) -> ProjectionError:
    """Compare the distances between projected columns with those between the columns themselves.

    Pairs of equal columns are left out; without other pairs the errors are 0.
    """
    pairs = np.triu_indices(len(exact), 1)
    true, kept = (
        np.stack([squared_distances(points, point) for point in points])[pairs]
        for points in (exact, projected)
    )
    differ = true > 0
    errors = kept[differ] / true[differ] - 1
    rms, largest = 0.0, 0.0
    if len(errors):
        rms, largest = math.sqrt(float((errors**2).mean())), float(np.abs(errors).max())
    return ProjectionError(len(exact), rms, largest, math.sqrt(2 / projected.shape[1]))
