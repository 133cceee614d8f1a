"""The division of an epoch into batches, equally many for every rank.

1. `BatchCut` is arithmetic: the rows of a rank's n-th batch, from a number of rows, a batch size and a world size.
2. `EpochPlan` applies it to what remains of one order, `RankPlan` to one rank's slice of that.
3. `plan_epoch` plans one order. Each row comes once, and the last batches are smaller.
4. `plan_strata` plans several. Each batch holds a fixed number of rows of each stratum. The epoch passes once over the
   stratum that lasts longest and repeats the others.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from ..checks import rows_by_share
from .intervals import Interval, Remainder, WindowShare
from .order import RepeatedOrder, WindowedOrder


@dataclass(frozen=True)
class BatchCut:
    """Division of a number of rows into batches of ranks.

    All batches are full but the last two of each rank. If a rank has one row less than another, its last two are
    smaller, so that neither is empty. A batch is empty only if fewer rows than ranks remain or the batch size is 1.

    >>> BatchCut(11, batch_size=4, world_size=2).count
    2
    """

    total: int
    """Rows of all ranks together."""
    batch_size: int
    """Rows of a full batch of one rank."""
    world_size: int
    """Ranks."""
    drop_last: bool = False
    """Whether batches that are not full on every rank are left out."""

    @cached_property
    def count(self) -> int:
        """Batches of each rank."""
        if self.drop_last:
            return self.total // self.world_size // self.batch_size
        largest = -(-self.total // self.world_size)
        return -(-largest // self.batch_size)

    def rank_rows(self, rank: int) -> tuple[int, int]:
        """Return the half-open interval of a rank's rows, by number among all.

        >>> [BatchCut(9, batch_size=4, world_size=2).rank_rows(rank) for rank in (0, 1)]
        [(0, 4), (4, 9)]
        """
        return self.total * rank // self.world_size, self.total * (rank + 1) // self.world_size

    def consumed(self, rank: int, batches: int) -> int:
        """Return the number of rows in the first `batches` batches of a rank.

        >>> cut = BatchCut(9, batch_size=4, world_size=2)
        >>> [cut.consumed(0, n) for n in range(3)], [cut.consumed(1, n) for n in range(3)]
        ([0, 3, 4], [0, 4, 5])
        """
        if self.drop_last or batches <= self.count - 2:
            return batches * self.batch_size
        first, last = self.rank_rows(rank)
        done = min(batches, max(0, self.count - 2)) * self.batch_size
        for batch in range(max(0, self.count - 2), batches):
            later = self.count - batch - 1
            remaining = last - first - done
            done += max(min(self.batch_size, remaining - later), min(1, remaining))
        return done


@dataclass(frozen=True)
class BatchSlice:
    """Rows of a batch from one window: numbers start … stop - 1 of a window share, by draw."""

    share: int
    """Index in `RankPlan.shares`."""
    start: int
    """Number of the first row."""
    stop: int
    """Number after the last."""


class RankPlan:
    """The windows of one rank, and the slices of them that make each batch."""

    def __init__(self, remainder: Remainder, cut: BatchCut, rank: int) -> None:
        """Cut the remaining rows of all ranks to those of one rank."""
        self._cut = cut
        self._rank = rank
        self.remainder = remainder.cut(*cut.rank_rows(rank))
        """The rank's rows."""

    @property
    def shares(self) -> list[WindowShare]:
        """The rank's rows window by window."""
        return self.remainder.shares

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(share.rows for share in self.shares))

    def batch(self, number: int) -> list[BatchSlice]:
        """Return the slices of a batch."""
        start, stop = self._cut.consumed(self._rank, number), self._cut.consumed(self._rank, number + 1)
        slices = []
        share = bisect_right(self._ends, start)
        while start < stop:
            first = self._ends[share] - self.shares[share].rows
            end = min(stop, self._ends[share])
            slices.append(BatchSlice(share, start - first, end - first))
            start, share = end, share + 1
        return slices

    def after(self, batches: int) -> Sequence[Interval]:
        """Return the rows that remain after a number of batches."""
        return self.remainder.after(self._cut.consumed(self._rank, batches)).intervals


class EpochPlan:
    """The batches of all ranks from one order, from the current state on."""

    def __init__(
        self, order: WindowedOrder, remainder: Remainder, cut: BatchCut, reserve: Sequence[Interval] = ()
    ) -> None:
        """Plan batches; `reserve` are rows that remain and belong to no batch of this epoch."""
        self.order = order
        """The order."""
        self.cut = cut
        """Its division into batches."""
        self._remainder = remainder
        self._reserve = reserve
        self._ranks: dict[int, RankPlan] = {}

    def rank(self, rank: int) -> RankPlan:
        """Return the plan of a rank."""
        if rank not in self._ranks:
            self._ranks[rank] = RankPlan(self._remainder, self.cut, rank)
        return self._ranks[rank]

    def after(self, batches: int) -> list[Interval]:
        """Return the rows that remain after a number of batches of every rank."""
        ranks = range(self.cut.world_size)
        return [interval for rank in ranks for interval in self.rank(rank).after(batches)] + [*self._reserve]


def plan_epoch(
    order: WindowedOrder, intervals: Sequence[Interval], batch_size: int, world_size: int, drop_last: bool
) -> EpochPlan:
    """Plan the remaining intervals of one order, each row once."""
    remainder = Remainder(order, intervals)
    return EpochPlan(order, remainder, BatchCut(remainder.total, batch_size, world_size, drop_last))


@dataclass(frozen=True)
class Stratum:
    """The state of all ranks in one of several strata."""

    order: RepeatedOrder
    """Its rows, repeatedly."""
    share: float
    """Its share of each batch, relative to the others."""
    intervals: tuple[Interval, ...]
    """Rows that remain before `reached`."""
    reached: int
    """Positions that belong to the epoch so far."""

    @property
    def duration(self) -> float:
        """How long one repetition lasts, in rows of batches."""
        return self.order.period / self.share


def plan_strata(
    strata: Sequence[Stratum], batch_size: int, world_size: int, drop_last: bool
) -> tuple[list[EpochPlan], list[int]]:
    """Plan each stratum in full batches; return the plans and the positions that each will have reached.

    Raises ConfigError if a batch has no row of a stratum.
    """
    sizes = rows_by_share(batch_size, [stratum.share for stratum in strata])
    longest = max(range(len(strata)), key=lambda number: (strata[number].duration, -number))
    period = strata[longest].order.period
    first_pass = [
        replace(interval, stop=min(interval.stop, period))
        for interval in strata[longest].intervals
        if interval.start < period
    ]
    needed = Remainder(strata[longest].order, first_pass).total
    step = sizes[longest] * world_size
    count = needed // step if drop_last else -(-needed // step)
    plans, reached = [], []
    for stratum, size in zip(strata, sizes, strict=True):
        remainder, total = Remainder(stratum.order, stratum.intervals), count * size * world_size
        have, end = remainder.total, stratum.reached
        if have < total:
            remainder = Remainder(stratum.order, [*stratum.intervals, Interval(end, end + total - have)])
            end += total - have
        reserve = remainder.cut(total, max(have, total)).intervals
        cut = BatchCut(total, size, world_size)
        plans.append(EpochPlan(stratum.order, remainder.cut(0, total), cut, reserve))
        reached.append(end)
    return plans, reached
