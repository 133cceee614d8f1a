"""Specialists that are trained several at a time, in processes of this machine or on a dask cluster.

A process of this machine asks for the next specialist over its pipe (`runtime.workers`), and reports progress, log and errors
by it. No port is opened.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from ...storage.errors import LogitStoreError
from ...storage.progress import silent
from ..factories.call import describe_exception
from ..models.records import Models
from ..runtime.dask_tasks import cancel, completed, result_of
from ..runtime.stopping import Stopped, handle_signals
from ..runtime.workers import Worker, end_all
from ..workspace import Workspace
from .todo import SpecialistRun

Training = Callable[[Workspace, SpecialistRun], object]
"""Function that trains one specialist, of a module that workers can import."""
_LOOK_SECONDS = 1.0
"""Seconds between two looks at silent workers."""


def train_in_processes(work: Workspace, todo: Sequence[SpecialistRun], number: int, train: Training) -> None:
    """Train specialists in processes of this machine, which divide its threads; if one fails, the finished ones are kept.

    Raises the error of a training, TransientIOError for a process that ends early.
    """
    task, left = f"training {len(todo)} specialists", deque(todo)
    expected = f"{number} processes that train specialists (specialists.workers)"
    work.progress(task, 0, len(todo), "specialists")
    threads = max(1, torch.get_num_threads() // number)
    level = logging.getLogger("logitstore").getEffectiveLevel()
    busy: dict[Any, Worker] = {}
    workers: list[Worker] = []
    done = 0
    try:
        for place in range(number):
            workers.append(Worker(task, expected, _serve, _sent(work), train, place, threads, level))
            busy[workers[-1].connection] = workers[-1]
        while busy:
            for connection in wait(list(busy), _LOOK_SECONDS):
                kind, content = busy[connection].receive()
                if kind == "failed":
                    raise content
                if kind == "progress":
                    work.progress(*content)
                elif kind == "log":
                    logging.getLogger(content.name).handle(content)
                else:  # ready for the next
                    if content is not None:
                        done += 1
                        work.progress(task, done, len(todo), "specialists", content)
                    following = left.popleft() if left else None
                    busy[connection].connection.send(following)
                    if following is None:
                        del busy[connection]
            for worker in busy.values():
                if not worker.process.is_alive() and not worker.connection.poll(0):
                    raise worker.gone()
    finally:
        end_all(workers)


def _serve(
    connection: Connection, work: Workspace, train: Training, place: int, threads: int, level: int
) -> None:
    """Train the specialists that the parent sends, in a worker, until it sends None."""
    handle_signals()  # a training that is stopped writes a checkpoint
    torch.set_num_threads(threads)
    logger = logging.getLogger("logitstore")
    logger.setLevel(level)
    logger.addHandler(_Sending(connection))
    logger.propagate = False
    work = replace(work, device=_device_of(work, place), progress=_Report(connection))
    trained = None
    try:
        while True:
            connection.send(("ready", trained))
            if (run := connection.recv()) is None:
                return
            train(work, run)
            trained = run.name
    except (Stopped, BrokenPipeError, EOFError):
        return  # the parent ends
    except Exception as error:  # noqa: BLE001 - raised again by the parent
        is_known = isinstance(error, (LogitStoreError, OSError, MemoryError))
        connection.send(("failed", error if is_known else RuntimeError(describe_exception(error))))


class _Report:
    """A callback for progress, which sends it to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        self._connection.send(("progress", (task, done, total, unit, detail)))


class _Sending(logging.Handler):
    """A handler that sends records to the parent, which has the settings of the log."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._connection.send(("log", record))


def train_on_cluster(client: Any, work: Workspace, todo: Sequence[SpecialistRun], train: Training) -> None:
    """Train specialists on the workers of a dask cluster, each as one task; if one fails, the finished ones are kept.

    Raises the error of a training, TransientIOError if the scheduler is gone or has no workers.
    """
    task = f"training {len(todo)} specialists"
    work.progress(task, 0, len(todo), "specialists")
    futures = [
        client.submit(_train_there, _sent(work), run, number, train, pure=False)
        for number, run in enumerate(todo)
    ]
    try:
        for done, future in enumerate(completed(client, futures, task)):
            work.progress(task, done + 1, len(todo), "specialists", result_of(future, task))
    finally:
        cancel(client, futures)


def _train_there(work: Workspace, run: SpecialistRun, number: int, train: Training) -> str:
    """Train one specialist in a worker of a cluster; its name."""
    train(replace(work, device=_device_of(work, number)), run)
    return run.name


def _sent(work: Workspace) -> Workspace:
    """Return a workspace to pickle: without the open store and the caller's progress, with absolute paths."""
    path, models = work.path, Models(work.models.folder.resolve())
    path = path.resolve() if isinstance(path, Path) else path
    return replace(work, path=path, models=models, progress=silent, given_rows=None)


def _device_of(work: Workspace, number: int) -> str | None:
    """Return the device of a worker: a GPU of its own if there are several and none is named."""
    if work.device is None and torch.cuda.is_available():
        return f"cuda:{number % torch.cuda.device_count()}"
    return work.device
