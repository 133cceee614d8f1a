"""Mixup: views that mix a row with another one, both recomputed from the same random numbers.

`mixup` gives share · input + (1 - share) · partner. Share and partner follow from the raw words of the row's generator,
so from (seed, view, row), and from the number of rows of the store. The teacher is run on the mixture and the student
gets the same one: its soft target is the teacher's answer to it, no mixture of two answers (Beyer et al. 2022, section
3: teacher and student see consistent inputs, and "aggressive" mixup pays).

A mixture has no label. Batches carry the label of the row itself, so what learns from labels is refused; `partners` and
`shares` say what a mixture is made of, for who wants to mix labels in a loop of their own.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray

from ...storage.errors import ConfigError
from .versions import source_version

_WHERE: Final = "augmentation mixup"
_CELLS: Final = 4096
"""Shares are drawn from the middles of so many equal cells of 0 … 1."""
_WHOLE: Final = 2 * _CELLS
"""Shares are whole numbers of 8192nds: exact in float32, and in whole numbers of 32 bits with a uint8."""
_AT_A_TIME: Final = 1 << 18
"""Bytes of inputs that are mixed at a time: what stays in a cache, with its sums."""
_LARGEST_ALPHA: Final = 1000.0


@dataclass(frozen=True)
class Mixup:
    """Mixes each input with that of another row."""

    alpha: float = 1.0
    """The share is drawn from Beta(alpha, alpha); 1 draws it uniformly."""
    among: int = 1024
    """A partner is one of so many neighbouring rows of the store."""

    num_words = 2

    def partners(
        self, rows: Int64[np.ndarray, " rows"], words: UInt64[np.ndarray, "rows 2"], num_rows: int
    ) -> Int64[np.ndarray, " rows"]:
        """Return the partner of each row: another row of the same group, each equally likely.

        Groups are the `among` rows from 0, from `among`, …; the last rows of a store choose among its last `among`.
        The only row of a store is its own partner.
        """
        size = min(self.among, num_rows)
        first: NDArray[np.int64] = np.minimum(rows // size * size, num_rows - size)
        if size == 1:
            return first
        drawn: NDArray[np.int64] = first + (words[:, 0] % np.uint64(size - 1)).astype(np.int64)
        drawn += drawn >= rows
        return drawn

    def shares(self, words: UInt64[np.ndarray, "rows 2"]) -> Int64[np.ndarray, " rows"]:
        """Return the weight of each row's own input in its mixture, in 8192nds."""
        cells: NDArray[np.int64] = np.searchsorted(_beta_cells(self.alpha), words[:, 1], side="right")
        return 2 * cells + 1

    def of_pairs(
        self, inputs: NDArray[Any], partners: NDArray[Any], words: NDArray[np.uint64]
    ) -> NDArray[Any]:
        """Return the mixtures (rows, …): floats, or uint8 rounded to the nearest."""
        if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
            raise ConfigError(
                _WHERE,
                expected="inputs of uint8 or of floats",
                found=f"inputs of {inputs.dtype}",
                remedy="cast them in the data set, or choose another augmentation",
            )
        shares = self.shares(words).reshape(-1, *(1,) * (inputs.ndim - 1))
        made = np.empty_like(inputs, order="C")
        step = max(1, _AT_A_TIME // max(1, inputs[:1].nbytes))
        for start in range(0, len(inputs), step):
            part = slice(start, start + step)
            made[part] = _mixture(inputs[part], partners[part], shares[part])
        return made


@source_version("mixup 1")
def mixup(alpha: float = 1.0, among: int = 1024) -> Mixup:
    """Make an augmentation that mixes each input with that of another row.

    alpha: of the Beta(alpha, alpha) that shares are drawn from, above 0 and at most 1000; 1 is uniform, the choice of
    Beyer et al. among: a partner is one of this many neighbouring rows of the store, ≥ 2. Shuffled rows are a fair
    sample wherever one looks, and neighbours lie in the same files; a store whose rows are in the order of their set
    takes as many as it has rows.
    Raises ConfigError for other numbers.
    Source: Zhang et al. 2018, "mixup: beyond empirical risk minimization"; Beyer et al. 2022.

    >>> from logitstore.storage.random import raw_words
    >>> words = raw_words(0, 1, np.array([0, 1, 2]), 2)
    >>> mixup(among=3).partners(np.array([0, 1, 2]), words, num_rows=100).tolist()
    [1, 0, 1]
    """
    if not (math.isfinite(alpha) and 0 < alpha <= _LARGEST_ALPHA):
        raise ConfigError(
            _WHERE,
            expected=f"alpha above 0 and at most {_LARGEST_ALPHA:g}",
            found=str(alpha),
            remedy="correct alpha; 1 is uniform",
        )
    if among < 2:
        raise ConfigError(
            _WHERE, expected="among of 2 or more rows", found=str(among), remedy="correct among"
        )
    return Mixup(alpha, among)


def _mixture(own: NDArray[Any], other: NDArray[Any], shares: NDArray[np.int64]) -> NDArray[Any]:
    """Mix two inputs by two products and a sum, each rounded by itself: the same bits on every machine."""
    if own.dtype == np.uint8:  # in whole numbers
        left = shares.astype(np.uint32)
        sums = own * left
        sums += other * (np.uint32(_WHOLE) - left)
        sums += np.uint32(_WHOLE // 2)
        sums //= np.uint32(_WHOLE)
        return sums
    exact = (shares / _WHOLE).astype(np.promote_types(own.dtype, np.float32))
    mixed: NDArray[Any] = own * exact
    mixed += other * (1 - exact)
    return mixed


@lru_cache(maxsize=8)
def _beta_cells(alpha: float) -> NDArray[np.uint64]:
    """Compute the 64-bit thresholds between cells of 0 … 1 that make each cell as likely as under Beta.

    In decimal arithmetic, whose logarithm and exponential are rounded correctly: a table made by a library of another
    machine would differ in its last bits, and a share with it, once in a while.
    """
    with localcontext() as context:
        context.prec = 40
        a = Decimal(alpha)
        # t^(α-1) is integrated over a cell, since it may have no bound at 0; (1-t)^(α-1) is smooth there.
        powers = [Decimal(0)] + [((Decimal(j) / _CELLS).ln() * a).exp() for j in range(1, _CELLS // 2 + 1)]
        left = [
            (powers[j + 1] - powers[j]) * ((1 - Decimal(2 * j + 1) / _WHOLE).ln() * (a - 1)).exp()
            for j in range(_CELLS // 2)
        ]
        cells = [*left, *reversed(left)]
        scale, below, ends = Decimal(2**64) / sum(cells), Decimal(0), []
        for cell in cells[:-1]:
            below += cell
            ends.append(min(int(below * scale), 2**64 - 1))
    return np.array(ends, dtype=np.uint64)
