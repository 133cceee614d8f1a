"""Break-even of cached soft targets against a teacher that runs in every step.

Three are timed for a teacher and a student, on one thread of the CPU. The first is an epoch of the student
from a store. The second is an epoch of the same student with inputs from memory, where the teacher runs in
each step (evaluation mode, no gradients). The third is the one-off cost of the cache: the real stage one,
`logitstore cache`, with digests, commits and seals. Break-even is that cost divided by the saving of an
epoch: the epoch in which the cache has paid for itself.

Inputs are random pixels and the weights are as initialised: neither changes the cost of a step. Nothing is
augmented. A capture of V views costs V times as much, and pays after V times as many epochs.

Alone, with fewer rows: python benchmarks/live_teacher.py [rows]
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import compare, seconds
from torch import Tensor, nn

import logitstore
from logitstore.pipeline import TorchStream
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import parse_experiment
from logitstore.pipeline.losses import Distillation, soft_targets
from logitstore.pipeline.models.networks import convnet, mlp
from logitstore.pipeline.models.weights import save_weights
from logitstore.pipeline.workspace import Workspace

ROWS, SHAPE, CLASSES, BATCH, TEMPERATURE, ROUNDS = 4096, (28, 28), 10, 128, 20.0, 5
CAPTURES = 3
"""Runs of stage one; the median counts."""

Batch = tuple[Tensor, Tensor]
"""Inputs and the teacher's logits."""


@dataclass(frozen=True)
class Pair:
    """A teacher and its student."""

    about: str
    factory: str
    teacher: dict[str, Any]
    student: dict[str, Any]

    def module(self, settings: dict[str, Any]) -> nn.Module:
        """Build a net with the shape of the inputs."""
        make = mlp if self.factory == "mlp" else convnet
        return make(**settings, input_shape=SHAPE, num_classes=CLASSES)


PAIRS = (
    Pair(
        "the paper's MNIST nets, 1200-1200 -> 800-800",
        "mlp",
        {"hidden": [1200, 1200], "dropout": 0.5, "input_dropout": 0.2},
        {"hidden": [800, 800]},
    ),
    Pair(
        "convnets, 32-64-128 -> 8-16-32",
        "convnet",
        {"channels": [32, 64], "hidden": [128]},
        {"channels": [8, 16], "hidden": [32]},
    ),
)


class Training:
    """A student, its loss and its optimiser."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module.train()
        self._optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        self._loss = Distillation(TEMPERATURE)

    def epoch(self, batches: Iterable[Batch]) -> None:
        """Train one step on each batch."""
        for inputs, logits in batches:
            self._optimizer.zero_grad(set_to_none=True)
            self._loss(self._module(inputs), soft_targets(logits, TEMPERATURE)).backward()
            self._optimizer.step()


def measure(pair: Pair, folder: Path, rows: int) -> None:
    """Time the three, and print the break-even."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
    np.savez(folder / "data.npz", inputs=inputs, labels=np.arange(rows) % CLASSES)
    torch.manual_seed(0)
    teacher = pair.module(pair.teacher).eval()
    save_weights(teacher, folder / "teacher.safetensors")
    experiment = parse_experiment(
        {
            "transfer_set": {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "data.npz"}},
            "teacher": [
                {
                    "name": "teacher",
                    "factory": f"logitstore.pipeline.models:{pair.factory}",
                    "args": pair.teacher,
                    "weights": "teacher.safetensors",
                }
            ],
        },
        where="benchmark",
        base=folder,
    )
    costs = [
        seconds(
            lambda number=number: cache(
                Workspace.of_store(experiment, folder / f"{number}.zarr", folder / "models")
            )
        )
        for number in range(CAPTURES)
    ]
    stream = TorchStream(logitstore.open_store(folder / "0.zarr").stream(BATCH, seed=0))
    training = Training(pair.module(pair.student))
    held = torch.from_numpy(inputs)

    def from_store() -> Iterator[Batch]:
        for batch in stream:
            given = batch.logits["teacher"]
            assert batch.inputs is not None and isinstance(given, Tensor)
            yield batch.inputs, given

    def from_teacher() -> Iterator[Batch]:
        for places in torch.randperm(rows).split(BATCH):
            picked = held[places]
            with torch.no_grad():
                logits = teacher(picked)
            yield picked, logits

    found = compare(
        lambda: training.epoch(from_teacher()), lambda: training.epoch(from_store()), rounds=ROUNDS
    )
    cost, saving, steps = median(costs), found.ours - found.theirs, -(-rows // BATCH)
    print(f"  {pair.about}")
    print(
        f"    a step: {1000 * found.theirs / steps:.2f} ms with cached targets, {1000 * found.ours / steps:.2f} ms "
        f"with the teacher in it: {found.ratio:.2f} times ({found.low:.2f} … {found.high:.2f})"
    )
    paid = f"epoch {cost / saving:.1f}" if saving > 0 else "never"
    print(
        f"    the cache costs {cost:.2f} s, an epoch saves {saving:.2f} s of {found.ours:.2f} s: break-even at {paid}"
    )


def main(rows: int = ROWS) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"live teacher: {rows:,} rows of {SHAPE}, batches of {BATCH}, one thread; reported, without a bar")
    for pair in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            measure(pair, Path(folder), rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
