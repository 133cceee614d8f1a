"""The windows of an epoch in memory, read from the shards ahead of their use.

    fields      rows, views, labels, inputs, logits/wide …     one array each, the rows by position
    window      n in use: batches are picked out of it    |    n + 1: read meanwhile by a few threads
    escaped     the rows of a teacher in the transform encoding that are stored whole: few, by themselves

Memory of two windows is allocated and used again. Nothing forks, and nothing is shared between processes.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..backends.local import keep_directories
from ..backends.posix import room_for
from ..encodings.refine import ESCAPED
from ..errors import ConfigError
from .batches import RankPlan
from .escaped import EscapedField, EscapedRows
from .fetch_ahead import Plan, Source
from .intervals import Remainder, WindowShare
from .order import ChunkRun, WindowedOrder

READ_THREADS = 4
"""Threads that read chunk runs, whatever the cores: while one waits for the disk, another copies and checks."""
REMOTE_THREADS = 16
"""Threads that read chunk runs of a remote store: while one waits for an answer, the others have asked."""
_RUNS_TOGETHER = 8
"""Most chunk runs that a thread reads together."""


@dataclass(frozen=True)
class Field:
    """One array of a window."""

    name: str
    """ "rows", "labels", "logits/wide" …"""
    dtype: np.dtype[Any]
    """Of its elements."""
    row_shape: tuple[int, ...]
    """Shape of a row."""
    read: Callable[[ChunkRun, NDArray[Any]], None]
    """Reads a chunk run into an array (rows, *row_shape) of that dtype."""
    sources: tuple[Source, ...] = ()
    """The stored arrays that it is read from."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))

    def empty(self, rows: int) -> NDArray[Any]:
        """Allocate a number of rows."""
        return np.empty((rows, *self.row_shape), self.dtype)


Arrays = dict[str, NDArray[Any]]
"""The arrays of a window or a batch by field; rows first."""


class Buffers:
    """The memory of windows that are not in use."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._free: list[Arrays] = []
        self._lock = threading.Lock()

    def take(self, rows: int) -> Arrays:
        """Take arrays of at least a number of rows."""
        with self._lock:
            self._free = [arrays for arrays in self._free if len(arrays[self._fields[0].name]) >= rows]
            if self._free:
                return self._free.pop()
        return {field.name: room_for((rows, *field.row_shape), field.dtype) for field in self._fields}

    def give(self, arrays: Arrays) -> None:
        """Give arrays back."""
        with self._lock:
            self._free.append(arrays)


@dataclass(frozen=True)
class Window:
    """A window in memory."""

    arrays: Arrays
    """Its rows, by position."""
    index: Int64[np.ndarray, " rows"]
    """Index in the arrays of each row that a rank takes, by draw."""
    escaped: Sequence[EscapedRows] = ()
    """Rows of teachers in the transform encoding that are stored whole."""

    def pick(self, start: int, stop: int, into: Mapping[str, NDArray[Any]]) -> None:
        """Copy rows number start … stop - 1, by draw."""
        index = self.index[start:stop]
        for name, array in self.arrays.items():
            # Every index is valid. "clip" saves a copy that NumPy makes in order to raise.
            array.take(index, axis=0, out=into[name], mode="clip")

    def pick_escaped(self, start: int, stop: int, of: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the codes of the escaped rows among rows number start … stop - 1, by field, if there are any.

        of: the arrays that `pick` gave for these rows.
        """
        picked = {}
        for escaped in self.escaped:
            is_escaped = of[escaped.field.refine] == ESCAPED
            if is_escaped.any():
                here = np.flatnonzero(is_escaped)
                picked[escaped.field.name] = escaped.pick(
                    self.index[start:stop][here], of["rows"][here], of["views"][here]
                )
        return picked


class _Layout:
    """The rows of a window that are held for a rank's share, and their rows in memory.

    positions of the window    0 1 2 3 4 5 6 7 8 9
    intervals of the share         └───┘     └─┘
    rows in memory                 0 1 2     3 4
    """

    def __init__(self, order: WindowedOrder, remainder: Remainder, share: WindowShare) -> None:
        self._order = order
        self._share = share
        self._remainder = remainder
        self._first, stop = order.window_interval(share.window)
        if order.repeats:  # The next repetition needs all rows.
            self._intervals = [(self._first, stop)]
        else:
            self._intervals = [(interval.start, interval.stop) for interval in share.intervals]
        self._begins = [0, *accumulate(stop - start for start, stop in self._intervals)][:-1]

    def index(self) -> Int64[np.ndarray, " rows"]:
        """Return the row in memory of each row of the share, by draw."""
        draws = self._remainder.draws(self._share)
        positions = self._order.permutation(self._share.window)[draws]
        starts = np.array([start - self._first for start, _ in self._intervals])
        interval = np.searchsorted(starts, positions, side="right") - 1
        moved: NDArray[np.int64] = positions - (starts - np.array(self._begins))[interval]
        return moved

    def runs(self) -> Iterator[tuple[ChunkRun, int]]:
        """Yield the chunk runs, each cut to what is held, with its first row in memory."""
        position = self._first
        for run in self._order.runs(self._share.window):
            end = position + len(run.rows)
            for (start, stop), begin in zip(self._intervals, self._begins, strict=True):
                low, high = max(start, position), min(stop, end)
                if low < high:
                    yield ChunkRun(run.view, run.rows[low - position : high - position]), begin + low - start
            position = end


