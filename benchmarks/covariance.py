"""Cost of the covariance of a store, against one product of the same matrix in memory.

1. Speed: 131,072 rows of 1000 classes, stored as float16. The yardstick is `p.T @ p` of their softmax, in
   memory as float32: one call of BLAS with as many threads. NumPy recognises that both sides are one matrix,
   and computes half of the product. Ours reads, checks and decodes the rows, takes the softmax in float64,
   centres, and adds up in float64.
2. Accuracy: against NumPy in float64, in units of sqrt(c_ii c_jj), the largest of all elements.
3. The same on a `dask.distributed.LocalCluster` of two processes.
4. Memory: the peak (VmHWM, Linux) of a fresh process that opens a store and takes the covariance, for 32,768
   and for 524,288 rows. The two should differ only by the blocks that happen to be in flight together.

Alone, with fewer rows: python benchmarks/covariance.py [rows]
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from encoding import bar
from measured_stores import CLASSES, ROWS, make_store
from numpy.typing import NDArray
from timing import compare, line, seconds

import logitstore
from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.softened import Softened, softened_outputs

TEMPERATURE = 2.0
LEAST_SPEED = 0.6
MOST_ERROR = 1e-5
MOST_GROWTH = 1.1
PROCESSES = 5
EXACT_ROWS = 32_768
MIB = 1 << 20

CHILD = """
import json, sys
import logitstore
from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.softened import softened_outputs

store = logitstore.open_store(sys.argv[1])
found = covariance(softened_outputs(store, {"float16": 1.0}, float(sys.argv[2])))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"peak": int(status["VmHWM"].split()[0]) * 1024, "trace": float(found.trace())}))
"""


def softened(store: logitstore.Store) -> Softened:
    """Return the measured outputs of a store."""
    return softened_outputs(store, {"float16": 1.0}, TEMPERATURE)


def softmaxed(store: logitstore.Store, dtype: type) -> NDArray[np.floating]:
    """Compute the softened outputs of a whole store in memory: (rows, classes)."""
    source = softened(store)
    found = np.empty((store.num_rows, CLASSES), dtype)
    for first in range(0, store.num_rows, store.block_rows):
        rows = range(first, min(first + store.block_rows, store.num_rows))
        found[rows.start : rows.stop] = source.read(0, rows)
    return found


def worst(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the largest difference of an element, in units of sqrt(c_ii c_jj)."""
    deviation = np.sqrt(np.diag(expected))
    return float((np.abs(found - expected) / np.outer(deviation, deviation)).max())


def show_speed(store: logitstore.Store) -> None:
    """Print table 1, the speed."""
    held = softmaxed(store, np.float32)
    source = softened(store)
    whole = compare(lambda: covariance(source), lambda: held.T @ held)
    speed = f"{store.num_rows / whole.ours:,.0f}/s"
    print(line("rows/s of the covariance; seconds of store and product:", speed, whole))
    bar(
        f"speed of the covariance / of one product in memory ({os.cpu_count()} threads)",
        f"{1 / whole.ratio:.2f}",
        f">= {LEAST_SPEED}",
        1 / whole.ratio >= LEAST_SPEED,
    )
    other = held.copy()  # another matrix: a general product, of which no half can be left out
    general = compare(lambda: covariance(source), lambda: other.T @ held, rounds=3)
    print(line("the same / of a general product, for comparison", f"{1 / general.ratio:.2f}", general))


def show_accuracy(store: logitstore.Store) -> NDArray[np.float64]:
    """Print table 2, the accuracy, and return the covariance."""
    exact = softmaxed(store, np.float64)
    exact -= exact.mean(axis=0)
    found = covariance(softened(store))
    error = worst(found, exact.T @ exact / len(exact))
    what = f"largest error of an element / sqrt(c_ii c_jj), against float64, {store.num_rows:,} rows"
    bar(what, f"{error:.1e}", f"<= {MOST_ERROR:g}", error <= MOST_ERROR)
    return found


def show_cluster(store: logitstore.Store, expected: NDArray[np.float64]) -> None:
    """Print table 3, the cluster of two processes."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        found = covariance(softened(store), scheduler=client)
        time = seconds(lambda: covariance(softened(store), scheduler=client))
    error = worst(found, expected)
    what = (
        f"the same on a LocalCluster of two processes, against threads ({store.num_rows / time:,.0f} rows/s)"
    )
    bar(what, f"{error:.1e}", f"<= {MOST_ERROR:g}", error <= MOST_ERROR)


def peak(path: Path) -> int:
    """Measure the peak memory of a fresh process, bytes."""
    call = [sys.executable, "-c", CHILD, str(path), str(TEMPERATURE)]
    return int(json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)["peak"])


def show_memory(made: Callable[[int], Path], rows: int) -> None:
    """Print table 4, the memory."""
    if not Path("/proc/self/status").exists():
        print("  memory is left out: no /proc here")
        return
    few, many = rows // 4, 4 * rows
    peaks = {count: median([peak(made(count)) for _ in range(PROCESSES)]) for count in (few, many)}
    bar(
        f"peak MiB with {many:,} rows ({peaks[few] / MIB:,.0f} with {few:,}; medians of {PROCESSES} processes)",
        f"{peaks[many] / MIB:,.0f}",
        f"<= {MOST_GROWTH * peaks[few] / MIB:,.0f}",
        peaks[many] <= MOST_GROWTH * peaks[few],
    )


def main(rows: int = ROWS) -> None:
    """Print the table."""
    print(f"covariance: {rows:,} rows of float16 x {CLASSES}, softmax at T = {TEMPERATURE:g}")
    with tempfile.TemporaryDirectory() as folder:

        def made(count: int) -> Path:
            path = Path(folder) / f"{count}.zarr"
            if not path.exists():
                make_store(path, count, {"float16": "float16"})
            return path

        show_speed(logitstore.open_store(made(rows)))
        small = logitstore.open_store(made(min(rows, EXACT_ROWS)))
        show_cluster(small, show_accuracy(small))
        show_memory(made, rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
