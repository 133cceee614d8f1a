"""A thread that prepares items while earlier ones are consumed."""

import os
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from ...storage.errors import ConfigError

AHEAD = 2
"""Maximum number of batches that are prepared in advance."""
LEAVE_SECONDS = 10.0
"""Seconds that the thread has to end when the generator is closed; one that hangs in user code is left behind."""
Taken = TypeVar("Taken")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class _Ended:
    """The end of a thread's items, with the error that stopped it, if any."""

    error: BaseException | None


def run_ahead(
    items: Iterable[Taken], prepare: Callable[[Taken], Prepared], ahead: int = AHEAD
) -> Generator[Prepared, None, None]:
    """Yield prepare(item) of each item, in order. A thread fetches and prepares at most `ahead` items in advance.

    An error of `items` or `prepare` is raised after the items before it. Closing the generator ends the thread after the item in work, and closes
    `items` if it is a generator. Raises ConfigError in a forked child, which does not inherit the thread.
    """
    room, leave = threading.Semaphore(ahead), threading.Event()
    ready: SimpleQueue[Prepared | _Ended] = SimpleQueue()

    def work() -> None:
        iterator = iter(items)
        error: BaseException | None = None
        try:
            while room.acquire() and not leave.is_set():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                ready.put(prepare(item))
        except BaseException as raised:  # noqa: BLE001 - raised again, in the loop
            error = raised
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:  # a generator must be closed in the thread that ran it
                close()
            ready.put(_Ended(error))

    owner = os.getpid()
    thread = threading.Thread(target=work, name="logitstore-to-device", daemon=True)
    thread.start()
    try:
        while True:
            if os.getpid() != owner:
                raise ConfigError(
                    "iteration over batches",
                    expected=f"process {owner}, which started it",
                    found=f"process {os.getpid()}, a forked child",
                    remedy="start the iteration in the child, or start processes by forkserver or spawn",
                )
            item = ready.get()
            if isinstance(item, _Ended):
                if item.error is not None:
                    raise item.error
                return
            room.release()
            yield item
            del item  # free its memory before the wait for the next one
    finally:
        if os.getpid() == owner:
            leave.set()
            room.release()
            thread.join(LEAVE_SECONDS)
