"""The real command of stage one, killed and on a full disk.

Called in an interpreter of its own (`children.apart`) that has loaded torch and forks the command, which saves the two
seconds of a start.
"""

import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from support import small_experiment, stores
from support.children import Child, die

import logitstore.cli.commands.cache
import logitstore.pipeline.cache.stage
import logitstore.pipeline.transfer  # noqa: F401 - loaded here, once, and not in each fork
from logitstore.cli.main import main
from logitstore.storage.errors import StorageFull
from logitstore.storage.integrity.verify import INCOMPLETE, verify

from .filling import PAGE
from .mounts import enter_namespace, resize, tmpfs
from .points import POINTS, Watch
from .writers import broken_commits, differences

TEACHERS: Final = ("line", "second")
ENCODINGS: Final = ('"float16"', "{ transform = { max_kl = 1e-2, rows = 100 } }")
"""What the command captures, two runs in turn."""


def _lay_out(folder: Path, rows: int, block_rows: int, encoding: str = ENCODINGS[0]) -> Path:
    experiment = small_experiment.lay_out(folder)
    inputs = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    names = np.array(["a", "b", "c"])
    np.savez(folder / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1), class_names=names)
    text = experiment.read_text() + small_experiment.SECOND_TEACHER
    experiment.write_text(
        text.replace("block_rows = 64", f"block_rows = {block_rows}\nencoding = {encoding}")
    )
    return experiment


def command(experiment: Path, store: Path, errors: Path, aim: tuple[str, int] | None) -> int:
    """`logitstore cache`, in a fork; its exit code."""
    for number, name in ((1, os.devnull), (2, str(errors))):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    sys.argv = [
        "logitstore",
        "cache",
        str(experiment),
        str(store),
        "--device",
        "cpu",
        "--models",
        str(store.parent),
    ]
    sys.dont_write_bytecode = True
    if aim is not None:
        Watch(*aim, die).start()
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def killed(first: int, count: int, folder: str) -> dict[str, Any]:
    """Runs of the command that are killed, at random or at a named point, and run again until it is done."""
    violations: list[str] = []
    kills = 0
    with tempfile.TemporaryDirectory(dir=folder) as base:
        errors, made = Path(base) / "errors", []
        for kind, encoding in enumerate(ENCODINGS):
            laid_out = _lay_out(Path(base) / f"experiment-{kind}", 300, 64, encoding)
            golden, began = Path(base) / f"golden-{kind}", time.monotonic()
            assert Child(command, laid_out, golden, errors, None).wait() == 0, errors.read_text()
            made.append((laid_out, stores.tree(golden), time.monotonic() - began))
        for number in range(first, first + count):
            experiment, whole, lasts = made[number // 2 % len(made)]
            chance = random.Random(number)
            store = Path(base) / f"store-{number}"
            for incarnation in range(40):
                aim = (
                    (chance.choice(POINTS), chance.randint(1, 4)) if incarnation == 0 and number % 2 else None
                )
                child = Child(command, experiment, store, errors, aim)
                if aim is None and incarnation < 8:
                    time.sleep(chance.random() * lasts)
                    status = child.status if child.has_ended() else child.kill()
                else:
                    status = child.wait()
                kills += status == -signal.SIGKILL
                found = [line for name in TEACHERS for line in broken_commits(store / "teachers" / name)]
                if status not in (0, -signal.SIGKILL):
                    found.append(f"it left with {status}: {errors.read_text()}")
                if status == 0:
                    found += differences(stores.tree(store), whole)
                violations += [f"cache, run {number}: {line}" for line in found]
                if status == 0 or found:
                    break
            else:
                violations.append(f"cache, run {number}: never done")
    return {"violations": violations, "kills": kills}


def full(folder: str) -> dict[str, Any]:
    """The command on a disk that holds the samples and half of the first capture, and when it has grown."""
    enter_namespace()
    with tempfile.TemporaryDirectory(dir=folder) as base:
        experiment, errors = _lay_out(Path(base) / "experiment", 20_000, 1024), Path(base) / "errors"
        golden = Path(base) / "golden"
        assert Child(command, experiment, golden, errors, None).wait() == 0, errors.read_text()
        whole = stores.tree(golden)
        samples = sum(-(-len(d) // PAGE) * PAGE for k, d in whole.items() if not k.startswith("teachers/"))
        capture = sum(len(data) for key, data in whole.items() if key.startswith("teachers/line/"))
        with tmpfs(Path(base) / "disk", samples + capture // 2) as disk:
            store = disk / "store"
            status = Child(command, experiment, store, errors, None).wait()
            said = errors.read_text()
            violations = [] if status == StorageFull.exit_code else [f"it left with {status}: {said}"]
            lines = [line for line in said.splitlines() if line]
            if not re.search(r"^WARNING: .* and .* free", said):
                violations.append(f"no warning: {said}")
            if "room to write" not in lines[-1]:
                violations.append(f"the last line does not say it: {lines[-1]}")
            violations += broken_commits(store / "teachers" / "line")
            report = verify(store, deep=True)
            violations += map(str, report.problems)
            if report.exit_code != INCOMPLETE:
                violations.append(f"verify leaves with {report.exit_code}")
            resize(disk, 1 << 26)
            status = Child(command, experiment, store, errors, None).wait()
            if status:
                violations.append(f"when the disk had grown it left with {status}: {errors.read_text()}")
            violations += differences(stores.tree(store), whole)
        return {"violations": violations}
