"""Trainings that are killed at their n-th system call and resumed, for tests/pipeline/trainer/test_kill.py.

`killed` is called in an interpreter of its own (`children.apart`): torch is imported once, and each training is a fork.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from logitstore.storage.api import open_store
from support import trainings
from support.children import Child, Countdown

DOCUMENT = trainings.content({"epochs": 1, "checkpoint_every": 2}, views=0)
CALLS = ("fsync", "link", "unlink", "open", "write", "replace", "mkdir", "rmdir")
"""The calls that change the disk, and some between them."""


def training(base: Path, folder: Path, kill_at: int | None = None) -> None:
    """Train in this process and note the number of its calls; kill it before call `kill_at`."""
    calls = Countdown(kill_at)
    store = open_store(base / "store.zarr")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)

    def counts() -> bool:
        return str(folder) in os.getcwd()

    for name in CALLS:
        setattr(os, name, calls.counted(getattr(os, name), counts=counts, skip=name == "fsync"))
    trainings.trained(DOCUMENT, store, folder, base=base)
    number = calls.count
    (folder / "calls").write_text(str(number))


def killed(base: str, kills: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a whole training, then killed ones, each followed by one that resumes it; return a report of each."""
    here = Path(base)
    torch.set_num_threads(1)
    # Once in this process, so that the children find all modules imported.
    trainings.trained(DOCUMENT, open_store(here / "store.zarr"), here / "first", base=here)
    assert Child(training, here, here / "whole").wait() == 0
    calls = int((here / "whole" / "calls").read_text())
    reports = []
    for number in range(kills):
        at = 1 + number * calls // kills
        folder = here / f"killed-{number}"
        status = Child(training, here, folder, at).wait()
        left = sorted(p.name for p in folder.rglob("*.json"))
        ended = Child(training, here, folder).wait()
        report = {"at": at, "killed": status, "ended": ended, "left": left, "weights": digest(folder)}
        # Without files that a rename was to put in place: their names begin with a dot.
        report["files"] = sorted(p.name for p in (folder / "students").iterdir() if p.name[0] != ".")
        reports.append(report)
        shutil.rmtree(folder)
    return {"calls": calls, "weights": digest(here / "whole")}, reports


def digest(folder: Path) -> str:
    """Return the sha256 of the weights."""
    return hashlib.sha256(trainings.weights(folder)).hexdigest()
