"""Trainings of several ranks, compared by tests/pipeline/trainer/test_ddp.py and started by torchrun."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from logitstore.pipeline.runtime.ranks import joined
from logitstore.pipeline.train.loss import StudentLoss
from logitstore.pipeline.trainer import loop as fit
from logitstore.storage.api import open_store
from logitstore.storage.errors import TransientIOError
from support import trainings

SGD = {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "ema": 0.9, "clip_norm": 2.0, "epochs": 2}
"""No Adam: it makes large differences of small ones."""
PLAIN = {"views": 0, "args": {"hidden": [6]}}
"""No dropout: each rank has its own."""


def document(**changes: Any) -> dict[str, Any]:
    """A student whose training is the same on any number of ranks, but for rounding and for who meets whom."""
    train = SGD | changes.pop("train", {})
    return trainings.content(train, **(PLAIN | changes))


SCENARIOS: dict[str, dict[str, Any]] = {
    "distillation": {"hard_weight": 0.3},
    "dist": {"loss": "dist", "teachers": ["wide", "deep"], "hard_weight": 0.1},
    "unlabelled": {"targets": "hard"},
    "uneven": {"train": {"batch_size": 148, "epochs": 3}},
}
"""Trained by two ranks and, for comparison, by one process on the same batches."""
INTERRUPTED_AT = 3


def recorded(file: Path) -> Any:
    """Write down the rows of every step."""
    genuine = StudentLoss.__call__

    def call(self: StudentLoss, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        with file.open("a") as out:
            out.write(json.dumps(batch.rows.tolist()) + "\n")
        return genuine(self, logits, batch)

    return mock.patch.object(StudentLoss, "__call__", call)


def main(folder: Path) -> None:
    """Train everything that the test compares."""
    torch.set_num_threads(1)
    fit.REPORT_EVERY = 1
    plain, unlabelled = (open_store(folder / "stores" / name) for name in ("plain.zarr", "unlabelled.zarr"))
    with joined(timeout=60.0) as ranks:
        for name, changes in SCENARIOS.items():
            store = unlabelled if name == "unlabelled" else plain
            trainings.trained(document(**changes), store, folder / "two" / name, ranks)
        with trainings.interruption(INTERRUPTED_AT), recorded(folder / f"two-one-{ranks.rank}.jsonl"):
            trainings.trained(document(), plain, folder / "two-one", ranks)
        with recorded(folder / f"one-two-{ranks.rank}.jsonl"):
            trainings.trained(document(), plain, folder / "one-two", ranks)
        # Dropout and the same number of ranks: goes on to the same bytes.
        dropout = document(args={"hidden": [6], "dropout": 0.3})
        trainings.trained(dropout, plain, folder / "whole", ranks)
        with trainings.interruption(INTERRUPTED_AT):
            trainings.trained(dropout, plain, folder / "again", ranks)
        trainings.trained(dropout, plain, folder / "again", ranks)
        random = torch.rand(1).item()
        (folder / f"random-{ranks.rank}.json").write_text(json.dumps([random, os.getpid()]))


def hang(folder: Path) -> None:
    """Rank 1 never comes to what rank 0 waits for."""
    try:
        with joined(timeout=5.0) as ranks:
            ranks.counts(1)
            if ranks.rank == 1:
                time.sleep(90)
            ranks.counts(2)
    except TransientIOError as error:
        (folder / "said").write_text(str(error))
        raise


if __name__ == "__main__":
    (hang if "hang" in sys.argv else main)(Path(sys.argv[1]))
