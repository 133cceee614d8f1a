"""Functions of workers and their parents, for tests of processes of this machine.

As a script, a parent that starts a process which does nothing, prints its number, and waits to be killed.
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from logitstore.pipeline.runtime.stopping import asked, held
from logitstore.pipeline.runtime.workers import Worker, end_all, send_array
from logitstore.pipeline.specialists.todo import SpecialistRun
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import TransientIOError
from support.trainings import plain_store

WHERE, EXPECTED = "transfer_set", "2 workers"


def idle(*_: object) -> None:
    """Do nothing for long."""
    time.sleep(120)


def answers(connection: Connection, rows: int) -> None:
    """Send a header and an array, then end."""
    connection.send(("rows", rows))
    send_array(connection, np.arange(rows, dtype=np.int64))


def begins(connection: Connection) -> None:
    """Send half of an array."""
    send_array(connection, np.zeros(5, np.int64))
    time.sleep(120)


def echoes(connection: Connection) -> None:
    """Send back each object."""
    while True:
        connection.send(connection.recv())


def after_signal(number: int) -> list[str]:
    """Send a signal to the first worker of this process, and to its second; return the answer of each, or its end."""
    found = []
    for _ in range(2):
        worker = Worker(WHERE, EXPECTED, echoes)
        try:
            worker.connection.send("begun")
            worker.receive()
            assert worker.process.pid is not None
            os.kill(worker.process.pid, number)
            worker.connection.send("still there")
            found.append(worker.receive())
        except (TransientIOError, BrokenPipeError) as error:
            worker.process.join()
            found.append(f"{type(error).__name__}, exit code {worker.process.exitcode}")
        finally:
            end_all([worker])
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, set()), "this process takes signals as before"
    return found


def keeps_when_stopped(work: Workspace, run: SpecialistRun) -> None:
    """Train nothing until a signal comes, and then write a file, as a training writes its checkpoint."""
    with held():
        work.progress("begun", 0, 1)
        while not asked():
            time.sleep(0.01)
        (work.models.folder / f"{run.name}.stopped").touch()


def loaded(folder: Path, *, watched: bool) -> int:
    """Read a stream by a worker of a DataLoader, as docs/guides/your-own-loop.md does; return the worker's process."""
    plain_store(folder / "store.zarr")
    stream = TorchStream(open_store(folder / "store.zarr").stream(batch_size=8, views=0, decode=False))
    loader: Any = DataLoader(
        stream if watched else Unwatched(stream),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    batches = iter(loader)
    next(batches)
    ALIVE.append(batches)
    return int(batches._workers[0].pid)


class Unwatched(IterableDataset[Any]):
    """A stream whose workers are left to torch."""

    def __init__(self, stream: TorchStream) -> None:
        self._stream = stream

    def __iter__(self) -> Any:
        with mock.patch("logitstore.pipeline.stream.torch_stream.watch_parent"):
            yield from self._stream


ALIVE: list[Any] = []
"""Iterators whose workers must not end by themselves."""


def main(whose: str, folder: str) -> None:
    """Start a process, print its number, and wait to be killed."""
    if whose == "ours":
        pid = Worker(WHERE, EXPECTED, idle).process.pid
    elif whose == "control":  # a process of the standard library, which nobody ends
        process = multiprocessing.get_context("spawn").Process(target=idle, daemon=True)
        process.start()
        pid = process.pid
    else:
        pid = loaded(Path(folder), watched=whose == "loader")
    print(pid, flush=True)
    time.sleep(120)


if __name__ == "__main__":
    main(*sys.argv[1:])
