"""Stage two with many classes: time and memory of `logitstore cluster`, 10,000 classes into 100 sets by ten starts.

The logits have groups of classes that are confused: a row raises a group, and one class of it more. The bars are those of two
cores: three minutes, and 2 GiB of memory for the whole process with `--memory 2`.

Not part of `make bench`, since it takes minutes: python benchmarks/clusters.py [classes]
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from encoding import bar
from numpy.typing import NDArray

import logitstore

CLASSES, ROWS, SETS, GROUP = 10_000, 16_384, 100, 50
MOST_SECONDS, MOST_GIB = 180, 2.0


def rows_of(rows: range, classes: int) -> NDArray[np.float32]:
    """Make logits (rows, classes), each row of one group of classes."""
    random = np.random.default_rng(rows.start)
    logits = random.standard_normal((len(rows), classes), dtype=np.float32)
    group = random.integers(0, classes // GROUP, len(rows))
    every = np.arange(len(rows))
    logits[every[:, None], group[:, None] * GROUP + np.arange(GROUP)] += 6
    logits[every, group * GROUP + random.integers(0, GROUP, len(rows))] += 3
    return logits


def main(classes: int = CLASSES) -> None:
    """Make a store, cluster it by the command, and print time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.zarr"
        store = logitstore.create_store(path, num_classes=classes, digests=np.zeros(ROWS, np.uint64))
        with store.capture("wide", provenance={}) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, rows_of(rows, classes))
        command = [sys.executable, "-m", "logitstore", "cluster", str(path), "--teacher", "wide"]
        sizes = ["--clusters", str(SETS), "--classes-per-cluster", str(GROUP), "--memory", "2"]
        start = time.perf_counter()
        child = os.spawnv(os.P_NOWAIT, command[0], [*command, *sizes])
        _, status, used = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        assert not status, f"exit status {status}"
        print(
            f"cluster: {ROWS:,} rows of {classes:,} classes, {SETS} sets, ten starts, {os.cpu_count()} cores"
        )
        memory = used.ru_maxrss / (1 << 20)
        bar("seconds", f"{seconds:.0f}", f"<= {MOST_SECONDS}", seconds <= MOST_SECONDS)
        bar("peak memory, GiB", f"{memory:.2f}", f"<= {MOST_GIB:g}", memory <= MOST_GIB)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
