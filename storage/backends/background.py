"""Background writes: the objects of a block are written and checked while its next piece is encoded.

One thread writes and checks in the order of the calls; then one thread an object waits for its fsync. A small block is
written in the caller's thread.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from .writable import Staged

_WRITE_BYTES = 128 << 10
"""Bytes below which buffers are gathered into one write."""
_AT_ONCE = 16
"""Requests in flight."""
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
_AHEAD = 2
"""Most pieces of a block that wait to be written and checked."""
_SYNCS = 16
"""Most objects of a block whose fsyncs run at once."""


class Crew:
    """The threads of one block at a time: one that writes, and some that wait for the disk. They start when needed."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.writing = ThreadPoolExecutor(1, "logitstore-write")
        self.syncing = ThreadPoolExecutor(_SYNCS, "logitstore-sync")

    def end(self) -> None:
        """End the threads, after the work that they have."""
        self.writing.shutdown()
        self.syncing.shutdown()


class Crews:
    """Crews that wait for the next block, since threads take longer to start than a small block to write."""

    def __init__(self) -> None:
        self._idle: list[Crew] = []

    def take(self) -> Crew:
        """Return a crew that no other block has."""
        crew = self._next()
        return Crew() if crew is None else crew

    def give_back(self, crew: Crew) -> None:
        """Keep a crew, which has no work left, for another block."""
        self._idle.append(crew)

    def end(self) -> None:
        """End the crews that no block has."""
        while (crew := self._next()) is not None:
            crew.end()

    def _next(self) -> Crew | None:
        """Take an idle crew of this process: a forked child has none of its parent's threads. None if there is none."""
        with contextlib.suppress(
            IndexError
        ):  # not `if self._idle`: another thread may take the last one meanwhile
            while True:
                crew = self._idle.pop()
                if crew.process == os.getpid():
                    return crew
        return None


def each(function: Callable[[_Item], _Answer], items: Iterable[_Item], *, at_once: bool) -> list[_Answer]:
    """Call a function for each item, and return its answers in their order; at once: by threads that wait for a network.

    Raises the error of the first item that has one.
    """
    if not at_once:
        return list(map(function, items))
    with ThreadPoolExecutor(_AT_ONCE, "logitstore-ask") as pool:
        return list(pool.map(function, items))


class Background:
    """A writer of staged objects, in order: at once, or in a thread while the caller encodes."""

    def __init__(self, crews: Crews | None) -> None:
        """Begin a block. crews: gives its threads; None to write in the caller's."""
        self._crews = crews
        self._crew = None if crews is None else crews.take()
        self._waiting: deque[Future[Any]] = deque()
        self._gathered: dict[Staged, list[memoryview]] = {}

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        if self._crews is None or self._crew is None:
            return
        for one in self._waiting:
            one.cancel()
        wait(self._waiting)  # nothing is written after this: the files are closed next
        self._crews.give_back(self._crew)

    def write(
        self, new: Staged, buffers: Sequence[memoryview], check: Callable[[], None], *, last: bool = False
    ) -> None:
        """Write buffers, then call `check`, at the latest when `wait` returns. Raises the errors of earlier calls.

        check: checks and hashes what was handed out for this object so far.
        """
        gathered = self._gathered.setdefault(new, [])
        gathered += buffers
        if not last and sum(map(len, gathered)) < _WRITE_BYTES:
            return
        del self._gathered[new]
        if self._crew is None:
            new.write(b"".join(gathered))
            check()
            return
        self._waiting.append(self._crew.writing.submit(_write_all, new, gathered, check))
        self._wait(_AHEAD)

    def wait(self) -> None:
        """Wait until everything is written and checked. Raises the errors of that."""
        self._wait(0)

    def _wait(self, most: int) -> None:
        """Wait until at most so many calls are left. One that an interrupt stops waiting for is among them still."""
        while len(self._waiting) > most:
            self._waiting[0].result()
            self._waiting.popleft()

    def publish(self, new: Mapping[str, Staged], *, in_order: bool = False) -> dict[str, bool]:
        """Publish the objects, their fsyncs in parallel; return which of them won their names.

        in_order: one after the other, up to the first that does not win. So the shards of two writers never mix: whoever
        puts one has found the bytes of all before it to be its own.
        """
        if in_order:
            found = {}
            for name, one in new.items():
                found[name] = one.publish()
                if not found[name]:
                    break
            return found
        if self._crew is None:
            return {name: one.publish() for name, one in new.items()}
        # A thread each: they only wait, for the disk or the network, which take many objects as fast as one.
        first, *others = new.values()
        publishing = [self._crew.syncing.submit(one.publish) for one in others]
        self._waiting += publishing  # also if `first` fails
        won = [first.publish(), *(one.result() for one in publishing)]
        return dict(zip(new, won, strict=True))


def _write_all(new: Staged, buffers: Sequence[memoryview], check: Callable[[], None]) -> None:
    """Write buffers, the small ones together, and check them."""
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
    check()
