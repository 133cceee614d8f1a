"""Cost of a safe capture, against unguarded writing of the same bytes.

The logits are in memory. The yardstick is one `write` and one `fsync` for each of the same files.
stage_one.py measures the cost while the teachers run.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from timing import compare, line

import logitstore


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

    found = compare(capture, plain, rounds=5)
    print(line("seconds of a capture from memory / of write + fsync", f"{found.ratio:.2f}", found))


def main() -> None:
    """Print the table."""
    print("capture: cost of safe writing")
    with tempfile.TemporaryDirectory() as folder:
        plain_files(Path(folder))


if __name__ == "__main__":
    main()
