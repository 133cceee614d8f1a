"""Exports and imports of plain files, against `cp` and `sync` of the same logits.

Each in a process of its own, for its peak of memory: 100,000 rows of 1,000 classes, stored as float16, in MB/s of float32.

Alone, with fewer rows: python benchmarks/exchange.py [rows]
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

import logitstore

ROWS, CLASSES, ROUNDS = 100_000, 1000, 3
WAYS = ("cp", "export npy", "export safetensors", "export parquet", "import npy")
MIB = 1 << 20


def peak_bytes() -> int:
    """Return the peak of this process's memory since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def make(folder: Path, rows: int) -> None:
    """Write the logits as an array, and as a store."""
    logits = np.random.default_rng(0).standard_normal((rows, CLASSES)).astype(np.float32) * 3
    np.save(folder / "logits.npy", logits)
    store = logitstore.create_store(
        folder / "store.zarr", num_classes=CLASSES, digests=np.arange(rows, dtype=np.uint64)
    )
    with store.capture("wide", provenance={"made": "benchmark"}, encoding="float16") as capture:
        for block in capture.missing_blocks():
            capture.write(block, logits[block.start : block.stop])


def measure(folder: Path, way: str) -> None:
    """Do it once; print seconds, and bytes of memory beyond those of the imports."""
    store = logitstore.open_store(folder / "store.zarr")
    store.teachers["wide"].read(range(8))
    if way.endswith("parquet"):
        import pyarrow.parquet  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")
    held, start = peak_bytes(), time.perf_counter()
    if way == "cp":
        shutil.copyfile(folder / "logits.npy", folder / "copy.npy")
        os.sync()
    elif way == "import npy":
        logitstore.import_logits(folder / "logits.npy", folder / "new.zarr", "wide")
    else:
        logitstore.export_logits(store, "wide", folder / f"out.{way.split()[1]}")
    print(time.perf_counter() - start, peak_bytes() - held)


def main(rows: int = ROWS) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, rows)
        print(f"{'':20s}{'MB/s':>8s}{'MiB':>8s}   medians of {ROUNDS}, {rows:,} rows")
        for way in WAYS:
            found = []
            for _ in range(ROUNDS):
                for made in (*folder.glob("out*"), folder / "copy.npy"):
                    made.unlink(missing_ok=True)
                shutil.rmtree(folder / "new.zarr", ignore_errors=True)
                call = [sys.executable, __file__, "measure", str(folder), way]
                text = subprocess.run(call, capture_output=True, text=True, check=True).stdout
                found.append(tuple(map(float, text.split())))
            rate = rows * CLASSES * 4 / median(one[0] for one in found) / 1e6
            print(f"{way:20s}{rate:8.0f}{max(one[1] for one in found) / MIB:8.0f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]), sys.argv[3])
    else:
        main(*map(int, sys.argv[1:2]))
