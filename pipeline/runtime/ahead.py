"""A thread that prepares items while earlier ones are consumed."""

import os
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from ...storage.errors import ConfigError

AHEAD = 2
"""Batches that are prepared before they are asked for, at most."""
Taken = TypeVar("Taken")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class _Ended:
    """The end of a thread's items: None, or the error that stopped it."""

    error: BaseException | None


def run_ahead(
    items: Iterable[Taken], prepare: Callable[[Taken], Prepared], ahead: int = AHEAD
) -> Generator[Prepared, None, None]:
    """Yield prepare(item) of each item, in order, both done by a thread that is at most `ahead` items ahead.

    What `items` or `prepare` raises is raised here, in its turn. Leaving early ends the thread, and closes `items`
    where it is a generator. Raises ConfigError in a forked child of the process that began: no thread is there.
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
            if close is not None:  # here, because what a generator began in this thread it ends in it
                close()
            ready.put(_Ended(error))

    owner = os.getpid()
    thread = threading.Thread(target=work, name="logitstore-to-device", daemon=True)
    thread.start()
    try:
        while True:
            if os.getpid() != owner:
                raise ConfigError(
                    "an iteration over batches",
                    expected=f"the process that began it, {owner}",
                    found=f"a forked child of it, {os.getpid()}, where its thread does not run",
                    remedy="begin it in the child, or start processes by forkserver or spawn",
                )
            got = ready.get()
            if isinstance(got, _Ended):
                if got.error is not None:
                    raise got.error
                return
            room.release()
            yield got
            del got  # not held while the next one is waited for
    finally:
        if os.getpid() == owner:
            leave.set()
            room.release()
            thread.join()
