"""Exports and imports that are killed at random calls, or on a disk that is full, and run again until they end.

`runs` and `fillings` are called in an interpreter of their own (`children.apart`). After each kill a file of an export is there
whole or not at all, and the parts of a store that were there are as they were. At the end every byte is that of an
uninterrupted run.
"""

import contextlib
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from support import stores
from support.children import Child, Countdown
from support.stores import Teacher

from logitstore.pipeline.exchange import export, import_files, writers
from logitstore.pipeline.exchange.columns import Columns
from logitstore.pipeline.exchange.export import export_logits
from logitstore.pipeline.exchange.import_files import import_logits
from logitstore.storage.errors import NotAStoreError, StorageFull
from logitstore.storage.format.constants import LOCK, STAGING
from logitstore.storage.integrity.verify import CORRUPT, verify

from .mounts import enter_namespace, tmpfs
from .mounts import resize as grow
from .writers import differences

CALLS: Final = ("write", "link", "unlink", "replace", "mkdir", "open")
"""Functions of `os` before or after which a run is killed."""
MUTANTS: Final = ("in place", "log first")
"""Runs that are wrong: one writes a file under its name, one takes what is there for whole."""
MOST: Final = 20
"""Incarnations after which a run that is not done never will be."""
ROWS: Final = 14
Job = Callable[[Path], object]


class Jobs:
    """The exports and imports that are tried, on files and stores of one folder."""

    def __init__(self, base: Path) -> None:
        """Make the store that is exported, and the files that are imported."""
        teachers = {"wide": Teacher(views=2), "deep": Teacher(encoding="float32")}
        self.made = stores.make(base / "source", rows=ROWS, teachers=teachers)
        self.file = base / "logits.npy"
        np.save(self.file, stores.some_logits(1, ROWS, 5, seed=9)[0])
        self.named: dict[str, Job] = {
            "export npy": lambda path: export_logits(self.made.path, "wide", path / "out.npy"),
            "import": self._import,
            "export safetensors": lambda path: export_logits(
                self.made.path, "wide", path / "out.safetensors"
            ),
            "import into": self._import_into,
        }

    def lay(self, kind: str, path: Path) -> None:
        """Put in a folder what is there before a run."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        if kind == "import into":
            shutil.copytree(self.made.path, path / "store")

    def _import(self, path: Path) -> object:
        ids = [f"row {row}" for row in range(ROWS)]
        return import_logits(self.file, path / "store", "new", labels=self.made.labels, ids=ids)

    def _import_into(self, path: Path) -> object:
        return import_logits(self.file, path / "store", "new", labels=self.made.labels)


def _mutate(mutant: str) -> None:
    if mutant == "in place":

        @contextlib.contextmanager
        def at_once(path: Path, *, replace: bool) -> Any:
            with path.open("wb", buffering=0) as file:
                yield file

        writers.whole_file = at_once
    elif mutant == "log first":
        import_files._is_done = lambda store, plan: True


def running(jobs: Jobs, kind: str, path: Path, at: int | None, after: bool, report: Path, mutant: str) -> int:
    """Run a job, in a fork, and die at a call of that number; note the calls of a run that ended."""
    _mutate(mutant)
    os.fsync = lambda handle: None
    calls, write = Countdown(at), Path.write_text
    for name in CALLS:
        setattr(os, name, calls.counted(getattr(os, name), after=after))
    Columns.read = calls.counted(Columns.read, after=after)  # type: ignore[method-assign]
    jobs.named[kind](path)
    calls.at = None
    write(report, str(calls.count))
    return 0


def content(path: Path) -> dict[str, bytes]:
    """Return the files that are there, but for locks and what is staged."""
    found = {key: data for key, data in stores.tree(path).items() if not key.endswith("/")}
    return {key: data for key, data in found.items() if STAGING not in key and not key.endswith(LOCK)}


def runs(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Runs number `first` and on: their kills and every violation."""
    total: Counter[str] = Counter()
    violations: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder) as base:
        jobs, path, report = Jobs(Path(base)), Path(base) / "there", Path(base) / "report"
        kinds = []
        for kind in jobs.named:
            jobs.lay(kind, path)
            before = content(path)
            assert Child(running, jobs, kind, path, None, False, report, "").wait() == 0
            kinds.append((kind, before, content(path), int(report.read_text())))
        for number in range(first, first + count):
            kind, before, whole, calls = kinds[number % len(kinds)]
            jobs.lay(kind, path)
            chance = random.Random(number)
            found = ["not done"]
            for incarnation in range(MOST):
                at = chance.randint(1, calls) if incarnation < 3 else None
                status = Child(
                    running, jobs, kind, path, at, bool(chance.randint(0, 1)), report, mutant
                ).wait()
                total["kills"] += status == -signal.SIGKILL
                now = content(path)
                found = [f"left with {status}"] if status not in (0, -signal.SIGKILL) else []
                found += [f"{key} has changed" for key, data in before.items() if now.get(key) != data]
                found += [
                    f"{key} is half there"
                    for key, data in now.items()
                    if not Path(key).name.startswith(".") and data != whole.get(key)
                ]
                if found or status == 0:
                    break
            found += list(differences(content(path), whole)) if not found else []
            violations += [f"run {number} ({kind} {mutant}): {line}" for line in found]
        unchanged = verify(jobs.made.path, deep=True).exit_code == 0
        violations += [] if unchanged else ["the exported store has changed"]
    return {"violations": violations, **total}


def _filled(jobs: Jobs, kind: str, path: Path, blind: bool) -> int:
    """Run a job on a full disk, in a fork; blind: without a look at the room that there is."""
    if blind:
        export.check_room = import_files.check_room = lambda path, size: None
    try:
        jobs.named[kind](path)
    except StorageFull as error:
        return error.exit_code
    return 0


def fillings(count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Run each job on disks of several sizes, and again once they have grown; return every violation."""
    enter_namespace()
    violations: list[str] = []
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=folder) as base:
        jobs, there = Jobs(Path(base)), Path(base) / "there"
        for kind, job in jobs.named.items():
            jobs.lay(kind, there)
            before = content(there)
            pages = sum(-(-len(data) // 4096) * 4096 for data in before.values())
            job(there)
            whole = content(there)
            most = sum(-(-len(data) // 4096) * 4096 for data in whole.values()) - pages
            for number in range(count):
                with tmpfs(Path(base) / "disk", 1 << 22) as disk:
                    path = disk / "there"
                    jobs.lay(kind, path)
                    used = (1 << 22) - shutil.disk_usage(disk).free
                    grow(disk, used + max(1, (most * number) // count // 4096) * 4096)
                    status = Child(_filled, jobs, kind, path, number % 2 == 0).wait()
                    total["full"] += status == StorageFull.exit_code
                    now = content(path)
                    found = [f"left with {status}"] if status not in (0, StorageFull.exit_code) else []
                    found += [f"{key} has changed" for key, data in before.items() if now.get(key) != data]
                    found += [f"{key} is half there" for key, data in now.items() if data != whole.get(key)]
                    if kind.startswith("import"):
                        found += _verdict(path / "store")
                    grow(disk, 1 << 23)
                    if Child(_filled, jobs, kind, path, False).wait():
                        found.append("not done on a larger disk")
                    found += list(differences(content(path), whole))
                violations += [f"{kind}, size {number}: {line}" for line in found]
    return {"violations": violations, **total}


def _verdict(store: Path) -> list[str]:
    try:
        report = verify(store, deep=True)
    except NotAStoreError:
        return []  # not even the root had room
    return ["damaged"] if report.exit_code == CORRUPT else []
