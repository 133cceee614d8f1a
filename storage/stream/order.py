"""The order of an epoch: chunk runs in random sequence, gathered into windows that are shuffled.

    chunk runs    [7][2][9][4] [0][8][5][1] [3][6]    permuted; each is read once, as a whole
    windows       └─────0────┘ └─────1────┘ └──2─┘    of about `window` rows
    positions     0 …       39 40 …      79 80 … 99   number of a row when runs are read one after another
    draws         0 …       39 40 …      79 80 … 99   number of a row when batches are made: each window is permuted

A chunk run holds the rows of one view whose inner chunks are read together (`Grid.run_rows`). Each row of an
epoch has a *position* and a *draw*. A window is the same interval of both.

The order is a pure function of (seed, epoch, rows, views, R, window). Teachers, encodings, batch size and world size
do not enter. Therefore the last two may change within an epoch (`intervals`).

Permutations are ranks of raw Philox output, a stream that NumPy keeps fixed. It makes no such promise for
`Generator.permutation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..format.grid import Grid
from ..random import philox_permutation

WINDOW_RUNS = 32
"""Chunk runs of a window if the user gives no number of rows."""
_REPETITION_BITS = 32
_WINDOW_MASK = (1 << _REPETITION_BITS) - 1


@dataclass(frozen=True)
class ChunkRun:
    """Rows of one chunk run that the epoch needs."""

    view: int
    """Their view."""
    rows: range | NDArray[np.int64]
    """Ascending."""


class Order:
    """The order of one epoch."""

    repeats = False
    """Whether all windows hold the same rows at the same positions."""

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
        repetition: int = 0,
    ) -> None:
        """Plan an epoch.

        rows: ascending rows of the store, repeats allowed; None for all.
        window: rows of a window, rounded up to whole chunk runs. shuffle: False keeps the order of the store.
        repetition: number of this pass, if the epoch passes over these rows repeatedly.
        """
        self._grid = grid
        self._views = tuple(views)
        self._rows = rows
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = epoch
        self._repetition = repetition
        self._window = window or WINDOW_RUNS * grid.run_rows

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """The selected rows, ascending; None for all."""
        return self._rows

    @cached_property
    def _cuts(self) -> Int64[np.ndarray, " runs_plus_one"]:
        """Return the index in `rows` at which each run of one view begins."""
        borders = np.arange(self._grid.num_runs + 1, dtype=np.int64) * self._grid.run_rows
        borders[-1] = self._grid.num_rows
        return borders if self._rows is None else np.searchsorted(self._rows, borders).astype(np.int64)

    @cached_property
    def fits(self) -> bool:
        """Whether one window holds all rows. Then their positions are the same in every repetition."""
        return int(np.diff(self._cuts).sum()) * len(self._views) <= self._window

    @cached_property
    def _runs(self) -> Int64[np.ndarray, " runs"]:
        """Return the runs that hold rows, in the order of the epoch, numbered through all views."""
        counts = np.tile(np.diff(self._cuts), len(self._views))
        runs = np.flatnonzero(counts).astype(np.int64)
        if self._shuffle:
            repetition = 0 if self.fits else self._repetition
            counter = repetition << _REPETITION_BITS
            runs = runs[philox_permutation(len(runs), self._seed, self._epoch, counter)]
        return runs

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " runs"]:
        """Return the position after each run, in the order of the epoch."""
        return np.cumsum(np.diff(self._cuts)[self._runs % self._grid.num_runs], dtype=np.int64)

    @cached_property
    def _first_runs(self) -> Int64[np.ndarray, " windows_plus_one"]:
        """Return the index in `_runs` at which each window begins."""
        if not len(self._ends):
            return np.zeros(1, dtype=np.int64)
        begins = np.concatenate([[0], self._ends[:-1]])
        firsts = np.flatnonzero(np.diff(begins // self._window, prepend=-1))
        return np.append(firsts, len(begins)).astype(np.int64)

    def __len__(self) -> int:
        """Return the rows of the epoch, each view counted."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def num_windows(self) -> int:
        """Windows of the epoch."""
        return len(self._first_runs) - 1

    @property
    def window_rows(self) -> int:
        """Rows of the largest window of any epoch: a window ends with the run that fills it."""
        return min(len(self), self._window - 1 + int(np.diff(self._cuts).max(initial=0)))

    def window_interval(self, window: int) -> tuple[int, int]:
        """Return the half-open interval of a window, of positions and draws alike."""
        first, last = int(self._first_runs[window]), int(self._first_runs[window + 1]) - 1
        return (int(self._ends[first - 1]) if first else 0), int(self._ends[last])

    def window_at(self, position: int) -> int:
        """Return the window that holds a position."""
        run = int(np.searchsorted(self._ends, position, side="right"))
        return int(np.searchsorted(self._first_runs, run, side="right")) - 1

    def runs(self, window: int) -> list[ChunkRun]:
        """Return the chunk runs of a window, by position."""
        selected = self._runs[self._first_runs[window] : self._first_runs[window + 1]]
        return [self._run(int(run)) for run in selected]

    def _run(self, run: int) -> ChunkRun:
        view, index = divmod(run, self._grid.num_runs)
        start, stop = int(self._cuts[index]), int(self._cuts[index + 1])
        return ChunkRun(
            self._views[view], range(start, stop) if self._rows is None else self._rows[start:stop]
        )

    def permutation(self, window: int) -> Int64[np.ndarray, " rows"]:
        """Return the position of each draw of a window; both count from the window's first."""
        start, stop = self.window_interval(window)
        if not self._shuffle:
            return np.arange(stop - start, dtype=np.int64)
        counter = (self._repetition << _REPETITION_BITS) + window + 1
        return philox_permutation(stop - start, self._seed, self._epoch, counter)


