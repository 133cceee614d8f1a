"""Transfers in flight: several at a time, of a bounded number of bytes.

A transfer holds the object that it carries in memory. Their number hides the latency of a network; their bytes are
bounded apart from it, since a shard may be of a kilobyte or of a gibibyte.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

REMOTE, LOCAL = 24, 4
"""Transfers at a time where an end is remote, and between disks."""
MOST_BYTES: Final = 512 << 20
"""Bytes of all transfers at a time. A transfer of more than that runs alone."""


class InFlight:
    """A pool of threads that carry objects."""

    def __init__(self, most: int, most_bytes: int = MOST_BYTES) -> None:
        """Begin without a transfer. most: transfers at a time. most_bytes: their bytes together."""
        self._most, self._most_bytes = most, most_bytes
        self._pool = ThreadPoolExecutor(most, "logitstore-copy")

    def __enter__(self) -> "InFlight":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, tasks: Iterable[tuple[int, Callable[[], int]]], done: Callable[[int], None]) -> None:
        """Run tasks, each (bytes that it holds, function), and call `done` in this thread with each result.

        Tasks are asked for one at a time, as room is made. The first error is raised once no task runs any more.
        """
        running: dict[Future[int], int] = {}
        try:
            for size, task in tasks:
                while running and (
                    len(running) >= self._most or sum(running.values()) + size > self._most_bytes
                ):
                    self._collect(running, done)
                running[self._pool.submit(task)] = size
            while running:
                self._collect(running, done)
        finally:
            wait(running)

    @staticmethod
    def _collect(running: dict[Future[int], int], done: Callable[[int], None]) -> None:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            del running[future]
            done(future.result())
