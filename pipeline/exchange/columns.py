"""The columns of an export: arrays of a capture and of its rows, read a piece at a time.

    of each (view, row)   logits, peak                 float32 or float16; float32
    of each row           row, source, label, id       int64, int64, int64, text

A piece has at most 8 MiB of logits, and begins and ends between chunks of the store, so that no chunk is read twice. A few
pieces are read ahead of the one that is written: that is all that is held, whatever the size of the store.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...storage.api import Capture, Store
from ...storage.errors import BadLogitsError
from ...storage.format.grid import floor_power_of_two

PIECE_BYTES: Final = 8 << 20
"""Bytes of the logits of a piece, as float32."""
_SMALL_ROWS: Final = 1 << 16
"""Rows of a piece of the other arrays."""
LOCAL_AHEAD, REMOTE_AHEAD = 2, 16
"""Pieces that are read ahead: two overlap reading and writing; over a network their number hides its latency."""
OF_VIEWS: Final = ("logits", "peak")
"""Columns that each view has."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(items: Iterable[_Item], function: Callable[[_Item], _Result], ahead: int) -> Iterator[_Result]:
    """Yield function(item) of each item, in order; threads compute `ahead` of them in advance."""
    running: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(ahead, "logitstore-export") as pool:
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Columns:
    """The columns of one export."""

    store: Store
    """The store that is read."""
    capture: Capture
    """Its logits."""
    rows: "range | NDArray[np.int64]"
    """Rows of the store, ascending."""
    views: tuple[int, ...]
    """Views of the capture."""
    dtype: str
    """Of the logits: "float32" or "float16"."""
    temperature: float | None
    """At which a top-k capture is decoded."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns that the store has, logits last."""
        return (
            "row",
            "source",
            *(["id"] if self.store.samples.has_ids else []),
            "label",
            *(["peak"] if self.capture.has_peak else []),
            "logits",
        )

    @property
    def num_columns(self) -> int:
        """Columns of the logits."""
        return self.capture.shape[2]

    @property
    def ahead(self) -> int:
        """Pieces that are read ahead."""
        return REMOTE_AHEAD if self.store.root.folder.is_remote else LOCAL_AHEAD

    def pieces(self, name: str = "logits") -> "Iterator[range | NDArray[np.int64]]":
        """Yield the rows of each piece of a column."""
        if not len(self.rows):
            return
        most = PIECE_BYTES // (4 * self.num_columns) if name == "logits" else _SMALL_ROWS
        step = min(floor_power_of_two(most), max(self.store.block_rows, 1))
        first, last = int(self.rows[0]), int(self.rows[-1])
        for begin in range(first - first % step, last + 1, step):
            # A power of two: a block, and a chunk of any array, ends at a multiple of it or contains it.
            if isinstance(self.rows, range):
                yield range(max(begin, first), min(begin + step, last + 1))
            else:
                start, stop = np.searchsorted(self.rows, [begin, begin + step])
                if stop > start:
                    yield self.rows[start:stop]

    def read(self, name: str, rows: "range | NDArray[np.int64]", view: int = 0) -> NDArray[Any]:
        """Read a piece of a column. Raises BadLogitsError for logits that float16 does not hold."""
        asked: Any = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        samples = self.store.samples
        if name == "logits":
            return self._logits(asked, rows, view)
        if name == "peak":
            return self.capture.peak(asked, view)
        if name == "label":
            return samples.labels_of(asked)
        if name == "row":
            return np.asarray(rows, dtype=np.int64)
        return samples.reader.read(name, asked)

    def _logits(self, asked: Any, rows: "range | NDArray[np.int64]", view: int) -> NDArray[Any]:
        logits = self.capture.read(asked, view, self.temperature)
        if self.dtype == "float32":
            return logits
        with np.errstate(over="ignore"):
            halves = logits.astype(np.float16)
        far = ~np.isfinite(halves)
        if far.any():
            first = int(np.argwhere(far)[0, 0])
            raise BadLogitsError(
                f"{self.store.path}: teachers/{self.capture.name}, view {view}, row {int(rows[first])}",
                expected="logits within 65504 of the row's maximum, float16's range",
                found=f"{logits[first].min()}",
                remedy="export float32 (--dtype float32)",
            )
        return halves

    def each(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield a whole column piece by piece, view after view."""
        views = self.views if name in OF_VIEWS else (0,)
        asked = ((rows, view) for view in views for rows in self.pieces(name))
        return in_order(asked, lambda piece: self.read(name, *piece), self.ahead)

    @property
    def total(self) -> int:
        """Rows of all views."""
        return len(self.rows) * len(self.views)
