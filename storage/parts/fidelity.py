"""The fidelity of an encoded capture, from the error that was recorded of each row.

A row's `error` is T·√(2·KL) at some temperatures, as float16, measured on writing. A float16 that is not negative is
one of 31,745 numbers. Counting each gives the exact mean, maximum and quantiles of the KL, and reads no logit.
"""

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from ..encodings.divergence import kl_of_error
from ..encodings.error_budget import ErrorBudget
from ..format.constants import TRANSFORM
from ..format.documents import invalid
from .reader import CaptureReader

QUANTILE: Final = 0.999
"""The quantile that is reported: the KL of one row in a thousand is larger."""
_INFINITY: Final = 0x7C00
"""Bits of float16's infinity; those of NaN and negative numbers are larger."""


@dataclass(frozen=True)
class Fidelity:
    """KL of the rows of an encoded capture at one temperature, in nats."""

    temperature: float
    """T, natural-log units."""
    bound: float | None
    """KL(teacher ‖ stored) that no row exceeds; None without a guarantee."""
    bound_to_source: float | None
    """KL(given ‖ stored) that no row exceeds. Given: the capture that was compressed, or the teacher's logits."""
    max: float
    """Measured KL(given ‖ stored) of the worst row."""
    p999: float
    """Its 99.9th percentile over rows and views; of two neighbouring rows, the larger."""
    mean: float
    """Its mean over rows and views."""


def fidelity(capture: CaptureReader) -> tuple[Fidelity, ...]:
    """Return the fidelity of a capture at each temperature; () for float16 and float32, which record none.

    Raises ShardMissing, ShardCorrupt, or ManifestInvalid for an error that is negative or NaN.
    """
    temperatures = capture.temperatures
    if not temperatures:
        return ()
    counts = _counts(capture)
    values = np.arange(_INFINITY + 1, dtype=np.uint16).view(np.float16)
    kl = kl_of_error(np.repeat(values[:, None], len(temperatures), axis=1), temperatures)
    return tuple(_summary(capture, counts[i], kl[:, i], t) for i, t in enumerate(temperatures))


def _counts(capture: CaptureReader) -> Int64[np.ndarray, "temperatures numbers"]:
    """Count each float16 in `error`, by temperature."""
    counts = np.zeros((len(capture.temperatures), _INFINITY + 1), np.int64)
    grid = capture.reader.grid
    for view, block in product(range(capture.num_views), range(grid.num_blocks)):
        bits = capture.reader.read("error", grid.rows(block), view).view(np.uint16)
        if bits.max(initial=0) > _INFINITY:
            where = f"{capture.part.folder.path}/error"
            raise invalid(where, "errors of rows that are not negative", "a negative number or NaN")
        for number, column in enumerate(bits.T):
            counts[number] += np.bincount(column, minlength=_INFINITY + 1)
    return counts


def _summary(
    capture: CaptureReader, counts: NDArray[np.int64], kl: Float64[np.ndarray, " numbers"], temperature: float
) -> Fidelity:
    occurring = np.flatnonzero(counts)
    rows = np.cumsum(counts[occurring])
    p999 = kl[occurring[np.searchsorted(rows, _rank(int(rows[-1])))]]
    mean = (counts[occurring] * kl[occurring]).sum() / rows[-1]
    encoding, largest = capture.encoding, float(kl[occurring[-1]])
    bound = encoding.bound(temperature)
    given = bound_to_source(encoding, temperature) if isinstance(encoding, ErrorBudget) else bound
    if encoding.kind == TRANSFORM and "derived_from" in capture.provenance:
        bound = None  # its budget counts from the rows that were compressed
    return Fidelity(temperature, bound, given, largest, float(p999), float(mean))


def _rank(rows: int) -> int:
    """Return how many of `rows` rows do not exceed the 99.9th percentile.

    >>> _rank(1), _rank(1000), _rank(1001), _rank(10_000)
    (1, 1000, 1000, 9991)
    """
    return int(np.ceil(QUANTILE * (rows - 1) - 1e-9)) + 1


def percentile(kl: Float64[np.ndarray, " rows"]) -> float:
    """Return the 99.9th percentile as in `Fidelity`.

    >>> percentile(np.arange(1000.0))
    999.0
    """
    rank = _rank(len(kl)) - 1
    return float(np.partition(kl, rank)[rank])


def bound_to_source(encoding: ErrorBudget, temperature: float) -> float:
    """Return the KL(given ‖ stored) that no row exceeds: `max_kl` without the rounding of the given logits.

    >>> bound_to_source(ErrorBudget(0.02), 2.0) == ErrorBudget(0.02).bound(2.0)
    True
    """
    return float((encoding.epsilon - encoding.source_error) ** 2 / (2 * temperature**2))
