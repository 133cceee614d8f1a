"""Cost of a training step with data out of a store, against data in memory.

The student has (uint8 3 x 32 x 32) inputs and 1000 classes, and a step of a few milliseconds. A step is
pixels to floats, forward, `Distillation` at T = 4 with a hard term, backward, SGD. Whole epochs run in turn,
and the same student trains through all of them.

In memory, a batch is one torch index into each of three contiguous tensors. Its logits are float16 until the
loss, as the stream's are (`decode=False`). The stream that decodes is compared with the index and `.float()`.

Alone, with fewer rows: python benchmarks/training_step.py [rows]
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from encoding import bar
from measured_stores import BATCH, CLASSES, INPUT_SHAPE, ROWS, in_memory, make_store, random_inputs
from timing import compare
from torch import Tensor

from logitstore.pipeline import TorchStream
from logitstore.pipeline.losses import Distillation, soft_targets
from logitstore.pipeline.models.networks import mlp

HIDDEN, TEMPERATURE, MOST, ROUNDS = [32], 4.0, 1.05, 5

Step = tuple[Tensor, Tensor, Tensor]
"""Inputs, labels and teacher's logits of a batch."""


class Student:
    """A small net, its loss and its optimiser."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._module = mlp(HIDDEN, input_shape=INPUT_SHAPE, num_classes=CLASSES)
        self._optimizer = torch.optim.SGD(self._module.parameters(), lr=1e-3)
        self._loss = Distillation(TEMPERATURE, hard_weight=0.1)

    def epoch(self, batches: Iterable[Step]) -> int:
        """Train on some batches, and return their number of rows."""
        rows = 0
        for inputs, labels, logits in batches:
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self._module(inputs), soft_targets(logits, TEMPERATURE), labels)
            loss.backward()
            self._optimizer.step()
            rows += len(labels)
        return rows


def measure(folder: Path, rows: int) -> None:
    """Make the store, and time both."""
    store = make_store(folder / "store.zarr", rows, {"float16": "float16"}, inputs=random_inputs(rows))
    assert store.samples.inputs is not None
    inputs = torch.from_numpy(store.samples.inputs[slice(None)])
    labels = torch.from_numpy(store.samples.labels)
    logits = in_memory(store, "float16")
    student = Student()

    for decode, how in ((False, "as stored"), (True, "decoded")):
        stream = TorchStream(store.stream(BATCH, seed=0, decode=decode))

        def from_store() -> Iterator[Step]:
            for batch in stream:  # noqa: B023
                given = batch.logits["float16"]
                assert batch.inputs is not None and isinstance(given, Tensor)
                yield batch.inputs, batch.labels, given

        def from_memory() -> Iterator[Step]:
            for places in torch.randperm(rows).split(BATCH):
                picked = logits[places]
                yield inputs[places], labels[places], picked.float() if decode else picked  # noqa: B023

        def stream_epoch() -> None:
            assert student.epoch(from_store()) == rows

        def memory_epoch() -> None:
            assert student.epoch(from_memory()) == rows

        found = compare(stream_epoch, memory_epoch, rounds=ROUNDS)
        steps = -(-rows // BATCH)
        each = f"{1000 * found.ours / steps:.2f} ms and {1000 * found.theirs / steps:.2f} ms"
        what = f"a step from the stream, {how} / from memory ({found.low:.2f} … {found.high:.2f}; {each})"
        bar(what, f"{found.ratio:.3f}", f"<= {MOST:g}", found.ratio <= MOST)


def main(rows: int = ROWS) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        f"training step: mlp {HIDDEN}, {rows:,} rows of {INPUT_SHAPE} and {CLASSES} classes, batches of {BATCH}"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
