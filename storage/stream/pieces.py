"""Which rows of an epoch are left, which of them are a rank's, and in which of its batches does each come?

1. What is left is a few *pieces*: places start … stop - 1, without the rows whose turn came before `after`. At first
   it is one piece, the whole epoch.
2. Ranks take equal stretches of what is left, in the order of places; two ranks share at most one run of chunks.
3. A rank goes through its stretch window by window, in each by turns, and cuts that into batches.
4. After so many batches of every rank, each rank's stretch is again a few pieces; those of all ranks are what is left.

        places    0 ─────────────────────────────────────────── len - 1
        windows   └─────0─────┘└─────1─────┘└─────2─────┘└──3──┘
        ranks     ├───────── 0 ─────────┼───────── 1 ──────────┤        world_size = 2
        left                ░░░░░████████            ░░░░░░█████        ░ half of the turns of a window, █ all

So the state is a list of pieces, the same on every rank, and any number of ranks with any batch size goes on from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from .order import Windows


@dataclass(frozen=True)
class Piece:
    """The rows in places start … stop - 1 whose turn is `after` or later."""

    start: int
    """First place."""
    stop: int
    """Place behind the last."""
    after: int = 0
    """Turns before this one were taken, if it is not 0; the piece then lies in one window."""


@dataclass(frozen=True)
class Portion:
    """What a rank takes of one window."""

    window: int
    """The window."""
    pieces: tuple[Piece, ...]
    """In the order of their places, all in the window."""
    rows: int
    """How many rows."""


class Left:
    """Rows of an epoch, in pieces."""

    def __init__(self, order: Windows, pieces: Sequence[Piece]) -> None:
        """pieces: in the order of their places, apart from each other."""
        self._order = order
        self.pieces = tuple(piece for piece in pieces if piece.start < piece.stop)
        """What the rows are."""

    @cached_property
    def _counts(self) -> list[int]:
        return [self._count(piece) for piece in self.pieces]

    @property
    def total(self) -> int:
        """Rows."""
        return sum(self._counts)

    def _places(self, piece: Piece) -> Int64[np.ndarray, " rows"] | None:
        """The places of a piece that are left, ascending; None where all are."""
        window = self._order.window_at(piece.start)
        first, _ = self._order.window_interval(window)
        if piece.after <= first:
            return None
        places = self._order.permutation(window)[piece.after - first :] + first
        return np.sort(places[(places >= piece.start) & (places < piece.stop)])

    def _count(self, piece: Piece) -> int:
        places = self._places(piece)
        return piece.stop - piece.start if places is None else len(places)

    def cut(self, first: int, last: int) -> "Left":
        """Rows number first … last - 1 of these, in the order of places."""
        cut, before = [], 0
        for piece, count in zip(self.pieces, self._counts, strict=True):
            low, high = max(first - before, 0), min(last - before, count)
            if low < high:
                cut.append(self._cut(piece, low, high, count))
            before += count
        return Left(self._order, cut)

    def _cut(self, piece: Piece, low: int, high: int, count: int) -> Piece:
        places = self._places(piece)
        if places is None:
            return replace(piece, start=piece.start + low, stop=piece.start + high)
        start = int(places[low]) if low else piece.start
        stop = int(places[high]) if high < count else piece.stop
        return replace(piece, start=start, stop=stop)

    @cached_property
    def portions(self) -> list[Portion]:
        """The rows window by window."""
        gathered: dict[int, list[Piece]] = {}
        for piece in self.pieces:
            start = piece.start
            while start < piece.stop:
                window = self._order.window_at(start)
                end = min(piece.stop, self._order.window_interval(window)[1])
                gathered.setdefault(window, []).append(replace(piece, start=start, stop=end))
                start = end
        counted = [(window, pieces, sum(map(self._count, pieces))) for window, pieces in gathered.items()]
        return [Portion(window, tuple(pieces), rows) for window, pieces, rows in counted if rows]

    def turns(self, portion: Portion) -> Int64[np.ndarray, " rows"]:
        """The turns of a portion's rows, ascending, counted from the window's first."""
        first, stop = self._order.window_interval(portion.window)
        if portion.rows == stop - first:
            return np.arange(portion.rows, dtype=np.int64)
        # For each place the first turn that is left there, and none for places of others.
        since = np.full(stop - first, stop - first, dtype=np.int64)
        for piece in portion.pieces:
            since[piece.start - first : piece.stop - first] = piece.after - first
        permutation = self._order.permutation(portion.window)
        return np.flatnonzero(np.arange(stop - first) >= since[permutation]).astype(np.int64)

    def beyond(self, taken: int) -> "Left":
        """What is left of these when the first `taken`, by windows and turns, are taken."""
        left: list[Piece] = []
        for portion in self.portions:
            if taken >= portion.rows:
                taken -= portion.rows
            elif taken:
                first, _ = self._order.window_interval(portion.window)
                after = first + int(self.turns(portion)[taken])
                left += [replace(piece, after=max(piece.after, after)) for piece in portion.pieces]
                taken = 0
            else:
                left += portion.pieces
        return Left(self._order, _joined(left))


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces, neighbours of which nothing is taken put together."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].stop == piece.start and not joined[-1].after and not piece.after:
            joined[-1] = replace(joined[-1], stop=piece.stop)
        else:
            joined.append(piece)
    return joined
