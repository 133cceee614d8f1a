"""Writers that take turns, in an order that a test chooses.

A `Crew` is a few threads of which one runs at a time. The running one calls `turn` at each point where another may take
over, and the test's `choose` picks it. So an interleaving is a list of numbers, and the same list is the same run.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

_PATIENCE_S: Final = 60.0
"""How long a run may take before the test gives up."""

Choose = Callable[[int | None, Sequence[int]], int]
"""(who runs now, or None where it has ended; who is not done yet) -> who goes on."""


class Crew:
    """Threads that hand a baton to each other."""

    def __init__(self, size: int) -> None:
        self._locks = [threading.Lock() for _ in range(size)]
        self._ended = threading.Lock()
        for lock in [*self._locks, self._ended]:
            lock.acquire()
        self._jobs: list[Callable[[], Any]] = []
        self._results: list[Any] = []
        self._working: list[int] = []
        self._choose: Choose = lambda _, working: working[0]
        self._stopping = False
        self.running = -1
        """Who has the baton."""
        self._threads = [threading.Thread(target=self._work, args=(me,), daemon=True) for me in range(size)]
        for thread in self._threads:
            thread.start()

    def run(self, jobs: Sequence[Callable[[], Any]], choose: Choose) -> list[Any]:
        """Run each job in a thread; what each returned, or the exception that it raised."""
        self._jobs, self._results, self._choose = list(jobs), [None] * len(jobs), choose
        self._working = list(range(len(jobs)))
        self._pass_on(None)
        if not self._ended.acquire(timeout=_PATIENCE_S):
            raise TimeoutError(f"writer {self.running} does not come to an end")
        return self._results

    def turn(self) -> None:
        """Let `choose` say who goes on. Called by the job that runs."""
        me = self.running
        if self._pass_on(me) != me:
            self._locks[me].acquire()

    def stop(self) -> None:
        """End the threads."""
        self._stopping = True
        for lock, thread in zip(self._locks, self._threads, strict=True):
            lock.release()
            thread.join(_PATIENCE_S)

    def _pass_on(self, me: int | None) -> int:
        after = self.running = self._choose(me, self._working)
        if after != me:
            self._locks[after].release()  # from here on `running` may change
        return after

    def _work(self, me: int) -> None:
        while True:
            self._locks[me].acquire()
            if self._stopping:
                return
            try:
                self._results[me] = self._jobs[me]()
            except BaseException as error:  # noqa: BLE001
                self._results[me] = bare(error)
            self._working.remove(me)
            if self._working:
                self._pass_on(None)
            else:
                self._ended.release()


def bare(error: BaseException) -> BaseException:
    """An exception that keeps no frame, and so no writer, alive."""
    below: BaseException | None = error
    while below is not None:
        below.__traceback__ = None
        below = below.__cause__ or below.__context__
    return error


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    """A crew, ended with the block."""
    made = Crew(size)
    try:
        yield made
    finally:
        made.stop()
