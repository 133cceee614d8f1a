"""In which order does an epoch go through the rows?

1. Every view of every row lies in a *run* of chunks (grid). The runs of all views are permuted. One after
   another, they give every row of the epoch its *place*: 0 … len − 1.
2. Consecutive runs are gathered into *windows* of about `window` rows.
3. Inside a window the rows are permuted, which gives every row its *turn*: also 0 … len − 1.

        runs      [7][2][9][4] [0][8][5][1] [3][6]        permuted: each is read once, as a whole
        windows   └─────0────┘ └─────1────┘ └──2─┘        rows permuted inside

The order is a pure function of (seed, epoch, rows, views, R, window). It knows nothing of teachers,
encodings, batch size or world; so both of the latter may change in mid-epoch (pieces).

Random numbers are the raw output of Philox, sorted: numpy keeps that stream fixed for ever, and does
not promise so for `Generator.permutation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..format.grid import Grid
from ..random import philox_permutation

WINDOW_RUNS = 32
"""Runs in a window, where the user does not say how many rows it shall have."""


_LAP_BITS = 32


_WINDOW_MASK = (1 << _LAP_BITS) - 1


@dataclass(frozen=True)
class Run:
    """Rows of one run of chunks that the epoch asks for."""

    view: int
    """View they are of."""
    rows: range | NDArray[np.int64]
    """Ascending; all in one run of chunks."""


@runtime_checkable
class Windows(Protocol):
    """An order as who reads it sees it: windows, each an interval of places and of turns alike."""

    @property
    def window_rows(self) -> int:
        """Most rows that a window has: what a reader must hold at once."""

    def window_at(self, place: int) -> int:
        """The window that holds a place."""

    def window_interval(self, window: int) -> tuple[int, int]:
        """The places of a window, and its turns: the same integers, half-open."""

    def runs(self, window: int) -> list[Run]:
        """What a window reads, in the order of its places."""

    def permutation(self, window: int) -> Int64[np.ndarray, " rows"]:
        """For each turn of a window, which of its places comes; both counted from its first."""

    @property
    def repeats(self) -> bool:
        """Whether all windows hold the same rows in the same places."""


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
        lap: int = 0,
    ) -> None:
        """Plan an epoch.

        views: the views it passes over. rows: ascending rows of the store, repeats allowed; all when None.
        window: rows a window, about; memory follows from it. shuffle: False gives views and rows as stored.
        lap: how often these rows were gone through in this epoch before.
        """
        self._grid = grid
        self._views = tuple(views)
        self._rows = rows
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = epoch
        self._lap = lap
        self._window = window or WINDOW_RUNS * grid.run_rows

    @cached_property
    def _cuts(self) -> Int64[np.ndarray, " runs_plus_one"]:
        """Where in `rows` each run of one view begins."""
        borders = np.arange(self._grid.num_runs + 1, dtype=np.int64) * self._grid.run_rows
        borders[-1] = self._grid.num_rows
        return borders if self._rows is None else np.searchsorted(self._rows, borders).astype(np.int64)

    @cached_property
    def fits(self) -> bool:
        """Whether one window holds everything: then the rows have the same places lap after lap, and are read once."""
        return int(np.diff(self._cuts).sum()) * len(self._views) <= self._window

    @cached_property
    def _runs(self) -> Int64[np.ndarray, " runs"]:
        """The runs that hold rows, in the order of the epoch, numbered through all views."""
        counts = np.tile(np.diff(self._cuts), len(self._views))
        runs = np.flatnonzero(counts).astype(np.int64)
        if self._shuffle:
            lap = 0 if self.fits else self._lap
            runs = runs[philox_permutation(len(runs), self._seed, self._epoch, lap << _LAP_BITS)]
        return runs

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " runs"]:
        """Place just after each run, in the order of the epoch."""
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
        """Rows in the epoch, each view counted."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def num_windows(self) -> int:
        """Windows in the epoch."""
        return len(self._window_runs) - 1

    @property
    def window_rows(self) -> int:
        """Most rows that a window has, in this epoch or another: it ends with the run in which it is full."""
        return min(len(self), self._window - 1 + int(np.diff(self._cuts).max(initial=0)))

    def window_interval(self, window: int) -> tuple[int, int]:
        """The places of a window, and its turns."""
        first, last = int(self._window_runs[window]), int(self._window_runs[window + 1]) - 1
        return (int(self._ends[first - 1]) if first else 0), int(self._ends[last])

    def window_at(self, place: int) -> int:
        """The window that holds a place."""
        run = int(np.searchsorted(self._ends, place, side="right"))
        return int(np.searchsorted(self._window_runs, run, side="right")) - 1

    def runs(self, window: int) -> list[Run]:
        """What a window reads, in the order of its places."""
        selected = self._runs[self._window_runs[window] : self._window_runs[window + 1]]
        return [self._run(int(run)) for run in selected]

    def _run(self, run: int) -> Run:
        view, index = divmod(run, self._grid.num_runs)
        start, stop = int(self._cuts[index]), int(self._cuts[index + 1])
        return Run(self._views[view], range(start, stop) if self._rows is None else self._rows[start:stop])

    def permutation(self, window: int) -> Int64[np.ndarray, " rows"]:
        """For each turn of a window, which of its places comes; both counted from its first."""
        start, stop = self.window_interval(window)
        if not self._shuffle:
            return np.arange(stop - start, dtype=np.int64)
        return philox_permutation(
            stop - start, self._seed, self._epoch, (self._lap << _LAP_BITS) + window + 1
        )

    @property
    def repeats(self) -> bool:
        """No: every row comes once."""
        return False


class Laps:
    """Rows that are gone through again and again: one order after another, as many as are asked for."""

    def __init__(self, order_of: Callable[[int], Order]) -> None:
        """order_of: the order of each lap, all of them of the same rows."""
        self._order_of = order_of
        self._orders: dict[int, Order] = {}
        self.lap_rows = len(order_of(0))
        """Rows in a lap, each view counted."""

    def _lap(self, lap: int) -> Order:
        if lap not in self._orders:
            if len(self._orders) > 2:  # Laps come one after another.
                self._orders.clear()
            self._orders[lap] = self._order_of(lap)
        return self._orders[lap]

    @property
    def window_rows(self) -> int:
        """Most rows that a window of any lap has."""
        return self._lap(0).window_rows

    def window_at(self, place: int) -> int:
        """The window that holds a place."""
        lap, place = divmod(place, self.lap_rows)
        return (lap << _LAP_BITS) + self._lap(lap).window_at(place)

    def window_interval(self, window: int) -> tuple[int, int]:
        """The places of a window, and its turns."""
        lap = window >> _LAP_BITS
        start, stop = self._lap(lap).window_interval(window & _WINDOW_MASK)
        return lap * self.lap_rows + start, lap * self.lap_rows + stop

    def runs(self, window: int) -> list[Run]:
        """What a window reads, in the order of its places."""
        return self._lap(window >> _LAP_BITS).runs(window & _WINDOW_MASK)

    def permutation(self, window: int) -> Int64[np.ndarray, " rows"]:
        """For each turn of a window, which of its places comes; both counted from its first."""
        return self._lap(window >> _LAP_BITS).permutation(window & _WINDOW_MASK)

    @property
    def repeats(self) -> bool:
        """Whether one window holds a lap: then it is read once."""
        return self._lap(0).fits
