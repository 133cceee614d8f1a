"""How is a training killed at its n-th system call? Started by tests/pipeline/trainer/test_kill.py, which reads what it prints.

    killed_training.py BASE KILLS    ->  a line {"calls": …} of a whole training, then one a kill

Each training is a forked child: torch is imported once. A child that is killed is followed by one that goes on.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from logitstore.storage.api import open_store
from support import trainings

DOCUMENT = trainings.content({"epochs": 1, "checkpoint_every": 2}, views=0)
CALLS = ("fsync", "link", "unlink", "open", "write", "replace", "mkdir", "rmdir")
"""What changes the disk, and what comes between."""


def counted(base: Path, folder: Path, kill_at: int | None) -> int:
    """Train in this process; kill it before the `kill_at`-th call. Returns how many there were."""
    count = 0

    def counting(genuine: Callable[..., Any], flushes: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if str(folder) in os.getcwd():
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return None if flushes else genuine(*args, **kwargs)

        return call

    store = open_store(base / "store.zarr")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    for name in CALLS:
        setattr(os, name, counting(getattr(os, name), flushes=name == "fsync"))
    trainings.trained(DOCUMENT, store, folder, base=base)
    return count


def child(base: Path, folder: Path, kill_at: int | None = None) -> int:
    """Train in a forked child; its exit status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        calls = counted(base, folder, kill_at)
        (folder / "calls").write_text(str(calls))
        status = 0
    finally:
        os._exit(status)


def main(base: Path, kills: int) -> None:
    """A whole training, then killed ones."""
    torch.set_num_threads(1)
    # Once in this process, so that the children find all modules imported.
    trainings.trained(DOCUMENT, open_store(base / "store.zarr"), base / "first", base=base)
    assert child(base, base / "whole") == 0
    calls = int((base / "whole" / "calls").read_text())
    found: dict[str, Any] = {"calls": calls, "weights": digest(base / "whole")}
    sys.stdout.write(json.dumps(found) + "\n")
    for number in range(kills):
        at = 1 + number * calls // kills
        folder = base / f"killed-{number}"
        killed = child(base, folder, at)
        left = sorted(p.name for p in folder.rglob("*.json"))
        ended = child(base, folder)
        found = {"at": at, "killed": killed, "ended": ended, "left": left, "weights": digest(folder)}
        # Without what a file was to be replaced by: it has a name of its own, and begins with a dot.
        found["files"] = sorted(p.name for p in (folder / "students").iterdir() if p.name[0] != ".")
        sys.stdout.write(json.dumps(found) + "\n")
        shutil.rmtree(folder)


def digest(folder: Path) -> str:
    """sha256 of the weights."""
    return hashlib.sha256(trainings.weights(folder)).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
