"""Writers on a disk that is really full, and on the same disk when it has grown.

`trials` is called in an interpreter of its own (`children.apart`), as root. One trial: one to four writers on a tmpfs
that is too small for the capture (or even for the samples); their messages and files are checked; the tmpfs grows, and
another number of them resumes.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from support import stores
from support.children import Child

from logitstore.storage.errors import NotAStoreError, StorageFull
from logitstore.storage.integrity.verify import INCOMPLETE, verify

from .killing import log_of
from .mounts import enter_namespace, tmpfs
from .mounts import resize as grow
from .points import STAGING
from .writers import (
    PART_SEALED,
    Plan,
    broken_commits,
    differences,
    golden,
    in_place,
    status_of,
    work,
)

PLAN: Final = Plan(rows=6 * 1024, classes=64, block_rows=1024, views=2, encoding="float32")
"""Blocks of 256 KiB: beside them, the pages of small files are few."""
SIZES: Final = 25
"""Sizes of the disk, from one that holds no samples to one that holds all but a bit."""
PAGE: Final = 4096


def _blind() -> None:
    """A writer that does not know how much room there is."""
    statvfs = os.statvfs

    def roomy(path: Any) -> os.statvfs_result:
        found = list(statvfs(path))
        found[3] = found[4] = 1 << 40
        return os.statvfs_result(found)

    os.statvfs = roomy  # type: ignore[assignment]


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    "does not look how much is free": _blind,
    "in place instead of staged": in_place,
}
"""Writers without a guard."""


class _Listener(logging.Handler):
    """Says on a pipe that the package has warned of missing room."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if " free" in record.getMessage():
            self._say(b"W")


def writer(path: Path, share: tuple[int, int], pipe: int, mutant: str) -> int:
    """One writer, in a fork: W on its pipe is a warning, T a teacher that runs, A an acknowledgement."""
    if mutant:
        MUTANTS[mutant]()
    write = os.write
    logging.getLogger("logitstore.storage").addHandler(_Listener(lambda said: write(pipe, said) and None))
    return status_of(
        log_of(path.parent.with_name("log")),
        work,
        path,
        PLAN,
        share,
        lambda view, block: write(pipe, b"A") and None,
        about_to_run=lambda: write(pipe, b"T") and None,
    )


def trials(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Trials number `first` and on: how many blocks were there when the disk was full, and every violation."""
    enter_namespace()
    violations: list[str] = []
    totals = {"warned": 0, "without_samples": 0, "blocks": 0}
    with tempfile.TemporaryDirectory(dir=folder) as base:
        whole = golden(Path(base) / "golden", PLAN)
        pages = {key: -(-len(data) // PAGE) * PAGE for key, data in whole.items()}
        samples = sum(size for key, size in pages.items() if not key.startswith("teachers/wide"))
        capture = sum(len(data) for key, data in whole.items() if "/c." in key and key.startswith("teachers"))
        for number in range(first, first + count):
            step = number % SIZES
            # The first three hold no samples, or not all of them.
            size = samples * (step + 1) // 4 if step < 3 else samples + capture * (step - 2) // (SIZES - 1)
            with tmpfs(Path(base) / "disk", size) as disk:
                found = _trial(number, disk, whole, mutant, totals)
            log_of(Path(base) / "log").unlink(missing_ok=True)
            violations += [f"trial {number}, {size} bytes: {line}" for line in found]
    return {"violations": violations, **totals}


def _run_writers(path: Path, number: int, mutant: str) -> tuple[list[int], list[bytes]]:
    """The exit statuses of `number` writers, and what each said."""
    pipes = [os.pipe() for _ in range(number)]
    children = [Child(writer, path, (rank, number), pipe[1], mutant) for rank, pipe in enumerate(pipes)]
    statuses = [child.wait(60) for child in children]
    said = []
    for reading, writing in pipes:
        os.close(writing)
        said.append(os.read(reading, 65536))
        os.close(reading)
    return statuses, said


def _trial(
    number: int, disk: Path, whole: dict[str, bytes], mutant: str, totals: dict[str, int]
) -> list[str]:
    path, wrong = disk / "store", []
    log = log_of(disk.with_name("log"))
    statuses, said = _run_writers(path, 1 + number % 4, mutant)
    lines = log.read_text().splitlines() if log.exists() else []
    if any(status != StorageFull.exit_code for status in statuses) or len(lines) != len(statuses):
        wrong.append(f"writers left with {statuses}: {lines}")
    wrong += [line for line in lines if not line.startswith(StorageFull.__name__)]
    wrong += ["a teacher ran before the warning" for words in said if b"T" in words.partition(b"W")[0]]
    totals["warned"] += any(b"W" in words for words in said)
    totals["without_samples"] += not any(b"T" in words for words in said)
    totals["blocks"] += sum(words.count(b"A") for words in said)
    wrong += [f"a record without its data: {line}" for line in broken_commits(PLAN.part(path))]
    for key, data in stores.tree(path).items():
        if STAGING in f"/{key}" or key.endswith(("/", "/lock")):
            continue
        if data != whole.get(key):
            wrong.append(f"{key} is partly there: {len(data)} bytes")
    try:
        report = verify(path, deep=True)
        wrong += [f"verify: {problem}" for problem in report.problems]
        if report.exit_code != INCOMPLETE:
            wrong.append(f"verify leaves with {report.exit_code}")
    except NotAStoreError:
        pass  # not even the root had room
    if wrong:
        return wrong
    grow(disk, 1 << 26)
    statuses, _ = _run_writers(path, 1 + (number + 1) % 4, mutant)
    if set(statuses) - {0, PART_SEALED}:
        wrong.append(f"when the disk had grown writers left with {statuses}: {log.read_text()}")
    return [*wrong, *differences(stores.tree(path), whole)]
