"""How do the windows of an epoch get from the shards into memory, before they are asked for?

1. `Field` is one array of a window: its name, its dtype and the shape of a row, and how rows of it are read.
2. `Buffers` holds the memory of windows, which is used again and again.
3. `Window` is one in memory; batches are picked out of it.
4. `ReadAhead` reads the next window with a few threads while one is in use: two are held, never more.

Nothing forks, and nothing is shared between processes.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..errors import ConfigError
from .order import Run, Windows
from .pieces import Left, Portion

READ_THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))
"""Threads that read a window, a run of chunks each at a time; the core of whoever uses the batches is left alone."""


@dataclass(frozen=True)
class Field:
    """One array of a window."""

    name: str
    """What it is called: "rows", "labels", "logits/wide", …"""
    dtype: np.dtype[Any]
    """Of its elements."""
    row_shape: tuple[int, ...]
    """Shape of a row."""
    read: Callable[[Run, NDArray[Any]], None]
    """Reads rows of a run into an array of that dtype and (rows, *row_shape)."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))

    def empty(self, rows: int) -> NDArray[Any]:
        """Memory for so many rows."""
        return np.empty((rows, *self.row_shape), self.dtype)


Arrays = dict[str, NDArray[Any]]
"""The arrays of a window or of a batch, by the names of their fields; rows first."""


class Buffers:
    """The memory of windows that are not in use."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._free: list[Arrays] = []
        self._lock = threading.Lock()

    def take(self, rows: int) -> Arrays:
        """Arrays of at least so many rows."""
        with self._lock:
            self._free = [arrays for arrays in self._free if len(arrays[self._fields[0].name]) >= rows]
            if self._free:
                return self._free.pop()
        return {field.name: field.empty(rows) for field in self._fields}

    def give(self, arrays: Arrays) -> None:
        """Take back what `take` gave."""
        with self._lock:
            self._free.append(arrays)


@dataclass(frozen=True)
class Window:
    """What is held of a window."""

    arrays: Arrays
    """Its rows, in the order of places."""
    places: Int64[np.ndarray, " rows"]
    """Where in the arrays each row is, in the order of turns."""

    def pick(self, start: int, stop: int, into: Mapping[str, NDArray[Any]]) -> None:
        """Rows number start … stop - 1, by turns."""
        places = self.places[start:stop]
        for name, array in self.arrays.items():
            # The places are known to be inside: "clip" saves NumPy a copy that it makes in order to raise.
            np.take(array, places, axis=0, out=into[name], mode="clip")


class _Held:
    """Which rows of a window are held for a portion of it, and where."""

    def __init__(self, order: Windows, left: Left, portion: Portion) -> None:
        self._order = order
        self._portion = portion
        self._left = left
        self.first, stop = order.window_interval(portion.window)
        if order.repeats:  # The next lap needs the others.
            self.intervals = [(self.first, stop)]
        else:
            self.intervals = [(piece.start, piece.stop) for piece in portion.pieces]
        ends = list(accumulate(stop - start for start, stop in self.intervals))
        self._begins = [0, *ends[:-1]]
        self.rows = ends[-1]

    def places(self) -> Int64[np.ndarray, " rows"]:
        """Where in memory each row of the portion is, in the order of turns."""
        turns = self._left.turns(self._portion)
        places = self._order.permutation(self._portion.window)[turns]
        starts = np.array([start - self.first for start, _ in self.intervals])
        interval = np.searchsorted(starts, places, side="right") - 1
        moved: NDArray[np.int64] = places - (starts - np.array(self._begins))[interval]
        return moved

    def runs(self) -> Iterator[tuple[Run, int]]:
        """The runs of chunks, as far as they are held, each with the row in memory that it begins at."""
        place = self.first
        for run in self._order.runs(self._portion.window):
            end = place + len(run.rows)
            for (start, stop), begin in zip(self.intervals, self._begins, strict=True):
                low, high = max(start, place), min(stop, end)
                if low < high:
                    yield Run(run.view, run.rows[low - place : high - place]), begin + low - start
            place = end


class ReadAhead:
    """The windows of one rank, in the order in which they are asked for: one in use, the next on its way."""

    def __init__(
        self,
        order: Windows,
        left: Left,
        portions: Iterator[int],
        fields: Sequence[Field],
        buffers: Buffers,
        threads: ThreadPoolExecutor,
    ) -> None:
        """portions: the numbers of the portions of `left`, in the order in which `get` will ask for them."""
        self._order = order
        self._left = left
        self._coming = portions
        self._fields = fields
        self._buffers = buffers
        self._threads = threads
        in_all = sum(piece.stop - piece.start for piece in left.pieces)
        self._rows = order.window_rows if order.repeats else min(order.window_rows, in_all)
        self._process = os.getpid()
        self._number = self._next = -1
        self._window: Window | None = None
        self._arrays: Arrays | None = None  # of the window in use
        self._reading: list[Future[None]] = []
        self._filling: Arrays | None = None  # what is being read into
        self._held: _Held | None = None
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin to read the window after the one in use."""
        self._next = next(self._coming, -1)
        if self._next < 0:
            return
        self._held = _Held(self._order, self._left, self._left.portions[self._next])
        if self._order.repeats and self._arrays is not None:
            return  # It holds the same rows in the same places.
        self._filling = self._buffers.take(self._rows)
        self._reading = [
            self._threads.submit(self._read, run, begin, self._filling) for run, begin in self._held.runs()
        ]

    def _read(self, run: Run, begin: int, arrays: Arrays) -> None:
        for field in self._fields:
            field.read(run, arrays[field.name][begin : begin + len(run.rows)])

    def get(self, number: int) -> Window:
        """A window: the one in use, or the one after it, which lets the former go and begins the next."""
        if os.getpid() != self._process:
            raise ConfigError(
                "stream",
                expected="to be read on in the process in which this iteration began",
                found="a fork of it, where the reading threads are not",
                remedy="begin the iteration in the child, or start the child by spawn or forkserver",
            )
        if number != self._number or self._window is None:
            assert self._held is not None and number == self._next  # asked for in order
            self._wait()
            self._window = None
            if self._filling is not None:
                if self._arrays is not None:
                    self._buffers.give(self._arrays)
                self._arrays, self._filling = self._filling, None
            assert self._arrays is not None
            self._number, self._window = number, Window(self._arrays, self._held.places())
            self._begin_next()
        return self._window

    def _wait(self) -> None:
        """Wait until the window on its way is there, or what reads it has failed."""
        for future in self._reading:
            future.result()
        self._reading = []

    def close(self) -> None:
        """Give the memory back. The threads must be done by now."""
        for arrays in (self._arrays, self._filling):
            if arrays is not None:
                self._buffers.give(arrays)
        self._arrays = self._filling = self._window = None
