"""Readers and writers on read-only media, without HOME or temporary space, with odd clocks.

`media` and `clocks` are called in an interpreter of its own (`children.apart`), the first as root. Each case is a
fork that changes its own surroundings; an audit hook (PEP 578) sees every attempt to open a file for writing, to make, link,
rename or remove one, whether it succeeds or not.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from support import stores
from support.children import Child, die

from logitstore.storage.api import open_store
from logitstore.storage.describe import describe
from logitstore.storage.integrity.verify import CLEAN, verify

from .killing import log_of
from .mounts import enter_namespace, image, read_only, tmpfs
from .points import Watch
from .writers import PART_SEALED, PLAN, Plan, differences, golden, status_of, work

NOBODY: Final = 65534
YEAR: Final = 365.25 * 86400
CHANGING: Final = frozenset(
    f"os.{name}"
    for name in (
        "chmod",
        "chown",
        "link",
        "mkdir",
        "remove",
        "rename",
        "rmdir",
        "symlink",
        "truncate",
        "utime",
    )
) | {"tempfile.mkstemp", "tempfile.mkdtemp", "shutil.rmtree"}
"""Audit events of who changes a file system."""
WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Attempts(list[str]):
    """Attempts of this process, from now on, to change a file."""

    def __init__(self) -> None:
        super().__init__()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGING:
            self.append(f"{event} {arguments[0]}")
        elif event == "open" and arguments[2] & WRITING and arguments[0] != os.devnull:
            self.append(f"open {arguments[0]} for writing")


def read(path: Path, log: Path, expected: str, mutant: str) -> int:
    """Read, verify, inspect and stream a store; what was wrong goes to `log`."""
    attempts = Attempts()
    if mutant:
        with contextlib.suppress(OSError):
            (path / "index.cache").write_bytes(b"")
    wrong = []
    found = stores.read_everything(path)[-1].decode()
    if found != expected:
        wrong.append(f"another store: {found}")
    report = verify(path, deep=True)
    if report.exit_code != CLEAN:
        wrong.append(f"verify leaves with {report.exit_code}: {report.problems}")
    store = open_store(path)
    if describe(store)[0]["digest"] != expected:
        wrong.append("inspect tells of another store")
    rows = sum(len(batch.rows) for batch in store.stream(16, seed=1))
    if rows != store.num_rows:
        wrong.append(f"{rows} rows in an epoch of {store.num_rows}")
    wrong += attempts
    log.write_text("\n".join(wrong))
    return 1 if wrong else 0


def write(path: Path, log: Path, may: bool) -> int:
    """Add a capture to a store: where that is not possible (`may`), one typed error says so."""
    plan = Plan(rows=37, classes=5, name="more")
    errors = log.with_suffix(".errors")
    status = status_of(errors, _add, path, plan)
    lines = errors.read_text().splitlines() if errors.exists() else []
    wrong = []
    if may and status:
        wrong.append(f"a writer left with {status}: {lines}")
    if not may and (status != 65 or len(lines) != 1 or str(path) not in lines[0]):
        wrong.append(f"expected one line and exit code 65, found {status} and {lines}")
    log.write_text("\n".join(wrong))
    return 1 if wrong else 0


def _add(path: Path, plan: Plan) -> None:
    store = open_store(path)
    with store.capture(plan.name, provenance={}, views=1) as capture:
        for rows in capture.missing_blocks(0):
            capture.write(rows, plan.logits[0, rows.start : rows.stop])


def _in_case(surroundings: Callable[[], None], function: Callable[..., int], *arguments: Any) -> int:
    surroundings()
    return function(*arguments)


def _as_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _without(*names: str, **others: str) -> Callable[[], None]:
    def surroundings() -> None:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(others)
        tempfile.tempdir = None

    return surroundings


@contextlib.contextmanager
def _places(base: Path, store: Path) -> Iterator[dict[str, tuple[Path, Callable[[], None], bool]]]:
    """By name of the medium: where the store is on it, what a process does to itself, whether it may write."""
    unchanged: Callable[[], None] = lambda: None
    protected = base / "protected"
    shutil.copytree(store, protected)
    for item in [protected, *protected.rglob("*")]:
        item.chmod(0o555 if item.is_dir() else 0o444)
    with contextlib.ExitStack() as stack:
        mounted = stack.enter_context(read_only(store, base / "mounted"))
        file = base / "image"
        make = ["mksquashfs", str(store), str(file), "-quiet"]
        if not shutil.which(make[0]):
            make = ["mke2fs", "-q", "-t", "ext4", "-d", str(store), str(file), "8m"]
        subprocess.run(make, check=True, capture_output=True)
        frozen = stack.enter_context(image(file, base / "frozen"))
        full = stack.enter_context(tmpfs(base / "full", 4096))
        (full / "file").write_bytes(bytes(4096))
        copies = [base / f"copy-{number}" for number in range(3)]
        for copy in copies:
            shutil.copytree(store, copy)
        yield {
            "read-only mount": (mounted, unchanged, False),
            "image": (frozen, unchanged, False),
            "files of another user, 0444": (protected, _as_nobody, False),
            "no HOME": (copies[0], _without("HOME", "XDG_CACHE_HOME"), True),
            "no TMPDIR": (copies[1], _without(TMPDIR=str(base / "nowhere")), True),
            "full TMPDIR": (copies[2], _without(TMPDIR=str(full)), True),
        }


def media(folder: str, mutant: str = "") -> dict[str, Any]:
    """Each medium read and written: how many cases, and every violation."""
    enter_namespace()
    violations: list[str] = []
    cases = 0
    with tempfile.TemporaryDirectory(dir=folder) as name:
        base = Path(name)
        base.chmod(0o755)
        made = stores.make(base / "store")
        expected = made.store.digest
        stores.read_everything(made.path)
        describe(open_store(made.path))
        log = base / "logs"
        log.mkdir()
        log.chmod(0o777)
        with _places(base, made.path) as places:
            for place, (path, surroundings, may_write) in places.items():
                whole = stores.tree_digest(path)
                child = Child(_in_case, surroundings, read, path, log / f"read-{cases}", expected, mutant)
                if child.wait(60):
                    violations.append(f"{place}, reading: {(log / f'read-{cases}').read_text()}")
                if stores.tree_digest(path) != whole:
                    violations.append(f"{place}: reading changed the store")
                cases += 1
                child = Child(_in_case, surroundings, write, path, log / f"write-{cases}", may_write)
                if child.wait(60):
                    violations.append(f"{place}, writing: {(log / f'write-{cases}').read_text()}")
                if not may_write and stores.tree_digest(path) != whole:
                    violations.append(f"{place}: writing changed the store")
                cases += 1
    return {"violations": violations, "cases": cases}


# Clocks


def _shifted(seconds: float) -> Callable[[float], float]:
    return lambda now: now + seconds


def _backwards() -> Callable[[float], float]:
    start = time.time()
    return lambda now: start - 60 * (now - start)


CLOCKS: Final[dict[str, Callable[[int], Callable[[float], float]]]] = {
    "ten years ahead": lambda rank: _shifted(10 * YEAR),
    "ten years late": lambda rank: _shifted(-10 * YEAR),
    "an hour between ranks": lambda rank: _shifted(3600 * rank),
    "backwards": lambda rank: _backwards(),
    "frozen": lambda rank: lambda now: 1e9,
    "at the epoch": lambda rank: _shifted(-time.time()),
    "beyond 2038": lambda rank: lambda now: 2.0**31 + rank,
    "years between ranks": lambda rank: _shifted((-1) ** rank * 10 * YEAR),
}
"""Name -> by rank: what the clock shows, given the true time."""
ZONES: Final = ("UTC", "Pacific/Kiritimati", "America/St_Johns")


def _on_clock(clock: str, zone: str, rank: int, world: int, path: Path, stop_after: int, mutant: str) -> int:
    true, show = time.time, CLOCKS[clock](rank)
    time.time = lambda: show(true())
    time.time_ns = lambda: int(show(true()) * 1e9)
    os.environ["TZ"] = zone
    time.tzset()
    if stop_after:
        Watch("record: durable", stop_after, die).start()
    notes = {"written": time.time()} if mutant else None
    return status_of(log_of(path), work, path, PLAN, (rank, world), notes=notes)


def clocks(count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Stores whose writers have odd clocks and are killed, and go on among files of odd times."""
    violations: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder) as base:
        path, whole = Path(base) / "store", golden(Path(base) / "golden")
        for number in range(count):
            chance, world = random.Random(number), 1 + number % 4
            clock, zone = list(CLOCKS)[number % len(CLOCKS)], ZONES[number // len(CLOCKS) % len(ZONES)]
            found = []
            for stop_after in (2, 0):
                children = [
                    Child(_on_clock, clock, zone, rank, world, path, stop_after, mutant)
                    for rank in range(world)
                ]
                bad = [
                    s for s in (c.wait(60) for c in children) if s not in (0, PART_SEALED, -signal.SIGKILL)
                ]
                if bad:
                    found.append(f"writers left with {bad}: {log_of(path).read_text()}")
                for item in path.rglob("*"):
                    when = time.time() + chance.uniform(-10, 10) * YEAR
                    os.utime(item, (when, when), follow_symlinks=False)
            found += differences(stores.tree(path), whole)
            violations += [f"store {number}, {clock}, {zone}: {line}" for line in found]
            shutil.rmtree(path, ignore_errors=True)
            log_of(path).unlink(missing_ok=True)
    return {"violations": violations, "stores": count}
