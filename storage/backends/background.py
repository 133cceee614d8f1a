"""Background writes: the objects of a block are written while its next piece is encoded.

One thread writes in the order of the calls; then one thread an object waits for its fsync. A small block is written in
the caller's thread.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .staged import NewObject

_WRITE_BYTES = 128 << 10
"""Bytes below which buffers are gathered into one write."""
_AHEAD = 2
"""Most pieces of a block that wait to be written."""


class Background:
    """A writer of staged objects, in order: at once, or in a thread while the caller encodes and hashes."""

    def __init__(self, with_thread: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "logitstore-write") if with_thread else None
        self._waiting: deque[Future[None]] = deque()
        self._gathered: dict[NewObject, list[memoryview]] = {}

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def write(self, new: NewObject, buffers: Sequence[memoryview], *, last: bool = False) -> None:
        """Write buffers, at the latest when `wait` returns. Raises the errors of earlier writes."""
        gathered = self._gathered.setdefault(new, [])
        gathered += buffers
        if not last and sum(map(len, gathered)) < _WRITE_BYTES:
            return
        del self._gathered[new]
        if self._pool is None:
            new.write(b"".join(gathered))
            return
        self._waiting.append(self._pool.submit(_write_all, new, gathered))
        while len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Wait until everything is written. Raises the errors of the writes."""
        while self._waiting:
            self._waiting.popleft().result()

    def publish(self, new: Mapping[str, NewObject]) -> dict[str, bool]:
        """Publish the objects, their fsyncs in parallel; return which of them won their names."""
        if self._pool is None:
            return {name: one.publish() for name, one in new.items()}
        # A thread each: they only wait for the disk, which syncs many files as fast as one.
        with ThreadPoolExecutor(len(new), "logitstore-sync") as pool:
            return dict(zip(new, pool.map(NewObject.publish, new.values()), strict=True))


def _write_all(new: NewObject, buffers: Sequence[memoryview]) -> None:
    """Write buffers, the small ones together."""
    small: list[memoryview] = []
    for buffer in buffers:
        if len(buffer) < _WRITE_BYTES:
            small.append(buffer)
            continue
        if small:
            new.write(b"".join(small))
            small = []
        new.write(buffer)
    if small:
        new.write(b"".join(small))