class RepeatedOrder:
    """One order after another of the same rows, as many as are needed; methods as of `Order`.

    A window is numbered by its repetition (upper bits) and its number in there (lower 32 bits).
    """

    def __init__(self, order_of: Callable[[int], Order]) -> None:
        """Take the order of each repetition from `order_of`."""
        self._order_of = order_of
        self._orders: dict[int, Order] = {}
        self.period = len(order_of(0))
        """Rows of a repetition, each view counted."""

    def _order(self, repetition: int) -> Order:
        if repetition not in self._orders:
            if len(self._orders) > 2:  # Repetitions come one after another.
                self._orders.clear()
            self._orders[repetition] = self._order_of(repetition)
        return self._orders[repetition]

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """The selected rows, ascending; None for all."""
        return self._order(0).rows

    @property
    def repeats(self) -> bool:
        """Whether one window holds a repetition; it is then read once."""
        return self._order(0).fits

    @property
    def window_rows(self) -> int:
        """Rows of the largest window of any repetition."""
        return self._order(0).window_rows

    def window_interval(self, window: int) -> tuple[int, int]:
        """Return the half-open interval of a window, of positions and draws alike."""
        repetition = window >> _REPETITION_BITS
        start, stop = self._order(repetition).window_interval(window & _WINDOW_MASK)
        return repetition * self.period + start, repetition * self.period + stop

    def window_at(self, position: int) -> int:
        """Return the window that holds a position."""
        repetition, position = divmod(position, self.period)
        return (repetition << _REPETITION_BITS) + self._order(repetition).window_at(position)

    def runs(self, window: int) -> list[ChunkRun]:
        """Return the chunk runs of a window, by position."""
        return self._order(window >> _REPETITION_BITS).runs(window & _WINDOW_MASK)

    def permutation(self, window: int) -> Int64[np.ndarray, " rows"]:
        """Return the position of each draw of a window; both count from the window's first."""
        return self._order(window >> _REPETITION_BITS).permutation(window & _WINDOW_MASK)


WindowedOrder = Order | RepeatedOrder
"""Windows of an epoch, each row once or repeatedly."""
