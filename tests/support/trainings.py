"""Trainings of one student: interrupted, resumed, shared by ranks, and compared.

All of them train from the store of `experiments.finished()`, or one of `plain_store`.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.models.records import Models, Record
from logitstore.pipeline.runtime.ranks import ALONE, Ranks
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.pipeline.train import stage
from logitstore.pipeline.train.stage import open_stream, train_student
from logitstore.pipeline.train.todo import StudentSeed, student_seeds
from logitstore.pipeline.trainer.loop import Training
from logitstore.pipeline.trainer.resume import StudentKeeper
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, create_store, open_store
from support import experiments

STEPS_PER_EPOCH = 5
"""150 rows, 32 a step."""


class Interrupted(Exception):
    """The end of a training that was not asked for."""


def content(train: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a document with one student, all of whose parts have a memory: dropout, Adam, averages, a schedule."""
    settings = {
        "epochs": 2,
        "seeds": [0],
        "ema": 0.9,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "checkpoint_every": 1,
    }
    table = {
        "args": {"hidden": [6], "dropout": 0.3},
        "train": experiments.train(**(settings | (train or {}))),
        **changes,
    }
    return experiments.document() | {"student": [experiments.student("a", **table)]}


def only_run(document: dict[str, Any], base: Path) -> tuple[Experiment, StudentSeed]:
    """Return the experiment of a document, and its one training."""
    experiment = experiments.parsed(document, base)
    (run,) = student_seeds(experiment)
    return experiment, run


def finished_store() -> Store:
    """Open the store of the finished experiment, read only."""
    return open_store(experiments.finished() / "out" / "store.zarr")


def plain_store(path: Path, *, logits_seed: int = 0, labels_seed: int = 1, unlabelled: int = 0) -> Store:
    """Make a store of one view of `some_digits` and two teachers, which know nothing; some rows without a label."""
    inputs, labels = experiments.some_digits(experiments.ROWS, labels_seed)
    labels[:unlabelled] = -1
    store = create_store(
        path, num_classes=experiments.CLASSES, inputs=inputs, store_inputs=True, labels=labels
    )
    random = np.random.default_rng(logits_seed)
    for teacher in ("wide", "deep"):
        logits = random.normal(size=(experiments.ROWS, experiments.CLASSES)).astype(np.float32) * 3
        with store.capture(teacher, provenance={}) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, logits[rows])
    return open_store(path)


def trained(
    document: dict[str, Any], store: Store, folder: Path, ranks: Ranks = ALONE, base: Path | None = None
) -> Record:
    """Train the student of a document, or go on with it; without fsync, which changes no byte."""
    experiment, run = only_run(document, base or store.path.parent.parent)
    with mock.patch("os.fsync"):
        work = Workspace(experiment, Path(store.path), Models(folder), device="cpu", ranks=ranks)
        return train_student(work, run)


@contextlib.contextmanager
def interruption(step: int) -> Iterator[None]:
    """Interrupt a training, on every rank, right after the checkpoint of a step."""
    genuine = StudentKeeper.after_step

    def after_step(self: StudentKeeper, training: Training, *, is_last: bool) -> None:
        genuine(self, training, is_last=is_last)
        if training.position.step == step:
            raise Interrupted

    with mock.patch.object(StudentKeeper, "after_step", after_step), contextlib.suppress(Interrupted):
        yield
        raise AssertionError(f"step {step} was never reached")


def weights(folder: Path) -> bytes:
    """Return the weights file of the student."""
    return (folder / "students" / "a-seed0.safetensors").read_bytes()


def checkpoints(folder: Path) -> Path:
    """Return the folder of its checkpoints."""
    return folder / "students" / "a-seed0.checkpoints"


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of its log."""
    text = (folder / "students" / "a-seed0.metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def curve(folder: Path) -> list[tuple[Any, ...]]:
    """Return the part of the log that follows from the training alone, not from the clock."""
    return [
        tuple(line[key] for key in ("event", "step", "epoch", "rows", "loss", "lr")) for line in lines(folder)
    ]


class Together:
    """The batches that several ranks would have in each step, as one batch: what their training is compared with."""

    def __init__(self, document: dict[str, Any], store: Store, ranks: int) -> None:
        experiment, run = only_run(document, store.path.parent.parent)
        work = Workspace(experiment, Path(store.path), Models(Path()))
        self.streams = [
            TorchStream(open_stream(replace(work, ranks=Ranks(rank, ranks)), run)[0]) for rank in range(ranks)
        ]

    def __iter__(self) -> Iterator[TorchBatch]:
        for batches in zip(*self.streams, strict=True):
            names = batches[0].logits
            yield replace(
                batches[0],
                rows=torch.cat([b.rows for b in batches]),
                views=torch.cat([b.views for b in batches]),
                inputs=torch.cat([b.inputs for b in batches if b.inputs is not None]),
                labels=torch.cat([b.labels for b in batches]),
                logits={name: torch.cat([b.teacher_logits()[name] for b in batches]) for name in names},
            )

    def set_epoch(self, epoch: int) -> None:
        """Of all of them."""
        for stream in self.streams:
            stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank."""
        return self.streams[0].state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of all of them."""
        for stream in self.streams:
            stream.load_state_dict(state)


@contextlib.contextmanager
def as_if_by(ranks: int, document: dict[str, Any], store: Store) -> Iterator[None]:
    """Let one process train on the batches that so many ranks would have in each step."""

    def together(*_: Any) -> Together:
        return Together(document, store, ranks)

    with mock.patch.object(stage, "TorchStream", together):
        yield
