"""In which order does an epoch go through the rows, and which of them are a rank's?

1. Every view of every row lies in a *run* of chunks (grid). The runs of all views are permuted.
2. Consecutive runs are gathered into *windows* of about `window` rows.
3. Inside a window the rows are permuted.
4. All windows, one after another, are the epoch: positions 0 … len − 1.
5. Ranks take equal stretches of the positions that are left, each in its own.

        runs      [7][2][9][4] [0][8][5][1] [3][6]        permuted: each is read once, as a whole
        windows   └─────0────┘ └─────1────┘ └──2─┘        rows permuted inside
        ranks     ├────── 0 ──────┼────── 1 ──────┤       world_size = 2

The order is a pure function of (seed, epoch, rows, views, R, window). It knows nothing of teachers,
encodings, batch size or world; so both of the latter may change in mid-epoch.

Random numbers are the raw output of Philox, sorted: numpy keeps that stream fixed for ever, and does
not promise so for `Generator.permutation`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from .grid import Grid

Interval = tuple[int, int]
"""Positions start…stop of an epoch, half-open."""

WINDOW_RUNS = 16
"""Runs in a window, where the user does not say how many rows it shall have."""


def philox_permutation(size: int, seed: int, stream: int, counter: int) -> Int64[np.ndarray, " size"]:
    """A permutation of `size` items that is a pure function of the three integers.

    >>> philox_permutation(5, seed=0, stream=0, counter=0).tolist()
    [0, 2, 1, 4, 3]
    """
    # As uint64 arrays: NumPy takes lists of such integers through float64 and would round the large ones.
    key = np.array([seed, stream], dtype=np.uint64)
    place = np.array([0, 0, 0, counter], dtype=np.uint64)
    raw = np.asarray(np.random.Philox(key=key, counter=place).random_raw(size))
    return np.argsort(raw, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Run:
    """Rows of one run of chunks that the epoch asks for."""

    view: int
    """View they are of."""
    rows: range | NDArray[np.int64]
    """Ascending; all in one run of chunks."""


class Order:
    """The order of one epoch."""

    def __init__(
        self,
        grid: Grid,
        *,
        views: Sequence[int],
        rows: NDArray[np.int64] | None = None,
        window: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        """Plan an epoch.

        views: the views it passes over. rows: ascending rows of the store, repeats allowed; all when None.
        window: rows a window, about; memory follows from it. shuffle: False gives views and rows as stored.
        """
        self._grid = grid
        self._views = tuple(views)
        self._rows = rows
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = epoch
        self._window = window or WINDOW_RUNS * grid.run_rows

    @cached_property
    def _cuts(self) -> Int64[np.ndarray, " runs_plus_one"]:
        """Where in `rows` each run of one view begins."""
        borders = np.arange(self._grid.num_runs + 1, dtype=np.int64) * self._grid.run_rows
        borders[-1] = self._grid.num_rows
        return borders if self._rows is None else np.searchsorted(self._rows, borders).astype(np.int64)

    @cached_property
    def _runs(self) -> Int64[np.ndarray, " runs"]:
        """The runs that hold rows, in the order of the epoch, numbered through all views."""
        counts = np.tile(np.diff(self._cuts), len(self._views))
        runs = np.flatnonzero(counts).astype(np.int64)
        if self._shuffle:
            runs = runs[philox_permutation(len(runs), self._seed, self._epoch, 0)]
        return runs

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " runs"]:
        """Position just after each run, in the order of the epoch."""
        return np.cumsum(np.diff(self._cuts)[self._runs % self._grid.num_runs], dtype=np.int64)

    @cached_property
    def _window_runs(self) -> Int64[np.ndarray, " windows_plus_one"]:
        """Which of the runs each window begins with."""
        if not len(self._ends):
            return np.zeros(1, dtype=np.int64)
        begins = np.concatenate([[0], self._ends[:-1]])
        firsts = np.flatnonzero(np.diff(begins // self._window, prepend=-1))
        return np.append(firsts, len(begins)).astype(np.int64)

    def __len__(self) -> int:
        """Positions in the epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_windows(self) -> int:
        """Windows in the epoch."""
        return len(self._window_runs) - 1

    @property
    def window_rows(self) -> int:
        """Rows of the largest window: what a reader must hold at once."""
        return max(
            (stop - start for start, stop in map(self.window_interval, range(self.num_windows))), default=0
        )

    def window_interval(self, window: int) -> Interval:
        """The positions of a window."""
        first, last = int(self._window_runs[window]), int(self._window_runs[window + 1]) - 1
        return (int(self._ends[first - 1]) if first else 0), int(self._ends[last])

    def window_at(self, position: int) -> int:
        """The window that holds a position."""
        run = int(np.searchsorted(self._ends, position, side="right"))
        return int(np.searchsorted(self._window_runs, run, side="right")) - 1

    def runs(self, window: int) -> list[Run]:
        """What a window reads, in the order in which it is laid out in memory."""
        selected = self._runs[self._window_runs[window] : self._window_runs[window + 1]]
        return [self._run(int(run)) for run in selected]

    def _run(self, run: int) -> Run:
        view, index = divmod(run, self._grid.num_runs)
        start, stop = int(self._cuts[index]), int(self._cuts[index + 1])
        return Run(self._views[view], range(start, stop) if self._rows is None else self._rows[start:stop])

    def permutation(self, window: int) -> Int64[np.ndarray, " rows"]:
        """For each position of a window, which of its rows in memory comes there."""
        start, stop = self.window_interval(window)
        if not self._shuffle:
            return np.arange(stop - start, dtype=np.int64)
        return philox_permutation(stop - start, self._seed, self._epoch, window + 1)


