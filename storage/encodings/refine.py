"""The refinement of each row in the transform encoding: the largest step whose decoded row keeps the guarantee.

A row is rounded at step · 2^(−r/2), decoded as a reader does it, and its KL recomputed at every temperature. The KL falls
with the square of the step, so that one trial predicts r and the next proves it. A row that no r serves is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8
from numpy.typing import NDArray

from .basis import Basis
from .products import tiled_product

ESCAPED: Final = 255
"""`refine` of a row that is not written in the basis."""
GUESS: Final = 8
"""`refine` that is tried first; the steps of a basis are chosen so that half of the rows need no more."""
MOST_REFINED: Final = 100
"""The largest `refine` of a row in the basis."""
_MOST_CODE: Final = 32767
"""The largest code that a zigzag of 16 bits holds."""
_MARGIN: Final = 1 - 2**-6
"""Share of the budget that a trial may use: the rest is for float32, here and in other readers."""
_TRIALS: Final = 10
"""Trials of a row, then it is escaped."""
_NEAR: Final = 3
"""Trials of a row that only lost its largest class, each at the next finer step: any other rounding may keep it. Then the
distances double."""
_LEAD: Final = 2.0**-12
"""Distance of the largest logit of a decoded row from the next, nats: readers add in other orders."""
_CACHED: Final = 1 << 16
"""Logits that are compared at a time: their arrays stay in a core's cache."""
_COARSE: Final = 2e-5
"""Budgets from which float32 tells the KL well enough."""


@dataclass
class Refined:
    """Rows in the codes of a basis."""

    codes: Int32[np.ndarray, "rows components"]
    """Signed codes; 0 in an escaped row."""
    refine: UInt8[np.ndarray, " rows"]
    """Steps are divided by √2 as often as this says; 255 for an escaped row."""
    kl: Float64[np.ndarray, "rows temperatures"]
    """KL of each row at each temperature, nats; NaN in an escaped row."""


def step_factor(refine: UInt8[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
    """Return 2^(−r/2), the factor of the steps of each row.

    >>> step_factor(np.array([0, 2, 4], np.uint8)).tolist()
    [1.0, 0.5, 0.25]
    """
    return np.exp2(-refine.astype(np.float64) / 2).astype(np.float32)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # of rows that no basis serves
def refine_rows(
    logits: Float32[np.ndarray, "rows classes"],
    projected: Float32[np.ndarray, "rows components"],
    basis: Basis,
    max_kl: float,
    temperatures: Sequence[float],
) -> Refined:
    """Round rows in a basis, each as coarsely as its budget allows. Inside `one_thread`.

    logits: centred, the largest of each row 0. projected: on the axes of the basis. max_kl: nats, at each of the
    temperatures. The largest class is kept.
    """
    budget, kept = max_kl * _MARGIN, logits.argmax(axis=1)
    exact = Softened(logits, temperatures, np.float32 if max_kl >= _COARSE else np.float64)
    rows, components = projected.shape
    found = Refined(
        np.zeros((rows, components), np.int32),
        np.full(rows, ESCAPED, np.uint8),
        np.full((rows, len(temperatures)), math.nan),
    )
    tried = np.full(rows, GUESS)
    fails, passes = np.full(rows, -1), np.full(rows, MOST_REFINED + 1)
    left, lost = np.arange(rows), np.zeros(rows, np.int64)
    for _ in range(_TRIALS):
        factor = step_factor(tried[left].astype(np.uint8))[:, None] * basis.step
        codes = np.rint(projected[left] / factor)
        decoded = tiled_product(codes * factor, basis.basis)
        decoded += basis.centre
        kl = exact.divergence(left, decoded)
        worst = kl.max(axis=1)
        good = (worst <= budget) & (_lead(decoded, kept[left]) >= _LEAD)
        good &= np.abs(codes).max(axis=1, initial=0) <= _MOST_CODE
        better = left[good]
        found.codes[better], found.refine[better], found.kl[better] = codes[good], tried[better], kl[good]
        passes[better] = tried[better]
        fails[left[~good]] = tried[left[~good]]
        # Halves of the budget that are left (or missing): the steps to go. A row that only lost its largest class has a
        # step of its own to find, near at first.
        halves = np.ceil(np.log2(np.maximum(worst, budget * 2.0**-60) / budget))
        lost[left] += ~good & (worst <= budget)
        go = np.where(
            good,
            halves,
            np.maximum(np.nan_to_num(halves, nan=16, posinf=16), 1 << np.clip(lost[left] - _NEAR, 0, 5)),
        )
        following = np.clip(tried[left] + go, 0, MOST_REFINED).astype(np.int64)
        between = (fails[left] + passes[left]) // 2
        following = np.where((following <= fails[left]) | (following >= passes[left]), between, following)
        is_done = (good & (go >= 0)) | (passes[left] - fails[left] <= 1)
        tried[left] = following
        left = left[~is_done]
        if not len(left):
            break
    return found


def _lead(decoded: Float32[np.ndarray, "rows classes"], kept: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return how far the class of each row that is to be the largest lies above the others; `decoded` is changed."""
    every = np.arange(len(decoded))
    largest = decoded[every, kept]
    decoded[every, kept] = -np.inf
    lead: NDArray[np.float32] = largest - decoded.max(axis=1)
    return lead


class Softened:
    """Rows of logits as probabilities at several temperatures, against which decoded rows are compared.

    The probabilities are computed when they are needed: those of 128 rows of 20,000 classes would not stay in a cache.
    """

    def __init__(
        self,
        logits: Float32[np.ndarray, "rows classes"],
        temperatures: Sequence[float],
        dtype: type[np.floating],
    ) -> None:
        """Keep the logits. logits: centred. dtype: in which errors are computed."""
        self._logits, self._temperatures, self._dtype = logits, temperatures, dtype
        self._lost = float(np.finfo(dtype).eps)

    def divergence(
        self, rows: NDArray[np.int64], decoded: Float32[np.ndarray, "some classes"]
    ) -> Float64[np.ndarray, "some temperatures"]:
        """Compute the KL of some rows at each temperature, nats: ln(1 + E[exp(−d) − 1 + d]) of the centred error d/T.

        What rounding may have lost is added, so that none comes out too small.
        """
        kl = np.empty((len(rows), len(self._temperatures)))
        step = max(1, _CACHED // decoded.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(rows), step):
                exact = self._logits[rows[first : first + step]].astype(self._dtype, copy=False)
                error = exact - decoded[first : first + step]
                for column, temperature in enumerate(self._temperatures):
                    inverse = self._dtype(1 / temperature)
                    p = exact * inverse
                    np.exp(p, out=p)
                    p /= p.sum(axis=1, keepdims=True)
                    d = error - np.einsum("ij,ij->i", p, error)[:, None]
                    d *= inverse
                    powers = np.exp(-d)
                    powers -= 1
                    powers += d
                    sums = np.einsum("ij,ij->i", p, powers).astype(np.float64)
                    kl[first : first + step, column] = np.log1p(np.maximum(sums, 0) + self._lost)
        return np.where(np.isnan(kl), math.inf, kl)
