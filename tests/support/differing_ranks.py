"""Two ranks that were started with something different, for tests/faults/test_ranks.py.

`tried` is called in an interpreter of its own (`children.apart`), whose forks are the ranks. Each rank has a folder of its own
with the experiment and its files. Ranks that train have a copy of the store each; ranks that capture share one.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.runtime.ranks import OtherRankFailed, Ranks, joined
from logitstore.pipeline.train.stage import train_students
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import LogitStoreError
from support import small_experiment as small
from support.children import ranks

OWN_SET = ('factory = "logitstore.pipeline.datasets:arrays"', 'factory = "faulty:no_fingerprint"')
"""A transfer set without a fingerprint."""


def setting(old: str, new: str) -> Callable[[Path], None]:
    """Return a change of the experiment file."""

    def change(folder: Path) -> None:
        file = folder / "small.toml"
        text = file.read_text()
        assert text.count(old) >= 1, old
        file.write_text(text.replace(old, new, 1))

    return change


def appended(name: str) -> Callable[[Path], None]:
    """Return a change of a source file that changes no number."""

    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write("\n# another version\n")

    return change


def other_data(**change: int) -> Callable[[Path], None]:
    """Return a change of the examples."""
    return lambda folder: small.write_data(folder / "data.npz", **change)


def other_weights(folder: Path) -> None:
    """Exchange the weights of the teacher."""
    shutil.copy(folder / "other.safetensors", folder / "line.safetensors")


def captured_anew(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a change after which the store is made again."""

    def remade(folder: Path) -> None:
        change(folder)
        shutil.rmtree(folder / "out")
        cache(workspace(folder, folder / "out"))

    return remade


TRAIN: dict[str, Callable[[Path], None]] = {
    "temperature": setting("temperature = 2.0", "temperature = 8.0"),
    "lr": setting("lr = 1e-2", "lr = 1e-1"),
    "epochs": setting("epochs = 1", "epochs = 3"),
    "batch": setting("batch_size = 64 }", "batch_size = 32 }"),
    "seed": setting("epochs = 1", "epochs = 1, seeds = [1]"),
    "checkpoints": setting("epochs = 1", "epochs = 1, checkpoint_every = 1"),
    "network": setting("hidden = [4]", "hidden = [5]"),
    "students": setting('name = "small"', 'name = "tiny"'),
    "store of other labels": captured_anew(other_data(wrong_label=2)),
    "store of another input": captured_anew(other_data(change=7)),
    "store of other weights": captured_anew(other_weights),
    "torch": lambda folder: None,
}
"""Difference of rank 1 in `train`, by name."""
CACHE: dict[str, Callable[[Path], None]] = {
    "batch": setting("batch_size = 32", "batch_size = 16"),
    "encoding": setting("[cache]", '[cache]\nencoding = "float32"'),
    "order": setting('order = "as_is"', "seed = 3"),
    "precision": setting("[cache]", '[cache]\nprecision = "bfloat16"'),
    "labels": other_data(wrong_label=2),
    "an input": other_data(change=7),
    "labels of a set without fingerprint": other_data(wrong_label=2),
    "an input of a set without fingerprint": other_data(change=7),
    "weights": other_weights,
    "source of the teacher": appended("faulty.py"),
    "torch": lambda folder: None,
}
"""Difference of rank 1 in `cache`, by name."""


def workspace(folder: Path, out: Path, **settings: Any) -> Workspace:
    """Return the workspace of a rank."""
    return Workspace.of_folder(load_experiment(folder / "small.toml"), out, device="cpu", **settings)


def lay_out(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the files of a rank."""
    small.lay_out(folder)
    small.write_experiment(folder, *changes)
    shutil.copy(folder / "line.safetensors", folder / "other.safetensors")
    with (folder / "other.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(0.5).tobytes())
    return folder


def work_as(rank: int, folder: Path, stage: str, name: str, agrees: bool) -> int:
    """Do a stage as one of the ranks; keep the line of its own error."""
    mine = folder / str(rank)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("os.fsync"))
        if name == "torch" and rank == 1:
            stack.enter_context(mock.patch.object(torch, "__version__", "2.0.0"))
        if not agrees:
            stack.enter_context(mock.patch.object(Ranks, "agree", lambda self, value: None))
        try:
            with joined(20.0) as joint:
                if stage == "train":
                    train_students(workspace(mine, mine / "out", ranks=joint))
                else:
                    cache(workspace(mine, folder / "out", ranks=joint))
        except OtherRankFailed as error:
            return error.exit_code
        except LogitStoreError as error:
            (folder / f"said-{rank}").write_text(str(error))
            return error.exit_code
    return 0


def tried(work: str, stage: str, names: list[str], agrees: bool = True) -> dict[str, Any]:
    """Run two ranks with each difference; return exit statuses, lines and seconds by name."""
    torch.set_num_threads(1)
    report = {}
    for name in names:
        folder = Path(work) / f"{stage}-{name}"
        for rank in range(2):
            own = [OWN_SET] if "without fingerprint" in name else []
            lay_out(folder / str(rank), *own)
            if stage == "train":
                with mock.patch("os.fsync"):
                    cache(workspace(folder / str(rank), folder / str(rank) / "out"))
        {"train": TRAIN, "cache": CACHE}[stage][name](folder / "1")
        started = time.monotonic()
        statuses = ranks(2, work_as, folder, stage, name, agrees)
        seconds = time.monotonic() - started
        report[name] = [statuses, [file.read_text() for file in sorted(folder.glob("said-*"))], seconds]
    return report
