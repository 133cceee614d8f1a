"""Mixup and cutmix: views that mix a row with another one, both recomputed from the same random numbers.

`mixup` returns share · input + (1 - share) · partner. `cutmix` replaces a box of an image by that of its partner. Share,
box and partner follow from the raw words of the row's generator, so from (seed, view, row), and from the number of rows of
the store. Teacher and student get the same mixture
(Beyer et al. 2022, section 3: consistent inputs and "aggressive" mixup). The soft target is the teacher's output for
the mixture, not a mixture of two outputs.

A mixture has no label. Batches carry the label of the row itself, so losses of labels are refused. To mix labels in your
own loop, call `partners` and `shares`; for `cutmix`, `partners` and `pixels`.
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
"""Shares are drawn from the middles of this many equal cells of 0 … 1."""
_WHOLE: Final = 2 * _CELLS
"""Shares are multiples of 1/8192: exact in float32, and for uint8 in 32-bit integers."""
_AT_A_TIME: Final = 1 << 18
"""Bytes of inputs that are mixed at a time, so that they and their sums fit a cache."""
_LARGEST_ALPHA: Final = 1000.0


@dataclass(frozen=True)
class _Mixture:
    """The draws of both mixtures: the partner of a row by its first word, its own share by the second."""

    alpha: float = 1.0
    """The share of the row itself is drawn from Beta(alpha, alpha), which is uniform for 1."""
    among: int = 1024
    """Number of neighbouring rows of the store among which a partner is drawn."""

    def partners(
        self, rows: Int64[np.ndarray, " rows"], words: UInt64[np.ndarray, "rows words"], num_rows: int
    ) -> Int64[np.ndarray, " rows"]:
        """Return the partner of each row: another row of the same group, each equally likely.

        Groups are the `among` rows from 0, from `among`, …; the last rows draw among the last `among` of the store.
        In a store of one row, the row is its own partner.
        """
        size = min(self.among, num_rows)
        first: NDArray[np.int64] = np.minimum(rows // size * size, num_rows - size)
        if size == 1:
            return first
        drawn: NDArray[np.int64] = first + (words[:, 0] % np.uint64(size - 1)).astype(np.int64)
        drawn += drawn >= rows
        return drawn

    def _shares(self, words: UInt64[np.ndarray, "rows words"]) -> Int64[np.ndarray, " rows"]:
        """Return the share of each row, in units of 1/8192."""
        cells: NDArray[np.int64] = np.searchsorted(_beta_cells(self.alpha), words[:, 1], side="right")
        return 2 * cells + 1


@dataclass(frozen=True)
class Mixup(_Mixture):
    """Mixes each input with that of another row."""

    num_words = 2

    def shares(self, words: UInt64[np.ndarray, "rows 2"]) -> Int64[np.ndarray, " rows"]:
        """Return the weight of each row's own input in its mixture, in units of 1/8192."""
        return self._shares(words)

    def of_pairs(
        self, inputs: NDArray[Any], partners: NDArray[Any], words: NDArray[np.uint64]
    ) -> NDArray[Any]:
        """Return the mixtures (rows, …): floats, or uint8 rounded to the nearest."""
        if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
            raise ConfigError(
                _WHERE,
                expected="inputs of uint8 or float",
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


@dataclass(frozen=True)
class Cutmix(_Mixture):
    """Replaces a box of each image by the same box of another row's."""

    num_words = 4

    def boxes(
        self, words: UInt64[np.ndarray, "rows 4"], height: int, width: int
    ) -> Int64[np.ndarray, "rows 4"]:
        """Return the box of each image that is the partner's: first row, row behind it, first column, column behind it.

        Its sides are those of the image, times the root of the partner's share. Its centre is drawn uniformly from the
        pixels, and the box is clipped at the borders.
        """
        sides = np.sqrt((_WHOLE - self._shares(words)) / _WHOLE)  # a correctly rounded root
        made = np.empty((len(words), 4), np.int64)
        for place, (length, drawn) in enumerate(((height, words[:, 2]), (width, words[:, 3]))):
            side = (sides * length).astype(np.int64)
            first = (drawn % np.uint64(length)).astype(np.int64) - side // 2
            made[:, 2 * place] = np.clip(first, 0, length)
            made[:, 2 * place + 1] = np.clip(first + side, 0, length)
        return made

    def pixels(
        self, words: UInt64[np.ndarray, "rows 4"], height: int, width: int
    ) -> Int64[np.ndarray, " rows"]:
        """Return the number of pixels of each mixture that are the row's own, of height · width."""
        top, bottom, left, right = self.boxes(words, height, width).T
        own: NDArray[np.int64] = height * width - (bottom - top) * (right - left)
        return own

    def of_pairs(
        self, inputs: NDArray[Any], partners: NDArray[Any], words: NDArray[np.uint64]
    ) -> NDArray[Any]:
        """Return the mixtures of images (rows, …, height, width) of any dtype."""
        if inputs.ndim < 3 or not math.prod(inputs.shape[-2:]):
            raise ConfigError(
                "augmentation cutmix",
                expected="inputs of shape (…, height, width)",
                found=f"inputs of shape {inputs.shape[1:]}",
                remedy="choose another augmentation, such as mixup",
            )
        made = inputs.copy(order="C")
        boxes = self.boxes(words, *inputs.shape[-2:]).tolist()
        for view, partner, (top, bottom, left, right) in zip(made, partners, boxes, strict=True):
            view[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
        return made


@source_version("mixup 1")
def mixup(alpha: float = 1.0, among: int = 1024) -> Mixup:
    """Make an augmentation that mixes each input with that of another row.

    alpha: of the Beta(alpha, alpha) of the shares, above 0 and at most 1000; 1 is uniform, as in Beyer et al.
    among: number of neighbouring rows, ≥ 2, among which a partner is drawn. Neighbours lie in the same files, and
    in a shuffled store they are a random sample. For unshuffled rows pass the number of rows of the store.
    Raises ConfigError for other numbers.
    Source: Zhang et al. 2018, "mixup: beyond empirical risk minimization"; Beyer et al. 2022.

    >>> from logitstore.storage.random import raw_words
    >>> words = raw_words(0, 1, np.array([0, 1, 2]), 2)
    >>> mixup(among=3).partners(np.array([0, 1, 2]), words, num_rows=100).tolist()
    [1, 0, 1]
    """
    _check_arguments(alpha, among, "augmentation mixup")
    return Mixup(alpha, among)


@source_version("cutmix 1")
def cutmix(alpha: float = 1.0, among: int = 1024) -> Cutmix:
    """Make an augmentation that replaces a box of each image by that of another row's.

    alpha: of the Beta(alpha, alpha) of the share of the row's own pixels, above 0 and at most 1000; 1 is uniform, as in
    Yun et al. among: number of neighbouring rows, ≥ 2, among which a partner is drawn, as for `mixup`.
    Inputs are images whose last two axes are height and width. Raises ConfigError for other numbers.
    Source: Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers with localizable features".

    >>> from logitstore.storage.random import raw_words
    >>> words = raw_words(0, 1, np.array([4]), 4)
    >>> cutmix().of_pairs(np.zeros((1, 3, 4), np.uint8), np.ones((1, 3, 4), np.uint8), words).shape
    (1, 3, 4)
    """
    _check_arguments(alpha, among, "augmentation cutmix")
    return Cutmix(alpha, among)


def _check_arguments(alpha: float, among: int, where: str) -> None:
    """Refuse numbers out of range. Raises ConfigError."""
    if not (math.isfinite(alpha) and 0 < alpha <= _LARGEST_ALPHA):
        raise ConfigError(
            where,
            expected=f"alpha above 0 and at most {_LARGEST_ALPHA:g}",
            found=str(alpha),
            remedy="correct alpha; 1 is uniform",
        )
    if among < 2:
        raise ConfigError(where, expected="among of 2 or more", found=str(among), remedy="correct among")


def _mixture(own: NDArray[Any], other: NDArray[Any], shares: NDArray[np.int64]) -> NDArray[Any]:
    """Mix two inputs by two products and a sum, each rounded separately: the same bits on every machine."""
    if own.dtype == np.uint8:  # integer arithmetic
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
    """Compute the 64-bit thresholds that draw each cell of 0 … 1 with its probability under Beta.

    `decimal` rounds logarithm and exponential correctly. Another math library would differ in the last bits of a
    threshold, and so in an occasional share.
    """
    with localcontext() as context:
        context.prec = 40
        a = Decimal(alpha)
        # t^(α-1) may be unbounded at 0, so it is integrated over a cell; (1-t)^(α-1) is smooth there.
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
