"""Batches picked out of windows.

The copy of a batch of narrow rows takes less time than the calls that begin it. Neighbouring batches of one window are
therefore copied together, up to a mebibyte, and each is a slice of the copy:

    window      rows by position, in which a batch lies scattered
    copied      │ batch 7 │ batch 8 │ batch 9 │ …

Batches of several strata, and those that reach into the next window, are copied one by one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .batches import BatchSlice, RankPlan
from .escaped import EscapedField
from .window import Arrays, Field, ReadAhead

_TOGETHER_BYTES: Final = 1 << 20
"""Most bytes of batches that are copied together."""


def rows_together(batch_rows: int, row_bytes: int) -> int:
    """Return the most rows that are copied together: those of a batch, or more if they are narrow.

    >>> rows_together(256, 290), rows_together(256, 5080)
    (3615, 256)
    """
    return max(batch_rows, _TOGETHER_BYTES // row_bytes)


class Picker:
    """Picks the batches of an iteration out of the windows of each order."""

    def __init__(
        self,
        ranks: Sequence[RankPlan],
        readers: Sequence[ReadAhead],
        fields: Sequence[Field],
        escaped: Sequence[EscapedField],
        most: int,
    ) -> None:
        """Pick nothing yet.

        ranks, readers: of each order (one, or one a stratum). fields, escaped: of a batch. most: of `rows_together`.
        """
        self._ranks = ranks
        self._readers = readers
        self._fields = fields
        self._escaped = escaped
        self._most = most

    def batches(self, numbers: Iterable[int]) -> Iterator[Arrays]:
        """Yield the arrays of some batches, ascending."""
        first: list[list[BatchSlice]] = []  # of the batches that are copied together, the slices of the first
        stops: list[int] = []  # where each of them ends, in draws of the window
        for number in numbers:
            slices = [rank.batch(number) for rank in self._ranks]
            if stops and self._continues(first, stops[-1], slices):
                stops.append(slices[0][0].stop)
                continue
            yield from self._pick(first, stops)
            first, stops = slices, [slices[0][0].stop if slices[0] else 0]
        yield from self._pick(first, stops)

    def _continues(
        self, first: Sequence[Sequence[BatchSlice]], stop: int, slices: Sequence[Sequence[BatchSlice]]
    ) -> bool:
        """Return whether a batch is copied with others that end at a draw of the same window."""
        if len(first) > 1 or not len(first[0]) == len(slices[0]) == 1:
            return False
        begun, part = first[0][0], slices[0][0]
        return part.share == begun.share and part.start == stop and part.stop - begun.start <= self._most

    def _pick(self, first: Sequence[Sequence[BatchSlice]], stops: Sequence[int]) -> Iterator[Arrays]:
        if len(stops) > 1:
            yield from self._pick_together(first[0][0], stops)
        elif stops:
            yield self._pick_one(first)

    def _pick_together(self, first: BatchSlice, stops: Sequence[int]) -> Iterator[Arrays]:
        """Pick neighbouring batches of one window."""
        picked = self._empty(stops[-1] - first.start)
        window = self._readers[0].get(first.share)
        window.pick(first.start, stops[-1], picked)
        for start, stop in pairwise([first.start, *stops]):
            batch = {name: array[start - first.start : stop - first.start] for name, array in picked.items()}
            codes = window.pick_escaped(start, stop, batch)
            for field in self._escaped:
                batch[field.name] = codes.get(field.name, field.empty(0))
            yield batch

    def _pick_one(self, slices: Sequence[Sequence[BatchSlice]]) -> Arrays:
        """Pick a batch of any windows."""
        picked = self._empty(sum(part.stop - part.start for parts in slices for part in parts))
        escaped: dict[str, list[NDArray[Any]]] = {}
        done = 0
        for reader, parts in zip(self._readers, slices, strict=True):
            for part in parts:
                # Picked before the next window is asked for: only two are ever held.
                end = done + part.stop - part.start
                into = {name: array[done:end] for name, array in picked.items()}
                window = reader.get(part.share)
                window.pick(part.start, part.stop, into)
                for name, codes in window.pick_escaped(part.start, part.stop, into).items():
                    escaped.setdefault(name, []).append(codes)
                done = end
        for field in self._escaped:
            found = escaped.get(field.name)
            picked[field.name] = field.empty(0) if found is None else np.concatenate(found)
        return picked

    def _empty(self, rows: int) -> Arrays:
        return {field.name: field.empty(rows) for field in self._fields}
