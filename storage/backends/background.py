"""How are the objects of a block written and synced while the next piece of it is encoded?

By one thread, which writes in the order of the calls, and then by a thread an object, which waits for the disk. Where a
block is small everything is done at once, in the caller's thread.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .local import NewObject

_WRITE_BYTES = 128 << 10
"""Smaller buffers are gathered into one write."""
_AHEAD = 2
"""Pieces of a block that wait to be written, at most."""


class Background:
    """Writes staged objects, in order: at once, or by a thread while the caller encodes and hashes."""

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
        """Write buffers, some time before `wait` returns. Raises what an earlier write raised."""
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
        """Until everything is written. Raises what a write raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def publish(self, new: Mapping[str, NewObject]) -> dict[str, bool]:
        """Give the objects their names; which of them won theirs. They are synced beside each other."""
        if self._pool is None:
            return {name: one.publish() for name, one in new.items()}
        # A thread each: they do nothing but wait for the disk, which makes many durable as fast as one.
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
