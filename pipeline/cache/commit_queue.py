"""A queue of finished blocks, committed by one thread while the teachers run on the next ones.

Jobs run in the order in which they were put, so that a failure leaves all that came before it. The queue is bounded in
bytes: a caller waits for room, and memory does not grow with a slow disk.
"""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

QUEUE_BYTES = 64 << 20
"""Bytes of blocks that wait to be committed, including the one in work; a larger block waits alone."""


class CommitQueue:
    """A thread that runs jobs in order, as a context manager: leaving it waits for the jobs.

    The first job that fails is the last one that is run. The next `put`, or leaving, raises its error.
    """

    def __init__(self, most_bytes: int = QUEUE_BYTES) -> None:
        self.most_bytes = most_bytes
        """Most bytes that wait, except for a single larger job."""
        self.high_water = 0
        """Most bytes that have waited at once."""
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()
        self._waiting = 0  # bytes of the jobs that are not done
        self._error: BaseException | None = None
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="logitstore-commit", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None], nbytes: int) -> None:
        """Append a job that holds `nbytes` until it is done; wait for room. Raises the error of an earlier job."""
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
        """Wait until all jobs are done, also after a failure of the caller, whose blocks before it are finished.

        Raises the error of a job: it belongs to an earlier block than the error of the caller.
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
            del job  # and its arrays, before its bytes are given to the next
            with self._changed:
                self._waiting -= nbytes
                if error is not None:
                    self._error = error
                    self._jobs.clear()
                    self._ending = True
                self._changed.notify_all()
