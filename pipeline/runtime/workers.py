"""Processes of this machine that work for this one, each over a pipe of its own.

No port is opened and no shared memory is used: a pipe blocks where it is full, and ends with the process behind it. A worker
ends with its parent, whatever ends that one. Ctrl-C reaches the parent alone, which ends its workers.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.backends.system import end_process
from ...storage.errors import ConfigError, LogitStoreError, TransientIOError
from ..experiment.training import Factory
from ..factories.call import describe_exception

ANSWER_SECONDS: Final = 1800.0
"""Seconds that `Worker.receive` waits by default: more than a large data set takes to be opened."""
_LOOK_SECONDS: Final = 1.0
"""Seconds between two looks at a silent worker."""
_DRAIN_BYTES: Final = 1 << 16
_NAME: Final = "logitstore-worker"
IMPORTS_A_CALL: Final = 78
"""Exit code of a worker whose import of the script makes a call that starts workers."""
_END_SECONDS: Final = 20.0
"""Seconds that a worker has to end by itself, for example to write a checkpoint."""


@dataclass(frozen=True)
class _Unloadable:
    """The answer of a worker that cannot load what it was sent."""

    found: str


class Worker:
    """A process that runs a function with its end of a pipe."""

    def __init__(self, where: str, expected: str, function: Callable[..., None], *arguments: Any) -> None:
        """Start a process that calls `function(connection, *arguments)`, all of which are pickled.

        where, expected: of the error that is raised if it ends early or does not answer. Raises as `gone`.
        """
        if is_importing_script():
            raise _unguarded()
        self._where, self._expected = where, expected
        context = multiprocessing.get_context("spawn")
        # Over the pipe, as `start` writes arguments that a dead process never reads, and waits.
        given = bytes(ForkingPickler.dumps((function, arguments)))
        self.connection, theirs = context.Pipe()
        """This end of the pipe."""
        self.process = context.Process(target=_run, args=(theirs,), name=_NAME, daemon=True)
        """The process."""
        # The first start of a process starts the tracker as well, after which some versions of Python unblock SIGINT.
        resource_tracker.ensure_running()
        # A process that is started inherits the mask of blocked signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        try:
            self.connection.send_bytes(given)
        except OSError as error:
            raise self.gone() from error
        except BaseException:
            self.process.kill()
            raise

    def receive(self, seconds: float | None = ANSWER_SECONDS) -> Any:
        """Return the next object that it sends. seconds: the most to wait.

        Raises ConfigError for a worker that cannot load what it was sent, and as `gone`.
        """
        self._wait(seconds)
        try:
            received = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.gone() from error
        if isinstance(received, _Unloadable):
            raise ConfigError(
                "workers",
                expected="things of modules that a new process of Python can import",
                found=received.found,
                remedy="define them in a module on PYTHONPATH (not in a notebook's cell), or set workers=0",
            )
        return received

    def receive_into(self, array: NDArray[Any]) -> None:
        """Fill a contiguous array with the next bytes that it sends (`send_array`). Raises as `gone`."""
        view = array.reshape(-1).view(np.uint8).data
        while len(view):
            self._wait(ANSWER_SECONDS)
            try:
                count = os.readv(self.connection.fileno(), [view])
            except OSError as error:
                raise self.gone() from error
            if not count:
                raise self.gone()
            view = view[count:]

    def gone(self) -> LogitStoreError:
        """Return the error of a worker that has ended: a ConfigError where the script lacks its guard, else a TransientIOError."""
        self.process.join(_END_SECONDS)
        code = self.process.exitcode
        if code == IMPORTS_A_CALL:
            return _unguarded()
        by = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return self._error(f"a worker that was ended {by}")

    def _wait(self, seconds: float | None) -> None:
        started = time.monotonic()
        while not self.connection.poll(_LOOK_SECONDS):
            # A process that the worker has forked may hold its end of the pipe.
            if not self.process.is_alive() and not self.connection.poll(0):
                raise self.gone()
            if seconds is not None and time.monotonic() - started > seconds:
                raise self._error(f"a worker that is silent for {seconds:.0f} s")

    def _error(self, found: str) -> TransientIOError:
        remedy = "run the same command again, which goes on where it stopped; with fewer workers, where memory was short"
        return TransientIOError(self._where, expected=self._expected, found=found, remedy=remedy)


@contextlib.contextmanager
def refusing_unpicklable(*tables: Factory | None) -> Iterator[None]:
    """Refuse things in hand that cannot be sent to a worker. Raises ConfigError.

    tables: those that the worker is sent, with what is in hand of them.
    """
    try:
        yield
    except (LogitStoreError, OSError, MemoryError):
        raise
    except Exception as error:  # of several kinds, by the version of Python
        if all(table is None or table.in_hand is None for table in tables):
            raise
        if "bootstrapping" in str(error):
            raise _unguarded() from error
        raise ConfigError(
            "workers",
            expected="a data set and an augmentation that can be pickled, of classes in a module",
            found=describe_exception(error)[:200],
            remedy="define them in a module, or set workers=0",
        ) from error


def end_all(workers: Sequence[Worker]) -> None:
    """End processes: by SIGTERM, and by SIGKILL once they have closed their pipe, or after a while."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + _END_SECONDS
    for worker in workers:
        with contextlib.suppress(OSError):
            # A closed pipe means that its function has returned. Python may then take seconds to free its memory.
            while worker.connection.poll(max(0.0, deadline - time.monotonic())):
                if not os.read(worker.connection.fileno(), _DRAIN_BYTES):
                    break
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def send_array(connection: Connection, array: NDArray[Any]) -> None:
    """Send the bytes of a contiguous array as they are, for `Worker.receive_into`."""
    view = array.reshape(-1).view(np.uint8).data
    while len(view):
        view = view[os.write(connection.fileno(), view) :]


def is_importing_script() -> bool:
    """Return whether this process is a worker that imports the script of its parent, and is to run nothing of it."""
    return multiprocessing.current_process().name == _NAME and not _begun


def _unguarded() -> ConfigError:
    return ConfigError(
        "workers",
        expected='a call under `if __name__ == "__main__":`, as each worker imports the script',
        found="a script that makes the call when it is imported",
        remedy="put the call under that line, or set workers=0",
    )


_begun: list[bool] = []
"""Not empty in a worker that runs its function."""


def _run(connection: Connection) -> None:
    """Run the function that the parent sends, and end the worker with its parent."""
    _begun.append(True)
    watch_parent()
    with connection:
        try:
            function, arguments = connection.recv()
        except (ImportError, AttributeError) as error:
            connection.send(_Unloadable(describe_exception(error)[:200]))
            return
        function(connection, *arguments)


@functools.cache
def watch_parent() -> None:
    """Start a thread that ends this process when the one that has started it ends; once.

    Torch's own watch looks at the direct parent. That is the fork server for a DataLoader with "forkserver", which stays.
    """
    threading.Thread(target=_end_with_parent, name="logitstore-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        end_process()
