"""The escaped rows of a window: those few that a capture in the transform encoding stores whole.

Their codes are as wide as a dense row, so a window has no place for all rows. The threads that read a run read the codes of
its escaped rows as well, each chunk once a window, until as many bytes are held as the window has for components. Escaped
rows beyond that are read with their batch.
"""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Int64, UInt8, UInt16
from numpy.typing import NDArray

from ..encodings.refine import ESCAPED
from ..parts.reader import CaptureReader
from .order import ChunkRun

HELD_BYTES: Final = 16 << 20
"""Bytes of escaped rows that a window may hold of one teacher, if its components take less."""


def most_held(window_rows: int, row_bytes: int, component_bytes: int) -> int:
    """Return the escaped rows that a window of some rows holds at most.

    row_bytes: of an escaped row. component_bytes: of the components of any row.

    >>> most_held(1_000_000, 2000, 200), most_held(100, 2000, 200), most_held(32_768, 20_000, 60)
    (100000, 100, 838)
    """
    return min(window_rows, max(HELD_BYTES, window_rows * component_bytes) // row_bytes)


@dataclass(frozen=True)
class EscapedField:
    """The array `escape` of a teacher, of which a window holds only the escaped rows."""

    name: str
    """ "escape/wide"."""
    refine: str
    """Name of the field that marks the escaped rows, "refine/wide"."""
    capture: CaptureReader
    """The teacher."""
    num_classes: int
    """Columns of the teacher."""
    component_bytes: int
    """Bytes of the components of any row."""

    @property
    def row_bytes(self) -> int:
        """Bytes of an escaped row."""
        return 2 * self.num_classes

    @staticmethod
    def of(name: str, capture: CaptureReader) -> "EscapedField":
        """Describe the escaped rows of a teacher."""
        layouts = capture.part.layouts
        return EscapedField(
            f"escape/{name}",
            f"refine/{name}",
            capture,
            capture.shape[2],
            layouts["codes"].row_bytes,
        )

    def empty(self, rows: int) -> UInt16[np.ndarray, "rows classes"]:
        """Allocate a number of rows."""
        return np.empty((rows, self.num_classes), np.uint16)

    def most_rows(self, window_rows: int) -> int:
        """Return the escaped rows that a window of some rows holds at most."""
        return most_held(window_rows, self.row_bytes, self.component_bytes)

    def read(
        self, rows: Int64[np.ndarray, " rows"], views: Int64[np.ndarray, " rows"]
    ) -> UInt16[np.ndarray, "rows classes"]:
        """Read escaped rows in any order, of any views, repeats allowed."""
        codes = self.empty(len(rows))
        for view in np.unique(views).tolist():
            here = np.flatnonzero(views == view)
            ascending, places = np.unique(rows[here], return_inverse=True)
            codes[here] = self.capture.read_escaped(ascending, view)[places]
        return codes


class EscapedRows:
    """The escaped rows of one window and one teacher, by their place in memory."""

    def __init__(self, field: EscapedField, window_rows: int) -> None:
        """Hold none yet."""
        self.field = field
        """The array that they are of."""
        self._most = field.most_rows(window_rows)
        self._used = 0
        self._places = np.empty(0, np.int64)
        self._codes = field.empty(0)
        self._lock = threading.Lock()

    def read(self, run: ChunkRun, begin: int, refine: UInt8[np.ndarray, " rows"]) -> None:
        """Read the escaped rows of a run, as far as there is room; from any thread. begin: place of its first row."""
        escaped = np.flatnonzero(refine == ESCAPED)
        if not len(escaped):
            return
        with self._lock:
            if not self._used:  # Pages of an empty array take memory once they are written.
                self._places = np.empty(self._most, np.int64)
                self._codes = self.field.empty(self._most)
            first, self._used = self._used, min(self._most, self._used + len(escaped))
            escaped = escaped[: self._used - first]
            self._places[first : self._used] = begin + escaped
        rows = run.rows.start + escaped if isinstance(run.rows, range) else run.rows[escaped]
        self._codes[first : first + len(rows)] = self.field.capture.read_escaped(rows, run.view)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The rows held, by place. Only once all runs are read."""
        return np.argsort(self._places[: self._used], kind="stable")

    def pick(
        self,
        places: Int64[np.ndarray, " escaped"],
        rows: Int64[np.ndarray, " escaped"],
        views: Int64[np.ndarray, " escaped"],
    ) -> UInt16[np.ndarray, "escaped classes"]:
        """Return the codes of escaped rows. places: in memory. rows, views: for those that are not held."""
        picked = self.field.empty(len(places))
        lacks = np.ones(len(places), np.bool_)
        if self._used:
            held = self._places[: self._used][self._order]
            found = np.minimum(np.searchsorted(held, places), self._used - 1)
            lacks = held[found] != places
            picked[~lacks] = self._codes[self._order[found[~lacks]]]
        if lacks.any():
            picked[lacks] = self.field.read(rows[lacks], views[lacks])
        return picked