def split_intervals(intervals: Sequence[Interval], rank: int, world_size: int) -> list[Interval]:
    """A rank's stretch of the positions that are left; together, the ranks' stretches are all of them.

    >>> split_intervals([(0, 4), (10, 16)], 0, 2), split_intervals([(0, 4), (10, 16)], 1, 2)
    ([(0, 4), (10, 11)], [(11, 16)])
    """
    total = sum(stop - start for start, stop in intervals)
    return cut_intervals(intervals, total * rank // world_size, total * (rank + 1) // world_size)


def cut_intervals(intervals: Sequence[Interval], first: int, last: int) -> list[Interval]:
    """Positions number first…last (half-open) of those in `intervals`, counted from 0.

    >>> cut_intervals([(0, 4), (10, 16)], 3, 6)
    [(3, 4), (10, 12)]
    """
    cut, before = [], 0
    for start, stop in intervals:
        low, high = max(first - before, 0), min(last - before, stop - start)
        if low < high:
            cut.append((start + low, start + high))
        before += stop - start
    return cut


@dataclass(frozen=True)
class Batches:
    """How a rank's positions are cut into batches; every rank gets equally many.

    All are full but the last two: where the ranks' stretches differ by a row, the rank that has
    fewer makes them smaller, so that each holds something. Only where fewer rows are left than there are
    ranks, or where batches are of one row, is a batch empty.
    """

    intervals: tuple[Interval, ...]
    """The positions that all ranks together have left."""
    batch_size: int
    """Rows a full batch of one rank."""
    world_size: int
    """Ranks."""
    drop_last: bool = False
    """Whether a batch that is not full on every rank is left out."""

    @property
    def total(self) -> int:
        """Positions that all ranks together have left."""
        return sum(stop - start for start, stop in self.intervals)

    @property
    def count(self) -> int:
        """Batches of each rank.

        >>> Batches(((0, 11),), batch_size=4, world_size=2).count
        2
        """
        if self.drop_last:
            return self.total // self.world_size // self.batch_size
        largest = -(-self.total // self.world_size)
        return -(-largest // self.batch_size)

    def stretch(self, rank: int) -> list[Interval]:
        """The positions of a rank."""
        return split_intervals(self.intervals, rank, self.world_size)

    def consumed(self, rank: int, batches: int) -> int:
        """Rows in the first `batches` batches of a rank.

        >>> cut = Batches(((0, 9),), batch_size=4, world_size=2)
        >>> [cut.consumed(0, n) for n in range(3)], [cut.consumed(1, n) for n in range(3)]
        ([0, 3, 4], [0, 4, 5])
        """
        rows = sum(stop - start for start, stop in self.stretch(rank))
        if self.drop_last:
            return batches * self.batch_size
        done = min(batches, max(0, self.count - 2)) * self.batch_size
        for batch in range(max(0, self.count - 2), batches):
            left_after = self.count - batch - 1
            remaining = rows - done
            done += max(min(self.batch_size, remaining - left_after), min(1, remaining))
        return done

    def of_rank(self, rank: int, first: int = 0) -> Iterator[list[Interval]]:
        """The positions of each batch of a rank, from batch `first` on."""
        stretch = self.stretch(rank)
        done = self.consumed(rank, first)
        for batch in range(first, self.count):
            after = self.consumed(rank, batch + 1)
            yield cut_intervals(stretch, done, after)
            done = after

    def after(self, batches: int) -> tuple[Interval, ...]:
        """The positions that are left when every rank has taken `batches` batches."""
        left: list[Interval] = []
        for rank in range(self.world_size):
            stretch = self.stretch(rank)
            rows = sum(stop - start for start, stop in stretch)
            left += cut_intervals(stretch, self.consumed(rank, batches), rows)
        return tuple(left)
