"""What does it cost to keep logits, against having them and throwing them away, or writing them unguarded?

1. Stage one with a small convnet, against the bare loop `for batch: teacher(batch)` over the same inputs.
2. Writing logits that are in memory, against one `write` and one `fsync` of the same bytes in the same files.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import compare, line

import logitstore
from logitstore.pipeline.cache import cache
from logitstore.pipeline.experiment import parse_experiment
from logitstore.pipeline.models import convnet
from logitstore.pipeline.records import Models
from logitstore.pipeline.weights import save_weights

ROWS, CLASSES, BATCH = 8192, 10, 256


def teacher_loop(folder: Path) -> None:
    """Stage one against the bare teacher."""
    inputs = np.random.default_rng(0).integers(0, 256, (ROWS, 28, 28), dtype=np.uint8)
    np.savez(folder / "data.npz", inputs=inputs, labels=np.arange(ROWS) % CLASSES)
    torch.manual_seed(0)
    settings = {"channels": [32, 64], "hidden": [128]}
    module = convnet([32, 64], [128], input_shape=(28, 28), num_classes=CLASSES).eval()
    save_weights(module, folder / "teacher.safetensors")
    experiment = parse_experiment(
        {
            "transfer_set": {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "data.npz"}},
            "teacher": [
                {
                    "name": "conv",
                    "factory": "logitstore.pipeline.models:convnet",
                    "args": settings,
                    "weights": "teacher.safetensors",
                }
            ],
        },
        where="benchmark",
        base=folder,
    )
    runs = iter(range(1000))

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, ROWS, BATCH):
                module(torch.from_numpy(inputs[start : start + BATCH]))

    def captured() -> None:
        cache(experiment, folder / f"store-{next(runs)}.zarr", Models(folder / "models"))

    found = compare(bare, captured)
    print(line("rows/s of stage one / of the bare teacher (convnet, CPU)", f"{found.ratio:.2f}", found))


def plain_files(folder: Path) -> None:
    """The writer against the same bytes, unguarded."""
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
    print("capture")
    for part in (teacher_loop, plain_files):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))


if __name__ == "__main__":
    main()
