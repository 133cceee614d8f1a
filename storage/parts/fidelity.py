"""Distance of an encoded capture from its source logits, from its own records.

Every row of an encoded capture has an `error`, measured when it was written: T·√(2·KL) at some temperatures, as float16.
A float16 that is not negative is one of 31,745 numbers. A count of each gives the mean, the maximum and any quantile of the
KL exactly, block by block, without reading a logit.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from ..encodings.divergence import kl_of_error
from ..encodings.error_budget import ErrorBudget
from ..format.constants import TEMPERATURES
from ..format.documents import invalid
from .reader import CaptureReader

QUANTILE: Final = 0.999
"""Quantile that is shown: one row in a thousand has a larger KL."""


_INFINITY: Final = 0x7C00
"""Bits of infinity in float16; those of NaN and of negative numbers are larger."""


@dataclass(frozen=True)
class Fidelity:
    """KL of the rows of an encoded capture at one temperature, in nats."""

    temperature: float
    """Temperature T."""
    bound: float | None
    """Guaranteed maximum of KL(teacher ‖ stored); None without a guarantee."""
    bound_to_source: float | None
    """Guaranteed maximum of KL(given ‖ stored). Given: the source capture, or the teacher's own logits."""
    max: float
    """Measured KL(given ‖ stored) of the worst row."""
    p999: float
    """Its 99.9th percentile over rows and views: the value of a row, the larger of two neighbours."""
    mean: float
    """Its mean over rows and views."""


def fidelity(capture: CaptureReader) -> tuple[Fidelity, ...]:
    """Return the fidelity at each temperature; nothing for a capture without records (float16, float32).

    Raises ShardMissing, ShardCorrupt, or ManifestInvalid for negative numbers and NaN.
    """
    if "error" not in capture.part.layouts:
        return ()
    counts = _counts(capture)
    values = np.arange(_INFINITY + 1, dtype=np.uint16).view(np.float16)
    kl = kl_of_error(np.repeat(values[:, None], len(TEMPERATURES), axis=1))
    return tuple(_summary(capture, counts[i], kl[:, i], t) for i, t in enumerate(TEMPERATURES))


def _counts(capture: CaptureReader) -> Int64[np.ndarray, "temperatures numbers"]:
    """Count each float16 of `error`, by temperature."""
    counts = np.zeros((len(TEMPERATURES), _INFINITY + 1), np.int64)
    grid = capture.reader.grid
    for view, block in np.ndindex(capture.num_views, grid.num_blocks):
        errors = capture.reader.read("error", grid.rows(block), view)
        bits = errors.view(np.uint16)
        if bits.max(initial=0) > _INFINITY:
            where, worst = f"{capture.part.folder.path}/error", errors.reshape(-1)[bits.argmax()]
            raise invalid(where, "errors of rows: numbers of 0 and above", f"{worst}")
        for number, column in enumerate(bits.T):
            counts[number] += np.bincount(column, minlength=_INFINITY + 1)
    return counts


def _summary(
    capture: CaptureReader, counts: NDArray[np.int64], kl: Float64[np.ndarray, " numbers"], temperature: float
) -> Fidelity:
    there = np.flatnonzero(counts)
    rows = np.cumsum(counts[there])
    at = there[np.searchsorted(rows, _rank(int(rows[-1])))]
    mean = float((counts[there] * kl[there]).sum() / rows[-1])
    encoding = capture.encoding
    given = bound_to_source(encoding, temperature) if isinstance(encoding, ErrorBudget) else None
    return Fidelity(
        temperature, encoding.bound(temperature), given, float(kl[there[-1]]), float(kl[at]), mean
    )


def _rank(rows: int) -> int:
    """Return how many of so many rows are at most their 99.9th percentile.

    >>> _rank(1), _rank(1000), _rank(1001), _rank(10_000)
    (1, 1000, 1000, 9991)
    """
    return int(np.ceil(QUANTILE * (rows - 1) - 1e-9)) + 1


def percentile(kl: Float64[np.ndarray, " rows"]) -> float:
    """Return the 99.9th percentile, as in `Fidelity`.

    >>> percentile(np.arange(1000.0))
    999.0
    """
    rank = _rank(len(kl)) - 1
    return float(np.partition(kl, rank)[rank])


def bound_to_source(encoding: ErrorBudget, temperature: float) -> float:
    """Return the guaranteed maximum of KL(given ‖ stored): `max_kl` without the earlier rounding of the source.

    >>> bound_to_source(ErrorBudget(0.02), 2.0) == ErrorBudget(0.02).bound(2.0)
    True
    """
    return float((encoding.epsilon - encoding.source_error) ** 2 / (2 * temperature**2))
