"""Bytes that all ranks together read for an epoch, as a multiple of the epoch.

The stores have 131,072 rows, and 100,003, which no power of two divides. World sizes are 1, 2, 4 and 8. Every
rank opens the store for itself and runs through its epoch. Each call's bytes from the operating system count,
seals and metadata included. One epoch's bytes are those of its rows: inputs, labels, logits.

Alone, with fewer rows: python benchmarks/ranks.py [rows]
"""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoding import bar
from measured_stores import BATCH, CLASSES, ROWS, make_store, random_inputs

import logitstore

WORLDS, MOST = (1, 2, 4, 8), 1.1
AWKWARD = 100_003
READS = ("pread", "preadv", "read", "readv")
"""Calls of `os` that read bytes of a file."""


class Counter:
    """Bytes read, by all threads."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, result: Any) -> None:
        """Count the result of a call: bytes, or the number of bytes put into a buffer."""
        with self._lock:
            self.bytes += result if isinstance(result, int) else len(result)


@contextmanager
def counting() -> Iterator[Counter]:
    """Count the bytes that this process reads through `os`."""
    counter = Counter()
    originals = {name: getattr(os, name) for name in READS}

    def counted(name: str) -> Any:
        def call(*args: Any) -> Any:
            result = originals[name](*args)
            counter.add(result)
            return result

        return call

    for name in READS:
        setattr(os, name, counted(name))
    try:
        yield counter
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def bytes_of_epoch(store: logitstore.Store) -> int:
    """Return the bytes of an epoch's rows: inputs, labels, float16 logits."""
    assert store.samples.inputs is not None
    return store.num_rows * (store.samples.inputs[:1].nbytes + 8 + 2 * CLASSES)


def measure(path: Path, rows: int) -> None:
    """Make a store of `rows` rows and count."""
    store = make_store(path, rows, {"float16": "float16"}, inputs=random_inputs(rows))
    wanted = bytes_of_epoch(store)
    for world in WORLDS:
        seen = 0
        with counting() as counter:
            for rank in range(world):
                stream = logitstore.open_store(path).stream(
                    BATCH, rank=rank, world_size=world, seed=0, decode=False
                )
                seen += sum(len(batch) for batch in stream)
        assert seen == rows
        ratio = counter.bytes / wanted
        assert ratio >= 1, "the benchmark does not see every read"
        what = f"bytes read by {world} rank{'s' * (world > 1)} / of an epoch, {rows:,} rows"
        bar(f"{what} ({counter.bytes:,} bytes)", f"{ratio:.4f}", f"<= {MOST:g}", ratio <= MOST)


def main(rows: int = ROWS, awkward: int | None = None) -> None:
    """Print the table."""
    print("ranks: bytes that all ranks together read in an epoch")
    for count in (rows, awkward or (AWKWARD if rows == ROWS else rows - 1021)):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder) / "store.zarr", count)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
