"""Which classes does a teacher's softened output move together, over all rows and views of a capture?

1. One task a block: `moments` takes softmax(z / T), its mean and its centred second moment.
2. `merge` joins the moments of two sets of rows into those of their union; a tree of them joins all blocks.
3. `covariance` builds that graph over a dask array and runs it, on threads or on a cluster.

Memory is a few C × C matrices a thread and does not grow with rows. Source: Hinton et al. 2015, section 5.3
(the covariance of the generalist's predictions, for which no labels are needed).

Numbers: the probabilities are float64 (they take a small part of the time), the products float32, their
sums over slices of a block float64. Before it is cast, each column of a slice is centred and divided by its
largest magnitude: a class whose probability is never above 1e-20 keeps its covariance to the same relative
accuracy as the others, and one that is nearly constant at 1 loses nothing by cancellation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array
import dask.config
import numpy as np
from dask.base import compute, tokenize
from dask.callbacks import Callback
from dask.delayed import delayed
from jaxtyping import Float32, Float64

from ..storage.errors import BadDataError, BadLogitsError, ConfigError
from ..storage.progress import Progress, silent

FAN_IN = 8
"""Moments that one task of the tree joins."""
SLICE_ROWS = 4096
"""Most rows whose products are summed in float32."""
SLICE_VALUES = 1 << 22
"""Most values of a slice in float64 (32 MiB), unless `SLICE_ROWS_MIN` rows need more."""
SLICE_ROWS_MIN = 256


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and centred second moment of some rows."""

    count: int
    """Number of rows."""
    mean: Float64[np.ndarray, "classes"]
    """Their mean."""
    scatter: Float64[np.ndarray, "classes classes"]
    """Sum of the outer products of their differences from the mean."""


def softmax(
    logits: Float32[np.ndarray, "rows classes"], temperature: float
) -> Float64[np.ndarray, "rows classes"]:
    """Softmax of logits / temperature along the classes. Source: Hinton et al. 2015, eq. 1."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled /= temperature
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def moments(logits: Float32[np.ndarray, "rows classes"], temperature: float) -> Moments:
    """Moments of softmax(logits / temperature).

    logits: nats, any additive constant per row; at least one row, all finite.
    """
    rows, classes = logits.shape
    step = min(SLICE_ROWS, max(SLICE_ROWS_MIN, SLICE_VALUES // classes))
    total: Moments | None = None
    for first in range(0, rows, step):
        probabilities = softmax(logits[first : first + step], temperature)
        mean = probabilities.mean(axis=0)
        probabilities -= mean
        scale = np.abs(probabilities).max(axis=0)
        scale[scale == 0] = 1
        probabilities /= scale
        columns = probabilities.astype(np.float32)
        scatter = (columns.T @ columns).astype(np.float64)
        scatter *= np.outer(scale, scale)
        part = Moments(len(columns), mean, scatter)
        total = part if total is None else merge([total, part])
    assert total is not None
    return total


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of the union of disjoint sets of rows; at least one set.

    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
    variances", eq. 2.1.
    """
    count, mean, scatter = parts[0].count, parts[0].mean, parts[0].scatter.copy()
    for part in parts[1:]:
        both = count + part.count
        difference = part.mean - mean
        scatter += part.scatter
        scatter += np.outer(difference, difference * (count * part.count / both))
        mean = mean + difference * (part.count / both)
        count = both
    return Moments(count, mean, (scatter + scatter.T) / 2)


def covariance(
    logits: dask.array.Array,
    temperature: float = 1.0,
    *,
    scheduler: Any = "threads",
    progress: Progress = silent,
) -> Float64[np.ndarray, "classes classes"]:
    """Population covariance of softmax(logits / temperature) over all rows and views.

    logits: (view, row, class) float32, nats, any additive constant per row; the classes are one chunk,
        as `Capture.dask()` gives it.
    temperature: of the softmax, above 0.
    scheduler: as `dask.compute` takes it: "threads", "synchronous", a `distributed.Client`.
    progress: told the rows that are done (on a cluster: only at the end).

    Returns a symmetric matrix whose rows sum to 0, equal to the float64 one within
    1e-5 · sqrt(c_ii c_jj), however the rows are cut into blocks.
    Raises ConfigError for a temperature that is not positive, BadDataError where there are no rows,
    BadLogitsError, naming view and row, where a logit is not finite.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(
            "temperature",
            expected="a number above 0",
            found=f"{temperature:g}",
            remedy="give the temperature of the softmax",
        )
    if logits.ndim != 3 or logits.dtype != np.float32 or logits.numblocks[2] > 1:
        raise BadDataError(
            "logits",
            expected="a float32 array (view, row, class) with all classes in a chunk",
            found=f"{logits.dtype} {logits.shape} in {logits.numblocks} chunks",
            remedy="pass what Capture.dask() returns",
        )
    if 0 in logits.shape:
        raise BadDataError(
            "logits",
            expected="at least one view, row and class",
            found=f"shape {logits.shape}",
            remedy="check the capture",
        )
    views, rows, _ = logits.shape
    first_view = np.cumsum((0, *logits.chunks[0]))
    first_row = np.cumsum((0, *logits.chunks[1]))
    name = f"moments-{tokenize(logits, temperature)}"
    task = delayed(_block_moments, pure=True)
    level = [
        task(block, temperature, int(first_view[v]), int(first_row[r]), dask_key_name=f"{name}-{v}-{r}")
        for v, line in enumerate(logits.to_delayed()[:, :, 0])
        for r, block in enumerate(line)
    ]
    while len(level) > 1:
        level = [
            delayed(merge, pure=True)(level[first : first + FAN_IN]) for first in range(0, len(level), FAN_IN)
        ]
    with (
        # A task that was fused with the reading of its block would report under the reading's name.
        dask.config.set({"optimization.fuse.active": False}),
        _Report(name, views * rows, progress) as report,
    ):
        (total,) = compute(level[0], scheduler=scheduler)
    report.finish()
    return np.asarray(total.scatter / total.count)


def _block_moments(
    block: Float32[np.ndarray, "views rows classes"], temperature: float, first_view: int, first_row: int
) -> Moments:
    finite = np.isfinite(block).all(axis=2)
    if not finite.all():
        view, row = np.argwhere(~finite)[0]
        raise BadLogitsError(
            f"view {first_view + int(view)}, row {first_row + int(row)}",
            expected="finite logits",
            found="NaN or infinity",
            remedy="run `logitstore verify` on the store",
        )
    return moments(block.reshape(-1, block.shape[2]), temperature)


class _Report(Callback):
    """Tells `progress` the rows of each block whose task has ended."""

    def __init__(self, name: str, total: int, progress: Progress) -> None:
        self._name = name
        self._done = 0
        self._total = total
        self._progress = progress

    def _posttask(self, key: object, result: object, *_: object) -> None:
        if isinstance(result, Moments) and str(key).startswith(self._name):
            self._done += result.count
            self._progress("covariance", self._done, self._total)

    def finish(self) -> None:
        """Report the end to those who heard nothing: other schedulers know no callbacks."""
        if self._done < self._total:
            self._progress("covariance", self._total, self._total)
