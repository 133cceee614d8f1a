"""Writers that are stopped, and wake when another has finished and sealed their job.

`trials` is called in an interpreter of its own (`children.apart`). One trial: a writer stops itself (SIGSTOP) at a
point of the protocol, another one writes the rest and seals, the first is woken (SIGCONT).
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from support import stores
from support.children import Child

from logitstore.storage.parts.part_writer import PartWriter

from .killing import log_of
from .points import POINTS, STAGING, Watch
from .writers import PART_SEALED, differences, golden, overwriting, status_of, work

WRITING = tuple(point for point in POINTS if point.startswith(("data", "record")))[:10]
"""Points while a block is written: the writer has other blocks to write when it wakes."""
SEALING = tuple(point for point in POINTS if point.startswith("seal"))
"""Points at which it has nothing left to write: it ends as if nothing had been."""


def unchecked() -> None:
    """A writer that does not look whether its part was sealed."""
    assert hasattr(PartWriter, "_refuse_where_sealed")
    PartWriter._refuse_where_sealed = lambda self: None  # type: ignore[method-assign]


MUTANTS = {"does not look for a seal": unchecked, "a taken name is overwritten": overwriting}
"""Writers without a guard."""


def stop() -> None:
    """Sleep until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def sleeper(path: Path, point: str, nth: int, mutant: str) -> int:
    """A writer, in a fork, that stops at a point."""
    if mutant:
        MUTANTS[mutant]()
    Watch(point, nth, stop).start()
    return status_of(log_of(path), work, path)


def trials(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Trials number `first` and on: how many writers were stopped, and every violation."""
    violations: list[str] = []
    stopped = 0
    with tempfile.TemporaryDirectory(dir=folder) as base:
        whole = golden(Path(base) / "golden")
        for number in range(first, first + count):
            points = WRITING if number % 5 else SEALING
            point = points[number // 5 % len(points)] if points is SEALING else points[number % len(points)]
            nth = 1 + number * 7 % 10 if points is WRITING else 1
            path = Path(base) / "store"
            child = Child(sleeper, path, point, nth, mutant)
            try:
                if child.wait_until_stopped(20):
                    stopped += 1
                    found = _trial(child, path, point, whole)
                else:
                    found = [f"it never stopped, and left with {child.status}"]
            finally:
                child.kill()
            violations += [
                f"trial {number}, {point} ({nth}){f' {mutant}' if mutant else ''}: {f}" for f in found
            ]
            shutil.rmtree(path, ignore_errors=True)
            log_of(path).unlink(missing_ok=True)
    return {"violations": violations, "stopped": stopped}


def _trial(child: Child, path: Path, point: str, whole: dict[str, bytes]) -> list[str]:
    ended = Child(status_of, log_of(path), work, path).wait(30)
    if ended:
        return [f"the other writer left with {ended}: {log_of(path).read_text()}"]
    before, files = _sealed(path), _files(path)
    child.go_on()
    status = child.wait(30)
    wrong = [f"before it woke {line}" for line in differences(before, whole)]
    wrong += list(differences(stores.tree(path), whole))
    after = _files(path)
    wrong += [f"{key} is another file than before" for key, was in files.items() if after.get(key) != was]
    line = log_of(path).read_text() if log_of(path).exists() else ""
    if point in WRITING and (status != PART_SEALED or line.count("\n") != 1):
        wrong.append(f"expected one line that says why it stops, found status {status} and {line!r}")
    if point in SEALING and status not in (0, PART_SEALED):
        wrong.append(f"it left with {status}: {line}")
    return wrong


def _is_working_file(key: str) -> bool:
    return STAGING in f"/{key}" or key.endswith("/lock")


def _sealed(path: Path) -> dict[str, bytes]:
    return {key: data for key, data in stores.tree(path).items() if not _is_working_file(key)}


def _files(path: Path) -> dict[str, tuple[int, int]]:
    """Which file each key is: its inode, and when its bytes were written."""
    found = {}
    for file in path.rglob("*"):
        key = file.relative_to(path).as_posix()
        if file.is_file() and not _is_working_file(key):
            found[key] = (file.stat().st_ino, file.stat().st_mtime_ns)
    return found
