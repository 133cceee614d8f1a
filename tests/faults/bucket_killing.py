"""Writers of a store in a bucket, which are killed at a PUT: before it is stored, or after it and before its answer.

Each writer is a process with an access key of its own, by which the server knows whom to kill.
"""

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from support.bucket_stores import BLOCK_ROWS, write
from support.buckets import Bucket, client_of

from logitstore.storage.backends import conditional
from logitstore.storage.errors import LogitStoreError

WRITERS = 4
KEYS = tuple(f"writer{number}" for number in range(WRITERS))
"""The access key of each writer."""
_ENDS_WITHIN_S = 120.0
_LAST_PUT = 60
"""A PUT that no writer comes to alone."""


class _Told(list[tuple[int, int]]):
    """The blocks that were acknowledged, each told to the parent at once."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def append(self, place: tuple[int, int]) -> None:
        self._pipe.send(place)


def child(url: str, prefix: str, number: int, writers: int, pipe: Connection) -> None:
    """One writer: its blocks, and at its end "" or its error."""
    conditional._FIRST_WAIT_S = 0.005  # type: ignore[misc]
    try:
        write(client_of(url, prefix, KEYS[number], timeout="10s"), number, writers, _Told(pipe))
        pipe.send("")
    except LogitStoreError as error:
        pipe.send(f"{type(error).__name__}: {error}")


class Reaper:
    """Kills each writer at a PUT of its own choice."""

    def __init__(self, aims: Mapping[str, tuple[int, bool]]) -> None:
        self._aims = dict(aims)
        self._seen: dict[tuple[str, bool], int] = {}
        self._lock = threading.Lock()
        self.pids: dict[str, int] = {}
        self.killed = 0

    def __call__(self, who: str, after: bool) -> None:
        """Count a PUT, before it is stored or after it, and kill its writer if it is the one."""
        with self._lock:
            number = self._seen[who, after] = self._seen.get((who, after), -1) + 1
            if self._aims.get(who) == (number, after) and who in self.pids:
                self.killed += 1
                os.kill(self.pids[who], signal.SIGKILL)


def run_writers(
    bucket: Bucket, prefix: str, writers: int, aims: Mapping[str, tuple[int, bool]]
) -> dict[str, Any]:
    """Run writers to their ends; the blocks that were acknowledged, the errors, and the number of the killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults.bucket_killing"])
    reaper = bucket.watch = Reaper(aims)
    acknowledged, errors = set(), []
    pipes, processes = [], []
    for number in range(writers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=child, args=(bucket.url, prefix, number, writers, theirs), daemon=True
        )
        process.start()
        theirs.close()
        assert process.pid is not None
        reaper.pids[KEYS[number]] = process.pid
        pipes.append(ours)
        processes.append(process)
    for ours, process in zip(pipes, processes, strict=True):
        process.join(_ENDS_WITHIN_S)
        assert process.exitcode is not None, "a writer hangs"
        try:
            while True:
                said = ours.recv()
                if isinstance(said, tuple):
                    acknowledged.add(said)
                elif said:
                    errors.append(said)
        except EOFError:
            ours.close()
    bucket.watch = None
    return {"acknowledged": acknowledged, "errors": errors, "killed": reaper.killed}


def commits(acknowledged: set[tuple[int, int]]) -> set[str]:
    """The keys of the records of blocks."""
    return {
        f"teachers/wide/__logitstore__/commits/{view}-{start // BLOCK_ROWS}.json"
        for view, start in acknowledged
    }


def killed_run(
    bucket: Bucket, prefix: str, chance: random.Random, incarnations: int = 3
) -> tuple[int, set[str]]:
    """Kill writers, in another number each time, then let some end; how many were killed, and all records acknowledged."""
    killed, kept = 0, set()
    for turn in range(incarnations + 1):
        writers = chance.randint(1, WRITERS)
        aims = {}
        if turn < incarnations:
            aims = {
                key: (chance.randrange(_LAST_PUT // writers), chance.random() < 0.5) for key in KEYS[:writers]
            }
        done = run_writers(bucket, prefix, writers, aims)
        assert not done["errors"], done["errors"]
        killed += done["killed"]
        kept |= commits(done["acknowledged"])
    return killed, kept
