"""How fast do batches come out of a store, against picking them out of arrays in memory?

131,072 rows of (uint8 3 x 32 x 32, int64 label, float16 x 1000), shuffled batches of 256, page cache hot, one
torch thread. The yardstick is one fancy index a batch over tensors in memory, logits cast to float32 as the
stream gives them.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import compare, line

import logitstore
from logitstore.pipeline import TorchStream

ROWS, CLASSES, BATCH = 131_072, 1000, 256


def make(folder: Path) -> tuple[logitstore.Store, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A store, and the same rows as tensors."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8)
    labels = random.integers(0, CLASSES, ROWS)
    store = logitstore.create_store(
        folder / "store.zarr", num_classes=CLASSES, labels=labels, inputs=inputs, store_inputs=True
    )
    with store.capture("teacher", provenance={"made": "benchmark"}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, (random.standard_normal((len(rows), CLASSES), np.float32) * 2.5))
    logits = store.teachers["teacher"].read_stored(slice(None))["logits"]
    return store, torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(logits)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store, inputs, labels, logits = make(Path(folder))
        stream = store.stream(BATCH, seed=0)

        def from_store() -> None:
            for batch in TorchStream(stream):
                assert len(batch)

        def from_memory() -> None:
            for rows in torch.randperm(ROWS).split(BATCH):
                batch = inputs[rows], labels[rows], logits[rows].float()
                assert len(batch)

        found = compare(from_memory, from_store)
        print("stream")
        print(line("rows/s of the stream / of tensors in memory", f"{found.ratio:.2f}", found))
        print(f"  {'rows/s of the stream':58s} {ROWS / found.theirs:10,.0f}")
        print(f"  {'bytes held, two windows, as stated':58s} {2 * stream.window_bytes / 2**20:6.0f} MiB")


if __name__ == "__main__":
    main()
