"""Stores in buckets, written by several writers and compared with the same store on a disk."""

import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.storage.api import Store, create_store
from logitstore.storage.errors import LogitStoreError

ROWS, CLASSES, BLOCK_ROWS, VIEWS = 20, 3, 8, 2
BLOCKS = VIEWS * -(-ROWS // BLOCK_ROWS)


def logits() -> Any:
    """The logits that every writer writes, (view, row, class)."""
    return np.random.default_rng(0).normal(size=(VIEWS, ROWS, CLASSES)).astype(np.float32)


def write(
    location: Any, writer: int = 0, writers: int = 1, acknowledged: "list[tuple[int, int]] | None" = None
) -> Store:
    """Make the store, or find it; write what is missing, from a place of its own on, and seal it."""
    store = create_store(
        location,
        num_classes=CLASSES,
        labels=np.arange(ROWS) % CLASSES,
        digests=np.arange(ROWS, dtype=np.uint64),
        block_rows=BLOCK_ROWS,
        exist_ok=True,
    )
    values = logits()
    with store.capture("wide", provenance={"teacher": {"name": "wide"}}, views=VIEWS) as capture:
        todo = [(view, rows) for view in range(VIEWS) for rows in capture.missing_blocks(view)]
        turn = len(todo) * writer // writers
        for view, rows in todo[turn:] + todo[:turn]:
            capture.write(rows, values[view, rows.start : rows.stop], view=view)
            if acknowledged is not None:
                acknowledged.append((view, rows.start))
    return store


@cache
def golden() -> Mapping[str, bytes]:
    """The objects of the store on a disk, by key."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.zarr"
        write(path)
        return {
            file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
        }


class Writers:
    """Threads that write one store at the same time, each through a client of its own."""

    def __init__(self, locations: list[Any]) -> None:
        self.errors: list[BaseException] = []
        self.acknowledged: list[list[tuple[int, int]]] = [[] for _ in locations]
        count = len(locations)
        self._threads = [
            threading.Thread(target=self._run, args=(location, number, count), daemon=True)
            for number, location in enumerate(locations)
        ]

    def _run(self, location: Any, number: int, count: int) -> None:
        try:
            write(location, number, count, self.acknowledged[number])
        except LogitStoreError as error:
            self.errors.append(error)

    def run(self, seconds: float = 60.0) -> None:
        """Run them to their ends. Raises AssertionError for one that takes longer."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a writer hangs"
