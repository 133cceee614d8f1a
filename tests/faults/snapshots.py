"""Hard-link snapshots (`cp -al`, rsnapshot) beside two writers that make the same blocks with other last bits.

`trials` is called in an interpreter of its own (`children.apart`). One trial: a writer stops when the shards of a block
have their names and its record has none; another one, whose logits differ, writes everything. A snapshot gives every
staged file a second name before it gets its own.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from support.children import Child

from logitstore.storage.backends.staged import NewObject
from logitstore.storage.integrity.verify import verify

from .killing import log_of
from .points import Watch
from .waking import stop
from .writers import PLAN, Plan, broken_commits, status_of, work

THEIRS: Final = replace(PLAN, seed=3)
"""The same rows, and logits of a device that does not agree."""


def by_number_of_names() -> None:
    """A writer that takes a staged file with two names for one that has its own."""

    def has_name(self: NewObject, final: int) -> bool:
        return os.stat(self._temporary, dir_fd=self._directory).st_nlink > 1

    assert hasattr(NewObject, "_has_name")
    NewObject._has_name = has_name  # type: ignore[method-assign]


MUTANTS: Final[dict[str, Callable[[], None]]] = {"counts the names of a staged file": by_number_of_names}
"""Writers without the guard."""


def snapshots(folder: Path) -> None:
    """Link every staged file into a snapshot just before it is published, for the rest of this process."""
    folder.mkdir()
    link = os.link

    def linked(source: Any, target: Any, **others: Any) -> None:
        link(source, folder / os.fsdecode(source), src_dir_fd=others["src_dir_fd"], follow_symlinks=False)
        link(source, target, **others)

    os.link = linked


def sleeper(path: Path, nth: int) -> int:
    """A writer, in a fork, that stops between the shards of a block and its record."""
    Watch("record: before link", nth, stop).start()
    return status_of(log_of(path), work, path)


def writer(path: Path, plan: Plan, mutant: str) -> int:
    """A writer, in a fork, whose files get into snapshots."""
    if mutant:
        MUTANTS[mutant]()
    snapshots(path.with_suffix(".snapshot"))
    return status_of(log_of(path), work, path, plan)


def trials(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Trials number `first` and on: how many blocks had two writers, and every violation."""
    violations: list[str] = []
    contested = 0
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory(dir=folder) as base:
            path, nth = Path(base) / "store", 1 + number % (PLAN.views * PLAN.blocks)
            child = Child(sleeper, path, nth)
            try:
                assert child.wait_until_stopped(20), child.status
                contested += 1
                ended = Child(writer, path, THEIRS, mutant).wait(30)
            finally:
                child.kill()
            found = [f"{line} is not what was committed" for line in broken_commits(PLAN.part(path))]
            found += [str(problem) for problem in verify(path, deep=True).problems]
            if ended:
                found.append(f"the writer left with {ended}: {log_of(path).read_text()}")
            violations += [f"trial {number}, block {nth} {mutant}: {line}" for line in found]
            shutil.rmtree(path)
    return {"violations": violations, "contested": contested}
