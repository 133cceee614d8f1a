"""Writers that are stopped, and wake when another store is at the path of theirs.

`trials` is called in an interpreter of its own (`children.apart`). One trial: a writer stops itself at a point of the
protocol; its store is deleted, emptied or moved away; another writer begins a store of other rows at the path, and stops
after two blocks; the first one is woken, then the other. The specs of both captures are the same bytes.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from support import stores
from support.children import Child

from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import WrongStore
from logitstore.storage.parts.binding import Binding
from logitstore.storage.parts.root import Root

from .killing import log_of
from .points import Watch
from .waking import SEALING, WRITING, stop
from .writers import PLAN, differences, golden, status_of, work

OTHER: Final = replace(PLAN, seed=1, key=78)
"""Another transfer set of the same size, and its logits by the same teacher."""
POINTS: Final = (*WRITING, *SEALING)


def moved(path: Path) -> None:
    """Move a store away."""
    path.rename(path.with_suffix(".moved"))


def emptied(path: Path) -> None:
    """Delete everything in a store, not its folder."""
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


WAYS: Final[tuple[Callable[[Path], object], ...]] = (shutil.rmtree, moved, emptied)
"""Ways in which a store makes room for another."""


def by_path() -> None:
    """A writer that finds its store by the path at every block, and compares nothing."""

    def hold(self: Folder, *, make: bool = False) -> Folder:
        if make:
            with self.directory(make=True):
                pass
        return self

    Folder.hold = hold  # type: ignore[method-assign]
    uncompared()


def uncompared() -> None:
    """A writer that holds its folders open, and does not look whether their path still leads to them."""
    assert hasattr(Binding, "check") and hasattr(Folder, "check_in_place") and hasattr(Root, "check_log")
    Binding.check = lambda self, spec: None  # type: ignore[method-assign]
    Folder.check_in_place = lambda self: None  # type: ignore[method-assign]
    Root.check_log = lambda self, folder: None  # type: ignore[method-assign]


MUTANTS: Final = {"finds its store by the path": by_path, "does not compare the path": uncompared}
"""Writers without a guard."""


def sleeper(path: Path, point: str, nth: int, mutant: str) -> int:
    """A writer, in a fork, that stops at a point."""
    if mutant:
        MUTANTS[mutant]()
    Watch(point, nth, stop).start()
    return status_of(log_of(path), work, path)


def beginner(path: Path) -> int:
    """A writer, in a fork, that begins the other store, and stops after two blocks."""
    left = [2]

    def acknowledged(view: int, block: int) -> None:
        left[0] -= 1
        if not left[0]:
            stop()

    return status_of(path.with_suffix(".others"), work, path, OTHER, acknowledged=acknowledged)


def trials(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Trials number `first` and on: how many writers were stopped, and every violation."""
    violations: list[str] = []
    stopped = 0
    with tempfile.TemporaryDirectory(dir=folder) as base:
        whole = golden(Path(base) / "golden", OTHER)
        for number in range(first, first + count):
            point, way = POINTS[number % len(POINTS)], WAYS[number // 2 % len(WAYS)]
            nth = 1 + number % 5 if point in WRITING else 1
            path = Path(base) / "store"
            child = Child(sleeper, path, point, nth, mutant)
            other = None
            try:
                found = [f"it never stopped, and left with {child.status}"]
                if child.wait_until_stopped(20):
                    stopped += 1
                    way(path)
                    other = Child(beginner, path)
                    assert other.wait_until_stopped(20), other.status
                    found = _trial(child, other, path, whole)
            finally:
                child.kill()
                if other is not None:
                    other.kill()
            violations += [f"trial {number}, {point} ({nth}), {way.__name__} {mutant}: {f}" for f in found]
            for left in Path(base).glob("store*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return {"violations": violations, "stopped": stopped}


def _trial(child: Child, other: Child, path: Path, whole: dict[str, bytes]) -> list[str]:
    before = stores.tree(path)
    child.go_on()
    status = child.wait(30)
    said = log_of(path).read_text() if log_of(path).exists() else ""
    wrong = [f"when it woke, {line}" for line in differences(stores.tree(path), before)]
    if status != WrongStore.exit_code or not said.startswith("WrongStore: ") or said.count("\n") != 1:
        wrong.append(f"expected one line of another store, found status {status} and {said!r}")
    other.go_on()
    if ended := other.wait(30):
        log = path.with_suffix(".others")
        wrong.append(f"the other writer left with {ended}: {log.read_text() if log.exists() else ''}")
    return wrong + list(differences(stores.tree(path), whole))