def windows_of(rank: RankPlan, numbers: Iterable[int]) -> Iterator[int]:
    """Yield the window shares that some batches need, each once, in order."""
    last = -1
    for number in numbers:
        for part in rank.batch(number):
            if part.share != last:
                yield part.share
            last = part.share


def runs_of(order: WindowedOrder, remainder: Remainder, numbers: Iterable[int]) -> Iterator[ChunkRun]:
    """Yield the chunk runs of a rank. numbers: indices in `remainder.shares`."""
    for number in numbers:
        yield from (run for run, _ in _Layout(order, remainder, remainder.shares[number]).runs())


class ReadAhead:
    """The windows of one rank in the order of their use: one in use, the next being read."""

    def __init__(
        self,
        order: WindowedOrder,
        remainder: Remainder,
        numbers: Iterator[int],
        fields: Sequence[Field],
        buffers: Buffers,
        threads: ThreadPoolExecutor,
        escaped: Sequence[EscapedField] = (),
        num_threads: int = READ_THREADS,
        plan: Plan | None = None,
    ) -> None:
        """Begin to read; `numbers` are indices in `remainder.shares`, in the order in which `get` is called.

        escaped: arrays of which a window holds few rows. num_threads: of `threads`. plan: of shards that are fetched whole.
        """
        self._num_threads, self._plan = num_threads, plan
        self._order = order
        self._remainder = remainder
        self._numbers = numbers
        self._fields = fields
        self._buffers = buffers
        self._threads = threads
        total = sum(interval.stop - interval.start for interval in remainder.intervals)
        self._rows = order.window_rows if order.repeats else min(order.window_rows, total)
        self._process = os.getpid()
        self._number = self._next = -1
        self._window: Window | None = None
        self._arrays: Arrays | None = None  # of the window in use
        self._filling: Arrays | None = None  # of the next
        self._escaped_fields = escaped
        self._escaped: list[EscapedRows] = []  # of the window in use
        self._escaped_next: list[EscapedRows] = []
        self._reading: list[Future[None]] = []
        self._layout: _Layout | None = None  # of the next
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin to read the window after the one in use."""
        self._next = next(self._numbers, -1)
        if self._next < 0:
            return
        self._layout = _Layout(self._order, self._remainder, self._remainder.shares[self._next])
        if self._order.repeats and self._arrays is not None:
            return  # The same rows are at the same positions already.
        self._filling = self._buffers.take(self._rows)
        self._escaped_next = [EscapedRows(field, self._rows) for field in self._escaped_fields]
        runs = list(self._layout.runs())
        if self._plan is not None:
            self._plan.announce(run for run, _ in runs)
        together = max(1, min(_RUNS_TOGETHER, len(runs) // self._num_threads))
        self._reading = [
            self._threads.submit(
                self._read, runs[first : first + together], self._filling, self._escaped_next
            )
            for first in range(0, len(runs), together)
        ]

    def _read(
        self, runs: Sequence[tuple[ChunkRun, int]], arrays: Arrays, escaped: Sequence[EscapedRows]
    ) -> None:
        """Read chunk runs, each to its first row in memory; field by field, whose code then stays in the core's cache."""
        for field in self._fields:
            with keep_directories():
                for run, begin in runs:
                    field.read(run, arrays[field.name][begin : begin + len(run.rows)])
        for rows in escaped:
            with keep_directories():
                for run, begin in runs:
                    rows.read(run, begin, arrays[rows.field.refine][begin : begin + len(run.rows)])

    def get(self, number: int) -> Window:
        """Return the window in use, or the next one, which frees the former and begins the one after."""
        if os.getpid() != self._process:
            raise ConfigError(
                "stream",
                expected="an iteration that stays in its process",
                found="one that was begun before a fork, whose reading threads are in the parent",
                remedy="begin the iteration in the child, or start the child by spawn or forkserver",
            )
        if number != self._number or self._window is None:
            assert self._layout is not None and number == self._next  # in order
            for future in self._reading:
                future.result()  # raises the error of a reading thread
            self._reading, self._window = [], None
            if self._filling is not None:
                if self._arrays is not None:
                    self._buffers.give(self._arrays)
                self._arrays, self._filling = self._filling, None
                self._escaped, self._escaped_next = self._escaped_next, []
            assert self._arrays is not None
            self._number, self._window = number, Window(self._arrays, self._layout.index(), self._escaped)
            self._begin_next()
        return self._window

    def close(self) -> None:
        """Give the memory back. The threads must have ended."""
        for arrays in (self._arrays, self._filling):
            if arrays is not None:
                self._buffers.give(arrays)
        self._arrays = self._filling = self._window = None
        self._escaped, self._escaped_next = [], []
