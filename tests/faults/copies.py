"""Copies that are killed at random system calls, and run again until they end by themselves.

`runs` is called in an interpreter of its own (`children.apart`). Of two runs, one copies a store to a place where nothing
is, one to a store that has another capture. After each kill, what the log names must be whole; no object that had
arrived may be sent or written again; at the end, every byte is that of an uninterrupted copy.
"""

import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from support import stores
from support.children import Child, Countdown
from support.stores import Teacher

from logitstore.storage.api import open_store
from logitstore.storage.backends.local import Folder
from logitstore.storage.format.constants import CARD_FILE, LOCK, STAGING
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.log import log_key
from logitstore.storage.sharing import copying
from logitstore.storage.sharing.copying import copy_store
from logitstore.storage.sharing.part_copy import PartCopy
from logitstore.storage.sharing.store_card import states

from .writers import differences

CALLS: Final = ("write", "link", "unlink", "mkdir", "open")
"""Functions of `os` before or after which a copy is killed."""
MUTANTS: Final = ("blind", "log first")
"""Copies that are wrong: one sends everything again, one names a part before it is there."""
MOST: Final = 20
"""Incarnations after which a copy that is not done never will be."""


def _mutate(mutant: str) -> None:
    if mutant == "blind":
        PartCopy._listed = lambda self: frozenset()  # type: ignore[method-assign]
        PartCopy.check_whole = lambda self, place: None  # type: ignore[method-assign]
    elif mutant == "log first":
        bring, init = PartCopy.bring, PartCopy.__init__
        sources: dict[str, Any] = {}

        def opened(self: PartCopy, source: Any, name: str, place: Any) -> None:
            sources[name] = source
            init(self, source, name, place)

        def early(self: PartCopy, place: Any, *rest: Any) -> None:
            copying.add_to_log(place, sources[self.name], {self.name: lambda: None})
            bring(self, place, *rest)

        PartCopy.bring = early  # type: ignore[method-assign]
        PartCopy.__init__ = opened  # type: ignore[method-assign]


def copier(source: Path, path: Path, at: int | None, after: bool, report: Path, mutant: str) -> int:
    """Copy, in a fork, and die at a call of that number; write the keys of all puts to `report`."""
    _mutate(mutant)
    os.fsync = lambda handle: None  # type: ignore[assignment]
    put_new, original = Folder.put_new, os.write
    log = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noting(self: Folder, key: str, data: bytes) -> bool:
        original(log, f"{(self.path / key).relative_to(path).as_posix()}\n".encode())
        return put_new(self, key, data)

    Folder.put_new = noting  # type: ignore[method-assign]
    calls = Countdown(at)
    for name in CALLS:
        setattr(os, name, calls.counted(getattr(os, name), after=after))
    copy_store(source, path)
    original(log, f"calls {calls.count}\n".encode())
    return 0


def _stamps(path: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and the time of every object that is there, by key."""
    return {
        item.relative_to(path).as_posix(): (item.stat().st_ino, item.stat().st_mtime_ns)
        for item in path.rglob("*")
        if item.is_file()
        and STAGING not in item.as_posix()
        and not item.as_posix().endswith((LOCK, CARD_FILE))
    }


def _lay(path: Path, other: Path | None) -> None:
    """Put at the destination what is there before a copy."""
    shutil.rmtree(path, ignore_errors=True)
    if other is not None:
        shutil.copytree(other, path)


def runs(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Runs number `first` and on: their kills and every violation."""
    total: Counter[str] = Counter()
    violations: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder) as base:
        source, path, report = (Path(base) / name for name in ("source", "there", "report"))
        teachers = {"wide": Teacher(views=2), "small": Teacher(encoding={"transform": {"max_kl": 1e-2}})}
        stores.add_clustering(stores.make(source, rows=14, teachers=teachers).store)
        other = Path(base) / "other"
        copy_store(source, other, teachers=[])
        logits = stores.some_logits(1, 14, 5, seed=8)
        stores.write_capture(open_store(other), "theirs", logits, Teacher(), stores.some_inputs(14))
        kinds = []
        for before in (None, other):
            _lay(path, before)
            assert Child(copier, source, path, None, False, report, "").wait() == 0
            calls = int(report.read_text().splitlines()[-1].split()[1])
            kinds.append((before, stores.tree(path), calls))
            report.unlink()
        assert kinds[0][1] == stores.tree(source)
        for number in range(first, first + count):
            before, whole, calls = kinds[number % 2]
            _lay(path, before)
            found = _run(number, source, path, report, calls, mutant, total)
            found += list(differences(stores.tree(path), whole))
            violations += [f"run {number}{f' ({mutant})' if mutant else ''}: {line}" for line in found]
    return {"violations": violations, **total}


def _run(
    number: int, source: Path, path: Path, report: Path, calls: int, mutant: str, total: Counter[str]
) -> list[str]:
    chance = random.Random(number)
    wrong: list[str] = []
    for incarnation in range(MOST):
        there = _stamps(path) if path.exists() else {}
        # The first copy is killed for certain; later ones have less to do, and some end.
        at = chance.randint(1, calls) if incarnation < 3 else None
        status = Child(copier, source, path, at, chance.random() < 0.5, report, mutant).wait()
        total["kills"] += status == -signal.SIGKILL
        total["incarnations"] += 1
        if status not in (0, -signal.SIGKILL):
            return [*wrong, f"a copy left with {status}"]
        keys = [] if not report.exists() else report.read_text().splitlines()
        wrong += [f"{key} was sent again" for key in keys if key in there]
        report.unlink(missing_ok=True)
        now = _stamps(path) if path.exists() else {}
        wrong += [f"{key} was written again" for key, stamp in there.items() if now.get(key) != stamp]
        if (path / log_key(0)).exists():
            wrong += [str(problem) for problem in verify(path, deep=True).problems]
        if status == 0 and not states((path / CARD_FILE).read_text(), open_store(path).digest):
            wrong.append("the card is not that of the store")
        if status == 0 or wrong:
            return wrong
    return [f"not done after {MOST} incarnations"]
