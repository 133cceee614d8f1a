"""Tallies of the teachers during a capture: accuracy, negative log-likelihood, disagreement.

A wrong preprocessing, or another order of the classes, shows in the first block. Only the rows of this run count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from ...storage.encodings.feature_logits import FeatureLogits, dense, row_slices
from ...storage.encodings.products import TILE
from ...storage.errors import BadLogitsError

STOP_ROWS = 1000
"""Labelled rows after which an accuracy is judged; its standard error is below 0.016 then."""
_PIECE = 1 << 15
"""Logits that are processed together: few enough to stay in the cache."""


@dataclass
class Tally:
    """Counts of one teacher."""

    rows: int = 0
    """Rows with a label."""
    right: int = 0
    """Rows whose label has the largest logit."""
    nats: float = 0.0
    """Sum of the rows' negative log-likelihoods."""
    shown: int = 0
    """Rows of all views, with a label or without."""
    reused: int = 0
    """Rows of these that were taken from an earlier store, and are not counted above."""

    @property
    def accuracy(self) -> float:
        """Share of the labelled rows that are right; NaN before the first."""
        return self.right / self.rows if self.rows else float("nan")

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood in nats; NaN before the first labelled row."""
        return self.nats / self.rows if self.rows else float("nan")

    @property
    def described(self) -> str:
        """The rows that were reused and those that are right, in words; empty without either.

        >>> Tally(rows=50, right=48, nats=6.0, shown=100, reused=50).described
        'reused 50 of 100 rows, 96.00% right, 0.12 nats a row'
        """
        good = f"{self.accuracy:.2%} right, {self.nll:.3g} nats a row" if self.rows else ""
        return ", ".join(filter(None, (self.described_reuse, good)))

    @property
    def described_reuse(self) -> str:
        """The rows that were reused, in words; empty for none.

        >>> Tally(shown=1308, reused=1200).described_reuse
        'reused 1,200 of 1,308 rows'
        """
        return f"reused {self.reused:,} of {self.shown:,} rows" if self.reused else ""


class Quality:
    """Tallies of a pass over the rows."""

    def __init__(self, teachers: Sequence[str], stop_below: float | None = None) -> None:
        """Start from zero. stop_below: the accuracy below which `judge` stops the pass."""
        self.tallies = {name: Tally() for name in teachers}
        """By teacher."""
        self.compared = 0
        """Rows that several teachers were shown."""
        self.disagreed = 0
        """Compared rows of which they do not all predict the same class."""
        self._stop_below = stop_below
        self._at: tuple[int, int] | None = None
        self._first: Int64[np.ndarray, " rows"] | None = None
        self._same: NDArray[np.bool_] | None = None

    def note(
        self,
        teacher: str,
        at: tuple[int, int],
        logits: Float[np.ndarray, "rows classes"] | FeatureLogits,
        labels: Int64[np.ndarray, " rows"],
        *,
        is_whole: bool = True,
    ) -> None:
        """Count the rows of a block. at: (view, block); the teachers of a view follow each other.

        labels: -1 if unknown. Logits that are not finite are not counted; storing them raises the error.
        is_whole: whether the teacher was run on every row; otherwise it is not compared with others.
        """
        predicted = np.empty(len(logits), np.int64)
        right, nats = 0, 0.0
        step = TILE if isinstance(logits, FeatureLogits) else max(1, len(logits))
        for part in row_slices(len(logits), step):
            if isinstance(logits, FeatureLogits) and len(self.tallies) < 2 and (labels[part] < 0).all():
                continue  # nothing is counted: no rows are made
            rows = dense(logits[part]) if isinstance(logits, FeatureLogits) else logits[part]
            some_right, some_nats = _counted(rows, labels[part], predicted[part])
            right, nats = right + some_right, nats + some_nats
        if not np.isfinite(nats):
            return
        tally = self.tallies[teacher]
        tally.rows += int((labels >= 0).sum())
        tally.right += right
        tally.nats += nats
        if is_whole:
            self.compare(at, predicted)

    def note_reuse(self, teacher: str, shown: int, reused: int) -> None:
        """Count rows that a teacher was shown, and those of them that an earlier store holds."""
        self.tallies[teacher].shown += shown
        self.tallies[teacher].reused += reused

    def compare(self, at: tuple[int, int], predicted: Int64[np.ndarray, " rows"]) -> None:
        """Count the rows of a block for which this teacher disagrees with those before it."""
        if len(self.tallies) < 2:
            return
        if at != self._at or self._first is None:
            self._at, self._first, self._same = at, predicted, None
            return
        same = predicted == self._first
        if self._same is None:  # the second teacher
            self.compared += len(same)
            self.disagreed += int((~same).sum())
        else:
            self.disagreed += int((self._same & ~same).sum())
            same &= self._same
        self._same = same

    def judge(self, teacher: str, where: str, *, last: bool = False) -> None:
        """Raise BadLogitsError for a teacher below `stop_below`. last: whether no more rows come."""
        tally = self.tallies[teacher]
        if self._stop_below is None or not tally.rows or not (tally.rows >= STOP_ROWS or last):
            return
        if tally.accuracy < self._stop_below:
            raise BadLogitsError(
                f"{where}: accuracy on the first {tally.rows:,} labelled rows",
                expected=f"at least {self._stop_below:g} (--stop-below)",
                found=f"{tally.accuracy:.4g}, {tally.nll:.3g} nats a row",
                remedy="look at its weights, the preprocessing of its inputs and the order of its classes, or lower "
                "--stop-below: what is committed stays, and the same command goes on with it",
            )

    @property
    def detail(self) -> str:
        """The tallies in a few words, for progress; empty before the first labelled row."""
        every = self.tallies.values()
        parts = [
            Tally(shown=sum(t.shown for t in every), reused=sum(t.reused for t in every)).described_reuse
        ]
        parts += [
            f"{name} {tally.accuracy:.2%} right, {tally.nll:.3g} nats"
            for name, tally in self.tallies.items()
            if tally.rows
        ]
        if self.compared:
            parts.append(f"they disagree on {self.disagreed / self.compared:.2%}")
        return ", ".join(filter(None, parts))


def _counted(
    logits: Float[np.ndarray, "rows classes"],
    labels: Int64[np.ndarray, " rows"],
    predicted: Int64[np.ndarray, " rows"],
) -> tuple[int, float]:
    """Fill in the predictions of some rows; return how many are right, and their negative log-likelihood."""
    right, nats, step = 0, 0.0, max(1, _PIECE // max(1, logits.shape[1]))
    buffer = np.empty((min(step, len(logits)), logits.shape[1]), np.float32)
    for start in range(0, len(logits), step):
        part, label = logits[start : start + step], labels[start : start + step]
        predicted[start : start + step] = best = part.argmax(axis=1)
        known = np.flatnonzero(label >= 0)
        if not len(known):
            continue
        below, label = buffer[: len(part)], label[known]
        with np.errstate(all="ignore"):
            np.subtract(part, part[np.arange(len(part)), best][:, None], out=below, dtype=np.float32)
            of_label = below[known, label]
            log_sum = np.log(np.exp(below, out=below).sum(axis=1))
        right += int((best[known] == label).sum())
        nats += float((log_sum[known] - of_label).sum(dtype=np.float64))
    return right, nats
