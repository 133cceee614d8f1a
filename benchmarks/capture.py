"""Cost of a safe capture, against unguarded writing of the same bytes.

The logits are in memory. The yardstick is one `write` and one `fsync` for each of the same files.
stage_one.py measures the cost while the teachers run.

Two parts of a capture are timed by themselves, since no way of writing goes without them: the sha256 of the same bytes,
and the float16 of the logits. With the write itself they are a lower bound, on one core and without any file.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from timing import compare, line

import logitstore
from logitstore.storage.encodings.half import FLOATS

PIECE_ROWS = 256
"""Rows that are cast at a time: as many as stay in a core's cache."""


def plain_files(folder: Path) -> None:
    """Time the writer against unguarded writes of the same bytes."""
    rows, classes = 65_536, 1000
    logits = np.random.default_rng(0).standard_normal((rows, classes), dtype=np.float32)
    runs = iter(range(1000))

    def capture() -> Path:
        path = folder / f"written-{next(runs)}.zarr"
        store = logitstore.create_store(path, num_classes=classes, digests=np.zeros(rows, np.uint64))
        with store.capture("teacher", provenance={}) as writer:
            for block in writer.missing_blocks():
                writer.write(block, logits[block.start : block.stop])
        return path

    template = capture()
    files = [path.read_bytes() for path in sorted(template.rglob("*")) if path.is_file()]

    def plain() -> None:
        target = folder / f"plain-{next(runs)}"
        target.mkdir()
        for number, data in enumerate(files):
            handle = os.open(target / str(number), os.O_CREAT | os.O_WRONLY)
            os.write(handle, data)
            os.fsync(handle)
            os.close(handle)

    def digests() -> None:
        for data in files:
            hashlib.sha256(data)

    def casts() -> None:
        for start in range(0, rows, PIECE_ROWS):
            FLOATS["float16"].encode(logits[start : start + PIECE_ROWS], start, "")

    for what, function in (
        ("seconds of a capture from memory / of write + fsync", capture),
        ("of sha256 alone / of write + fsync", digests),
        ("of float16 alone, with its checks / of write + fsync", casts),
    ):
        found = compare(function, plain, rounds=5)
        print(line(what, f"{found.ratio:.2f}", found), flush=True)


def main() -> None:
    """Print the table."""
    print("capture: cost of safe writing")
    with tempfile.TemporaryDirectory() as folder:
        plain_files(Path(folder))


if __name__ == "__main__":
    main()
