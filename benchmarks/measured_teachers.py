"""Teachers and transfer sets on which stage one is measured.

Transfer sets are drawn from a fixed seed: POOL inputs, repeated, so that a large set takes no memory of its
own. Weights are as initialised; their values change no cost. `Watched` records the time of the first row that
was not captured before.

`bare_loop` is the yardstick of all of them: `for batch: teacher(batch)`, in `inference_mode`. It runs over
the very transfer set of stage one, in batches of the same size, on one torch thread. It discards the
teacher's logits.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitstore.pipeline.experiment.document import Experiment, parse_experiment
from logitstore.pipeline.models.networks import convnet
from logitstore.pipeline.models.weights import save_weights
from logitstore.pipeline.transfer import TransferRows

POOL = 1024
"""Drawn inputs."""
MARK = 255
"""First number of every input that `Drawn` marks, and of no other."""


class Drawn:
    """A transfer set of `rows` labelled uint8 inputs."""

    def __init__(self, rows: int, shape: Sequence[int], classes: int, marked_from: int | None) -> None:
        random = np.random.default_rng(0)
        self._rows, self._marked_from = rows, rows if marked_from is None else marked_from
        self._name = f"{rows} x {list(shape)} of {classes}, marked from {marked_from}"
        self._pool = random.integers(0, 256, (min(POOL, rows), *shape), dtype=np.uint8)
        self._pool.reshape(len(self._pool), -1)[:, 0] %= MARK
        self._marked = self._pool
        if marked_from is not None:
            self._marked = self._pool.copy()
            self._marked.reshape(len(self._pool), -1)[:, 0] = MARK
        self._labels: list[int] = random.integers(0, classes, len(self._pool)).tolist()
        self.class_names = tuple(str(number) for number in range(classes))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        place = index % len(self._pool)
        held = self._pool if index < self._marked_from else self._marked
        return held[place], self._labels[place]

    def fingerprint(self) -> str:
        """Return the arguments that determine the content."""
        return f"drawn: {self._name}"


def drawn(rows: int, shape: list[int], classes: int, marked_from: int | None = None) -> Drawn:
    """Build a `Drawn` transfer set. marked_from: index from which on inputs begin with MARK."""
    return Drawn(rows, shape, classes, marked_from)


class Watched(nn.Module):
    """A linear teacher that records its inputs, and fails on marked inputs if set to."""

    fails: ClassVar[bool] = False
    first_new: ClassVar[float | None] = None
    """Time of the first marked input, `time.monotonic()` seconds."""
    known_rows: ClassVar[int] = 0
    """Rows before the first marked input."""
    listeners: ClassVar[list[Callable[[], None]]] = []
    """Called once each, at the first marked input."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of one layer."""
        numbers = inputs.flatten(1).float()
        if bool((numbers[:, 0] == MARK).any()):
            if Watched.fails:
                raise ValueError("told to fail")
            if Watched.first_new is None:
                Watched.first_new = time.monotonic()
                for listener in Watched.listeners:
                    listener()
        elif Watched.first_new is None:
            Watched.known_rows += len(inputs)
        logits: Tensor = self.head(numbers / 255)
        return logits


def watched(input_shape: Sequence[int], num_classes: int) -> Watched:
    """Build a `Watched` teacher."""
    return Watched(int(np.prod(input_shape)), num_classes)


class Thumbnail(nn.Module):
    """A teacher of next to no cost and memory: one layer over every `step`-th pixel."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, step: int) -> None:
        super().__init__()
        self._step = step
        _, height, width = input_shape
        self.head = nn.Linear(3 * -(-height // step) * -(-width // step), num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of one layer."""
        few = inputs[:, :, :: self._step, :: self._step].flatten(1).float()
        logits: Tensor = self.head(few / 255)
        return logits


def thumbnail(input_shape: Sequence[int], num_classes: int, step: int = 4) -> Thumbnail:
    """Build a `Thumbnail` teacher."""
    return Thumbnail(input_shape, num_classes, step)


@dataclass(frozen=True)
class Net:
    """A teacher: its factory, the factory's arguments, and the module that it returns."""

    factory: str
    """The factory, as the experiment names it."""
    module: nn.Module
    """The module that the factory returns."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the factory."""


def conv(shape: Sequence[int], classes: int, channels: Sequence[int], hidden: Sequence[int]) -> Net:
    """Build a convnet of the package."""
    args = {"channels": list(channels), "hidden": list(hidden)}
    module = convnet(channels, hidden, input_shape=shape, num_classes=classes)
    return Net("logitstore.pipeline.models:convnet", module.eval(), args)


def experiment_of(
    folder: Path, nets: Sequence[Net], transfer_set: Mapping[str, Any], cache: Mapping[str, Any]
) -> Experiment:
    """Return an experiment of these teachers, called teacher-0, …, and save their weights in `folder`.

    transfer_set: the arguments of `drawn`, and `store_inputs = False` to keep no inputs. cache: the table of
    that name.
    """
    made = dict(transfer_set)
    table: dict[str, Any] = {"factory": "measured_teachers:drawn", "order": "as_is"}
    table["store_inputs"] = made.pop("store_inputs", True)
    teachers = []
    for number, net in enumerate(nets):
        weights = f"teacher-{number}.safetensors"
        save_weights(net.module, folder / weights)
        teachers.append(
            {
                "name": f"teacher-{number}",
                "factory": net.factory,
                "args": dict(net.args),
                "weights": weights,
            }
        )
    tables = {"transfer_set": table | {"args": made}, "teacher": teachers, "cache": dict(cache)}
    return parse_experiment(tables, where="benchmark", base=folder)


def batches(rows: TransferRows, batch_size: int) -> Iterator[Tensor]:
    """Yield the inputs of the transfer set in the order of its store."""
    for start in range(0, len(rows), batch_size):
        inputs, _ = rows.rows(range(start, min(start + batch_size, len(rows))))
        yield torch.from_numpy(inputs)


def bare_loop(module: nn.Module, inputs: Iterator[Tensor]) -> None:
    """Run the teacher on every batch, and nothing else."""
    with torch.inference_mode():
        for batch in inputs:
            module(batch)
