"""How are finished blocks committed while the teachers run on the next ones?

By one thread, in the order in which they were put, so that what is there when something fails is what came before
it. The queue is bounded in bytes: who puts waits for room, and so memory does not grow where the disk is slow.
"""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

QUEUE_BYTES = 64 << 20
"""Bytes of blocks that wait to be committed, with the one in work; a block that is larger waits alone."""


class CommitQueue:
    """Runs jobs in a thread, in order. A context manager: leaving it waits for what was put.

    The first job that fails is the last one that is run. Its error is raised by the next `put`, or on leaving.
    """

    def __init__(self, most_bytes: int = QUEUE_BYTES) -> None:
        self.most_bytes = most_bytes
        """Most bytes that wait, but for a single job that is larger."""
        self.high_water = 0
        """The most bytes that have waited at once."""
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()
        self._waiting = 0  # bytes of the jobs that are not done
        self._error: BaseException | None = None
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="logitstore-commit", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None], nbytes: int) -> None:
        """Have a job run after all that were put before it; `nbytes` is what it holds until then.

        Waits for room. Raises the error of an earlier job.
        """
        with self._changed:
            while self._error is None and self._waiting and self._waiting + nbytes > self.most_bytes:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            self._waiting += nbytes
            self.high_water = max(self.high_water, self._waiting)
            self._jobs.append((job, nbytes))
            self._changed.notify_all()

    def __enter__(self) -> "CommitQueue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until all jobs are done, also where the block failed: they were finished before it did.

        Raises the error of a job, which is of an earlier block than the error with which the block was left.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None and self._error is not error and not isinstance(error, KeyboardInterrupt):
            raise self._error from error

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._ending:
                    self._changed.wait()
                if not self._jobs:
                    return
                job, nbytes = self._jobs.popleft()
            error: BaseException | None = None
            try:
                job()
            except BaseException as raised:  # noqa: BLE001 - raised again, where jobs are put
                error = raised
            del job  # with what it holds, before its bytes are given to another
            with self._changed:
                self._waiting -= nbytes
                if error is not None:
                    self._error = error
                    self._jobs.clear()
                    self._ending = True
                self._changed.notify_all()
