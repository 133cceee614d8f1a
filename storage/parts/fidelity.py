"""How far is an encoded capture from the logits that it was made from, as its own records tell?

Every row of an encoded capture has an `error`, measured when it was written: T·√(2·KL) at some temperatures, as float16.
A float16 that is not negative is one of 31,745 numbers, so that a count of each gives the mean, the maximum and any
quantile of the KL exactly, block by block, without a logit being read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64, UInt16
from numpy.typing import NDArray

from ..encodings.divergence import kl_of_error
from ..encodings.error_budget import ErrorBudget
from ..format.constants import TEMPERATURES
from ..format.documents import invalid
from .reader import CaptureReader

QUANTILE: Final = 0.999
"""The quantile that is shown: KL of one row in a thousand is larger."""


_INFINITY: Final = 0x7C00
"""Bits of float16's infinity; those of NaN and of negative numbers are larger."""


@dataclass(frozen=True)
class Fidelity:
    """KL of the rows of an encoded capture at one temperature, in nats."""

    temperature: float
    """T, natural-log units."""
    bound: float | None
    """KL(teacher ‖ stored) that no row exceeds; None where nothing is guaranteed."""
    bound_to_source: float | None
    """KL(given ‖ stored) that no row exceeds. Given: the capture that it was made from, or the teacher's own logits."""
    max: float
    """KL(given ‖ stored) of the worst row, as measured."""
    p999: float
    """Its 99.9th percentile over rows and views (of a row that there is, the larger of two neighbours)."""
    mean: float
    """Its mean over rows and views."""


def fidelity(capture: CaptureReader) -> tuple[Fidelity, ...]:
    """What the records of a capture say, for each temperature; nothing where it has none (float16, float32).

    Raises ShardMissing, ShardCorrupt, or ManifestInvalid for numbers that are no error.
    """
    if "error" not in capture.part.layouts:
        return ()
    counts = _counts(capture)
    values = np.arange(_INFINITY + 1, dtype=np.uint16).view(np.float16)
    kl = kl_of_error(np.repeat(values[:, None], len(TEMPERATURES), axis=1))
    return tuple(_summary(capture, counts[i], kl[:, i], t) for i, t in enumerate(TEMPERATURES))


def _counts(capture: CaptureReader) -> Int64[np.ndarray, "temperatures numbers"]:
    """How often each float16 stands in `error`, by temperature."""
    counts = np.zeros((len(TEMPERATURES), _INFINITY + 1), np.int64)
    for bits in _errors(capture):
        if bits.max(initial=0) > _INFINITY:
            where = f"{capture.part.folder.path}/error"
            raise invalid(where, "errors of rows: numbers that are not negative", "others")
        for number, column in enumerate(bits.T):
            counts[number] += np.bincount(column, minlength=_INFINITY + 1)
    return counts


def _errors(capture: CaptureReader) -> Iterator[UInt16[np.ndarray, "rows temperatures"]]:
    grid = capture.reader.grid
    for view in range(capture.num_views):
        for block in range(grid.num_blocks):
            yield capture.reader.read("error", grid.rows(block), view).view(np.uint16)


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
    """How many rows are not larger than the 99.9th percentile of so many.

    >>> _rank(1), _rank(1000), _rank(1001), _rank(10_000)
    (1, 1000, 1000, 9991)
    """
    return int(np.ceil(QUANTILE * (rows - 1) - 1e-9)) + 1


def percentile(kl: Float64[np.ndarray, " rows"]) -> float:
    """The 99.9th percentile as `Fidelity` has it.

    >>> percentile(np.arange(1000.0))
    999.0
    """
    rank = _rank(len(kl)) - 1
    return float(np.partition(kl, rank)[rank])


def bound_to_source(encoding: ErrorBudget, temperature: float) -> float:
    """KL(given ‖ stored) that no row exceeds: without what was rounded before, which is a part of `max_kl`.

    >>> bound_to_source(ErrorBudget(0.02), 2.0) == ErrorBudget(0.02).bound(2.0)
    True
    """
    return float((encoding.epsilon - encoding.source_error) ** 2 / (2 * temperature**2))
