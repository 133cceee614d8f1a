"""Trainings of several ranks, forked for the comparisons of tests/pipeline/trainer/test_ddp.py.

As a script, one of two ranks that hang, started by torchrun.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from logitstore.pipeline.runtime.ranks import Ranks, joined
from logitstore.pipeline.runtime.stopping import Stopped, handle_signals
from logitstore.pipeline.train.loss import StudentLoss
from logitstore.pipeline.trainer import loop as fit
from logitstore.pipeline.trainer import resume
from logitstore.pipeline.trainer.validation import Validation
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import TransientIOError
from support import trainings
from support.children import ranks

SGD = {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "ema": 0.9, "clip_norm": 2.0, "epochs": 2}
"""No Adam: it makes large differences of small ones."""
PLAIN = {"views": 0, "args": {"hidden": [6]}}
"""No dropout: each rank has its own."""


def document(**changes: Any) -> dict[str, Any]:
    """Return a student whose training is the same on any number of ranks, up to rounding."""
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


def train_all(folder: str, number: int) -> list[int]:
    """Train everything that the test compares, in forked ranks; return their exit statuses."""
    return ranks(number, train, Path(folder))


def train(_: int, folder: Path) -> None:
    """Train everything that the test compares, as one of the ranks."""
    torch.set_num_threads(1)
    fit.REPORT_EVERY = 1
    plain, unlabelled = (open_store(folder / "stores" / name) for name in ("plain.zarr", "unlabelled.zarr"))
    with joined(timeout=60.0) as joint:
        for name, changes in SCENARIOS.items():
            store = unlabelled if name == "unlabelled" else plain
            trainings.trained(document(**changes), store, folder / "two" / name, joint)
        with trainings.interruption(INTERRUPTED_AT), recorded(folder / f"two-one-{joint.rank}.jsonl"):
            trainings.trained(document(), plain, folder / "two-one", joint)
        with recorded(folder / f"one-two-{joint.rank}.jsonl"):
            trainings.trained(document(), plain, folder / "one-two", joint)
        # Dropout and the same number of ranks: goes on to the same bytes.
        dropout = document(args={"hidden": [6], "dropout": 0.3})
        trainings.trained(dropout, plain, folder / "whole", joint)
        with trainings.interruption(INTERRUPTED_AT):
            trainings.trained(dropout, plain, folder / "again", joint)
        trainings.trained(dropout, plain, folder / "again", joint)
        validated(folder / "validated", plain, joint)
        random = torch.rand(1).item()
        (folder / f"random-{joint.rank}.json").write_text(json.dumps([random, os.getpid()]))


def validated(folder: Path, store: Store, joint: Ranks) -> None:
    """Train a student that ends with its first epoch, the best, and note the weights that each rank ends with."""
    genuine = resume.keep_both

    def keep(module: torch.nn.Module, *rest: Any) -> dict[str, Any]:
        facts = genuine(module, *rest)
        numbers = torch.cat([tensor.flatten() for tensor in module.state_dict().values()]).tolist()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"weights-{joint.rank}.json").write_text(json.dumps(numbers))
        return facts

    settings = {"validation": 0.2, "keep": "best", "best_by": "kl"}
    # Of equal epochs the first is the best.
    with (
        mock.patch.object(resume, "keep_both", keep),
        mock.patch.object(Validation, "_rank", lambda *_: (0.0, 0.0)),
    ):
        trainings.trained(document(train=settings), store, folder, joint)


def hang(folder: Path) -> None:
    """Let rank 1 never come to the second count, for which rank 0 waits."""
    try:
        with joined(timeout=5.0) as joint:
            joint.counts(1)
            if joint.rank == 1:
                time.sleep(90)
            joint.counts(2)
    except TransientIOError as error:
        (folder / "said").write_text(str(error))
        raise


def signalled(folder: str) -> list[int]:
    """Let rank 0 get a signal while it waits for rank 1; return the exit statuses."""
    return ranks(2, wait_for_signal, Path(folder))


def wait_for_signal(rank: int, folder: Path) -> int:
    """Wait for a rank that works for long, and get SIGTERM."""
    handle_signals()
    started = time.monotonic()
    try:
        with joined() as joint:
            if rank == 1:
                time.sleep(8)
            else:
                started = time.monotonic()
                threading.Timer(1.0, signal.raise_signal, [signal.SIGTERM]).start()
            joint.wait()
    except Stopped as stopped:
        (folder / "seconds").write_text(str(time.monotonic() - started))
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    hang(Path(sys.argv[1]))
