"""Shards of a remote store, fetched to the local disk in the order in which an epoch needs them.

    windows of the epoch ──▶ shards, each once, by first need ──▶ threads: `Place.keep`
    reading threads      ──▶ a shard that is not there yet: the one who comes first fetches it, the other waits

Reading ends where the room on the disk does: shards without room are read run by run, as by a stream without a cache.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import numpy as np

from ..backends.place import Place, SealedShard
from ..errors import LogitStoreError
from ..parts.part_reader import PartReader
from .order import ChunkRun, WindowedOrder

FETCHES: Final = 16
"""Shards that are fetched at once."""
FETCH_BYTES: Final = 4 << 20
"""Bytes of a shard in memory while it is fetched: the piece that is written, the next one, and those of the connection."""
_CLOSE_SECONDS: Final = 5.0
_LEAST_SHARE: Final = 4
"""A shard of whose rows an epoch needs one in so many, or more, is fetched whole."""


@dataclass(frozen=True)
class Source:
    """An array of a sealed part that a field is read from."""

    reader: PartReader
    """Reads the part."""
    array: str
    """Its name."""
    has_views: bool
    """Whether each view has shards of its own."""


class Plan:
    """The shards that an epoch needs whole."""

    def __init__(self, order: WindowedOrder, sources: Sequence[Source], block_rows: int) -> None:
        """Plan an epoch. sources: what is read of each run."""
        self._sources = sources
        self._block_rows = block_rows
        rows = order.rows
        self._counts = None if rows is None else np.bincount(rows // block_rows)

    def _is_whole(self, block: int) -> bool:
        return self._counts is None or int(self._counts[block]) * _LEAST_SHARE >= self._block_rows

    @property
    def keeps_all(self) -> bool:
        """Whether each shard is needed whole, so that all reads are of the local disk once it has them."""
        return self._counts is None or all(map(self._is_whole, np.flatnonzero(self._counts).tolist()))

    def places(self, runs: Iterable[ChunkRun]) -> Iterator[tuple[int, int, int]]:
        """Yield the number of the source, the view and the block of each shard that runs need."""
        for run in runs:
            block = int(run.rows[0]) // self._block_rows
            if self._is_whole(block):
                for number, source in enumerate(self._sources):
                    yield number, run.view if source.has_views else 0, block

    def shard(self, place: tuple[int, int, int]) -> tuple[Place, SealedShard]:
        """Return the folder and the seal of a shard."""
        source = self._sources[place[0]]
        return source.reader.part.folder, source.reader.sealed_shard(source.array, *place[1:])

    def shards(self, runs: Iterable[ChunkRun]) -> Iterator[tuple[Place, SealedShard]]:
        """Yield the shards that runs need, each once, by first need."""
        seen: set[tuple[int, int, int]] = set()
        for place in self.places(runs):
            if place not in seen:
                seen.add(place)
                yield self.shard(place)

    def announce(self, runs: Iterable[ChunkRun]) -> None:
        """Announce the shards of runs: whoever reads of one first fetches it whole, and others wait."""
        for place in dict.fromkeys(self.places(runs)):
            folder, shard = self.shard(place)
            folder.announce(shard)


def holds_all(plans: Sequence[Plan | None], runs: Sequence[Iterator[ChunkRun]]) -> bool:
    """Return whether the local disk has the shards of all runs: reading then is as on a local disk."""
    return all(
        plan is not None
        and plan.keeps_all
        and all(folder.holds(shard) for folder, shard in plan.shards(each))
        for plan, each in zip(plans, runs, strict=True)
    )


class FetchAhead:
    """Threads that fetch shards, until they are told to stop or there is no more room."""

    def __init__(self, shards: Iterator[tuple[Place, SealedShard]], threads: int = FETCHES) -> None:
        """Begin to fetch."""
        self._shards = shards
        self._lock = threading.Lock()
        self._stopped = self._is_closed = False
        self._threads = [
            threading.Thread(target=self._fetch, name="logitstore-fetch-ahead", daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def of(cls, plans: Sequence[Plan | None], runs: Sequence[Iterator[ChunkRun]]) -> "FetchAhead | None":
        """Fetch the shards of the runs of each order, in turn; None without plans."""
        shards = [plan.shards(each) for plan, each in zip(plans, runs, strict=True) if plan is not None]
        if not shards:
            return None
        return cls(shard for turn in zip_longest(*shards) for shard in turn if shard is not None)

    def _next(self) -> tuple[Place, SealedShard] | None:
        with self._lock:
            if self._stopped:
                return None
            found = next(self._shards, None)
            if found is None or not found[0].keeps:
                self._stopped = True
                return None
            return found

    def _fetch(self) -> None:
        # The thread that reads a shard that failed here fetches it again, and says why.
        while (found := self._next()) is not None:
            with suppress(LogitStoreError):
                found[0].keep(found[1], lambda: not self._is_closed)

    def close(self) -> None:
        """Give the fetches up, and wait for the threads: none of them may be in a library when the interpreter ends.

        One whose server is silent is not waited for.
        """
        with self._lock:
            self._stopped = self._is_closed = True
        until = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
