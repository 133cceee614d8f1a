"""The rows of an epoch that remain, as intervals, and their division over ranks.

    positions   0 ─────────────────────────────────────────── len - 1
    windows     └─────0─────┘└─────1─────┘└─────2─────┘└──3──┘
    ranks       ├───────── 0 ─────────┼───────── 1 ──────────┤     world_size = 2
    remaining            ░░░░░████████            ░░░░░░█████      █ all rows, ░ those not drawn yet

1. An interval holds the rows at positions start … stop − 1 whose draw is not before `first_draw`. An epoch begins as
   one interval.
2. Ranks take equal slices of the remaining rows, by position. Two ranks share at most one chunk run.
3. A rank passes over its slice window by window, in each by draw.
4. After n batches of every rank, its slice is again a few intervals. Those of all ranks are the state of the stream.

The state is the same on every rank. Any number of ranks with any batch size resumes from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from .order import WindowedOrder


@dataclass(frozen=True)
class Interval:
    """Rows at positions start … stop - 1 whose draw is `first_draw` or later."""

    start: int
    """First position."""
    stop: int
    """Position after the last."""
    first_draw: int = 0
    """Earlier draws are done. Unless it is 0, the interval lies in one window."""


@dataclass(frozen=True)
class WindowShare:
    """Rows of one window that a rank takes."""

    window: int
    """The window."""
    intervals: tuple[Interval, ...]
    """By position, all in the window."""
    rows: int
    """Number of rows."""


class Remainder:
    """Rows of an epoch that remain: all of them, or those of a rank."""

    def __init__(self, order: WindowedOrder, intervals: Sequence[Interval]) -> None:
        """Hold intervals, disjoint and by position."""
        self._order = order
        self.intervals = tuple(interval for interval in intervals if interval.start < interval.stop)
        """The rows."""

    @cached_property
    def _counts(self) -> list[int]:
        return [self._count(interval) for interval in self.intervals]

    @property
    def total(self) -> int:
        """Number of rows."""
        return sum(self._counts)

    def _positions(self, interval: Interval) -> Int64[np.ndarray, " rows"] | None:
        """Return the positions of an interval that remain, ascending; None for all."""
        window = self._order.window_at(interval.start)
        first, _ = self._order.window_interval(window)
        if interval.first_draw <= first:
            return None
        positions = self._order.permutation(window)[interval.first_draw - first :] + first
        return np.sort(positions[(positions >= interval.start) & (positions < interval.stop)])

    def _count(self, interval: Interval) -> int:
        positions = self._positions(interval)
        return interval.stop - interval.start if positions is None else len(positions)

    def cut(self, first: int, last: int) -> "Remainder":
        """Return rows number first … last - 1 of these, by position."""
        cut, before = [], 0
        for interval, count in zip(self.intervals, self._counts, strict=True):
            low, high = max(first - before, 0), min(last - before, count)
            if low < high:
                cut.append(self._cut(interval, low, high, count))
            before += count
        return Remainder(self._order, cut)

    def _cut(self, interval: Interval, low: int, high: int, count: int) -> Interval:
        positions = self._positions(interval)
        if positions is None:
            return replace(interval, start=interval.start + low, stop=interval.start + high)
        start = int(positions[low]) if low else interval.start
        stop = int(positions[high]) if high < count else interval.stop
        return replace(interval, start=start, stop=stop)

    @cached_property
    def shares(self) -> list[WindowShare]:
        """The rows window by window."""
        by_window: dict[int, list[Interval]] = {}
        for interval in self.intervals:
            start = interval.start
            while start < interval.stop:
                window = self._order.window_at(start)
                end = min(interval.stop, self._order.window_interval(window)[1])
                by_window.setdefault(window, []).append(replace(interval, start=start, stop=end))
                start = end
        shares = (
            WindowShare(w, tuple(parts), sum(map(self._count, parts))) for w, parts in by_window.items()
        )
        return [share for share in shares if share.rows]

    def draws(self, share: WindowShare) -> Int64[np.ndarray, " rows"]:
        """Return the draws of a share's rows, ascending, counted from the window's first."""
        first, stop = self._order.window_interval(share.window)
        if share.rows == stop - first:
            return np.arange(share.rows, dtype=np.int64)
        # The first draw that remains at each position; positions of other ranks have none.
        first_draws = np.full(stop - first, stop - first, dtype=np.int64)
        for interval in share.intervals:
            first_draws[interval.start - first : interval.stop - first] = interval.first_draw - first
        permutation = self._order.permutation(share.window)
        return np.flatnonzero(np.arange(stop - first) >= first_draws[permutation]).astype(np.int64)

    def after(self, taken: int) -> "Remainder":
        """Return the rows that remain once `taken` rows are taken, by window and draw."""
        remaining: list[Interval] = []
        for share in self.shares:
            if taken >= share.rows:
                taken -= share.rows
            elif taken:
                first, _ = self._order.window_interval(share.window)
                draw = first + int(self.draws(share)[taken])
                remaining += [replace(i, first_draw=max(i.first_draw, draw)) for i in share.intervals]
                taken = 0
            else:
                remaining += share.intervals
        return Remainder(self._order, _joined(remaining))


def _joined(intervals: Sequence[Interval]) -> list[Interval]:
    """Join neighbours of which nothing is drawn."""
    joined: list[Interval] = []
    for interval in intervals:
        last = joined[-1] if joined else None
        if last and last.stop == interval.start and not last.first_draw and not interval.first_draw:
            joined[-1] = replace(last, stop=interval.stop)
        else:
            joined.append(interval)
    return joined
