"""How is what is left of an epoch cut into batches, of every rank equally many?

1. `Batches` is arithmetic: so many rows, a batch size, a world; which rows of a rank's stretch is its n-th batch?
2. A `Course` is the way through one order: what is left of it (pieces), cut so.
3. Of one order (`whole_course`) the last batches are smaller, so that each row comes once.
4. Of several strata (`mixed_courses`) each batch holds a fixed number of rows of each. The epoch goes once through the
   stratum that lasts longest; the others begin again when they are through, as often as it takes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..checks import rows_by_share
from .order import Laps, Windows
from .pieces import Left, Piece, Portion


@dataclass(frozen=True)
class Batches:
    """How a rank's rows are cut into batches; every rank gets equally many.

    All are full but the last two: where the ranks' stretches differ by a row, the rank that has
    fewer makes them smaller, so that each holds something. Only where fewer rows are left than there are
    ranks, or where batches are of one row, is a batch empty.
    """

    total: int
    """Rows that all ranks together have left."""
    batch_size: int
    """Rows a full batch of one rank."""
    world_size: int
    """Ranks."""
    drop_last: bool = False
    """Whether a batch that is not full on every rank is left out."""

    @property
    def count(self) -> int:
        """Batches of each rank.

        >>> Batches(11, batch_size=4, world_size=2).count
        2
        """
        if self.drop_last:
            return self.total // self.world_size // self.batch_size
        largest = -(-self.total // self.world_size)
        return -(-largest // self.batch_size)

    def stretch(self, rank: int) -> tuple[int, int]:
        """The rows of a rank, of all that are left.

        >>> [Batches(9, batch_size=4, world_size=2).stretch(rank) for rank in (0, 1)]
        [(0, 4), (4, 9)]
        """
        return self.total * rank // self.world_size, self.total * (rank + 1) // self.world_size

    def consumed(self, rank: int, batches: int) -> int:
        """Rows in the first `batches` batches of a rank.

        >>> cut = Batches(9, batch_size=4, world_size=2)
        >>> [cut.consumed(0, n) for n in range(3)], [cut.consumed(1, n) for n in range(3)]
        ([0, 3, 4], [0, 4, 5])
        """
        first, last = self.stretch(rank)
        if self.drop_last:
            return batches * self.batch_size
        done = min(batches, max(0, self.count - 2)) * self.batch_size
        for batch in range(max(0, self.count - 2), batches):
            left_after = self.count - batch - 1
            remaining = last - first - done
            done += max(min(self.batch_size, remaining - left_after), min(1, remaining))
        return done


@dataclass(frozen=True)
class Slice:
    """Some rows of a batch: those from number `start` of a portion up to `stop`, by turns."""

    portion: int
    start: int
    stop: int


class Way:
    """What one rank goes through: the windows of its stretch, and what of each comes in which batch."""

    def __init__(self, left: Left, batches: Batches, rank: int) -> None:
        self._batches = batches
        self._rank = rank
        self.left = left.cut(*batches.stretch(rank))
        """The rank's stretch."""
        self._ends = list(accumulate(portion.rows for portion in self.left.portions))

    @property
    def portions(self) -> list[Portion]:
        """Its windows, or what it takes of them, in order."""
        return self.left.portions

    def batch(self, number: int) -> list[Slice]:
        """What makes up a batch."""
        start, stop = (self._batches.consumed(self._rank, n) for n in (number, number + 1))
        slices = []
        portion = bisect_right(self._ends, start)
        while start < stop:
            first = self._ends[portion] - self.portions[portion].rows
            end = min(stop, self._ends[portion])
            slices.append(Slice(portion, start - first, end - first))
            start, portion = end, portion + 1
        return slices

    def after(self, batches: int) -> list[Piece]:
        """What of the stretch is left after so many batches."""
        return list(self.left.beyond(self._batches.consumed(self._rank, batches)).pieces)


class Course:
    """The way of all ranks through one order, from where they are."""

    def __init__(self, order: Windows, left: Left, batches: Batches, reserve: Sequence[Piece] = ()) -> None:
        """reserve: what is left and has no place in the batches of this epoch any more."""
        self.order = order
        """The order that is gone through."""
        self.batches = batches
        """How it is cut."""
        self._left = left
        self._reserve = list(reserve)
        self._ways: dict[int, Way] = {}

    def way(self, rank: int) -> Way:
        """What a rank goes through."""
        if rank not in self._ways:
            self._ways[rank] = Way(self._left, self.batches, rank)
        return self._ways[rank]

    def after(self, batches: int) -> list[Piece]:
        """What is left when every rank has taken so many batches."""
        ranks = range(self.batches.world_size)
        return [piece for rank in ranks for piece in self.way(rank).after(batches)] + self._reserve


def whole_course(
    order: Windows, pieces: Sequence[Piece], batch_size: int, world_size: int, drop_last: bool
) -> Course:
    """The course through what is left of one order, each row once."""
    left = Left(order, pieces)
    return Course(order, left, Batches(left.total, batch_size, world_size, drop_last))


@dataclass(frozen=True)
class Stratum:
    """Where the ranks are in one of several strata."""

    laps: Laps
    """Its rows, again and again."""
    share: float
    """Its share of each batch, relative to the others'."""
    pieces: tuple[Piece, ...]
    """What is left of the places up to `reached`."""
    reached: int
    """Places that belong to the epoch so far."""

    @property
    def lasts(self) -> float:
        """How long it lasts, in rows of batches."""
        return self.laps.lap_rows / self.share


def mixed_courses(
    strata: Sequence[Stratum], batch_size: int, world_size: int, drop_last: bool
) -> tuple[list[Course], list[int]]:
    """The course through each stratum, batches of which are always full, and how far each will have reached.

    Raises ConfigError where a stratum has no row in a batch.
    """
    sizes = rows_by_share(batch_size, [stratum.share for stratum in strata])
    longest = max(range(len(strata)), key=lambda number: (strata[number].lasts, -number))
    lap = strata[longest].laps.lap_rows
    first_lap = [
        replace(piece, stop=min(piece.stop, lap)) for piece in strata[longest].pieces if piece.start < lap
    ]
    needed = Left(strata[longest].laps, first_lap).total
    a_step = sizes[longest] * world_size
    count = needed // a_step if drop_last else -(-needed // a_step)
    courses, reached = [], []
    for stratum, size in zip(strata, sizes, strict=True):
        left, total = Left(stratum.laps, stratum.pieces), count * size * world_size
        have, end = left.total, stratum.reached
        if have < total:
            left = Left(stratum.laps, [*stratum.pieces, Piece(end, end + total - have)])
            end += total - have
        reserve = left.cut(total, max(have, total)).pieces
        batches = Batches(total, size, world_size)
        courses.append(Course(stratum.laps, left.cut(0, total), batches, reserve))
        reached.append(end)
    return courses, reached
