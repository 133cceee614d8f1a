"""One of several real writers, the state that it must leave, and ways to make a writer wrong.

A writer makes the store, or finds it, takes its share of the blocks of a capture and then all missing ones, and reports
each acknowledged block. `MUTANTS` are writers without one of the guards of the protocol: a trial must find each wrong.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from support import stores

from logitstore.storage.api import Store, create_store
from logitstore.storage.errors import LogitStoreError
from logitstore.storage.parts.part_writer import PartWriter

from .points import kind_of_name, path_of

Place = tuple[int, int]
"""(view, block)."""
PART_SEALED: Final = 3
"""What a writer of these tests leaves with where another has sealed the capture meanwhile."""


@dataclass(frozen=True)
class Plan:
    """A capture to write."""

    rows: int = 44
    classes: int = 3
    block_rows: int = 8
    views: int = 2
    name: str = "wide"
    encoding: "str | Mapping[str, Any]" = "float16"
    seed: int = 0
    key: int = 77
    """The rows: their digests are its multiples."""

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """(view, row, class)."""
        return stores.some_logits(self.views, self.rows, self.classes, seed=self.seed)

    @property
    def blocks(self) -> int:
        """Blocks of a view."""
        return -(-self.rows // self.block_rows)

    @property
    def calibration(self) -> NDArray[np.float32] | None:
        """Calibration rows of a transform; None for another encoding."""
        return stores.calibration(self.encoding, self.logits)

    def rows_of(self, block: int) -> range:
        """The rows of a block."""
        return range(self.rows)[block * self.block_rows : (block + 1) * self.block_rows]

    def part(self, path: Path) -> Path:
        """Where the capture is in a store."""
        return path / "teachers" / self.name


PLAN: Final = Plan()


def begin(path: Path, plan: Plan = PLAN) -> Store:
    """Make the store, or find it, with its samples sealed."""
    return create_store(
        path,
        num_classes=plan.classes,
        labels=np.arange(plan.rows) % plan.classes,
        digests=np.arange(plan.rows, dtype=np.uint64) * plan.key,
        block_rows=plan.block_rows,
        exist_ok=True,
    )


def work(
    path: Path,
    plan: Plan = PLAN,
    share: tuple[int, int] = (0, 1),
    acknowledged: Callable[[int, int], None] = lambda view, block: None,
    *,
    early: bool = False,
    about_to_run: Callable[[], None] = lambda: None,
    notes: Mapping[str, Any] | None = None,
    calibration: NDArray[np.float32] | None = None,
) -> None:
    """Write what is missing, the blocks r, r + W, … of share = (r, W) first, and seal what is complete.

    about_to_run: called before each block, where a teacher would run. early: acknowledge before the block is written,
    which is wrong. calibration: other rows than those of the plan.
    """
    rank, world = share
    with begin(path, plan).capture(
        plan.name,
        provenance={"teacher": {"name": plan.name}},
        views=plan.views,
        encoding=plan.encoding,
        notes=notes,
        calibration=plan.calibration if calibration is None else calibration,
    ) as capture:
        missing = [
            (view, rows.start // plan.block_rows)
            for view in range(plan.views)
            for rows in capture.missing_blocks(view)
        ]
        for view, block in sorted(missing, key=lambda place: sum(place) % world != rank):
            rows = plan.rows_of(block)
            about_to_run()
            if early:
                acknowledged(view, block)
                time.sleep(0.001)
            capture.write(rows, plan.logits[view, rows.start : rows.stop], view=view)
            if not early:
                acknowledged(view, block)


def status_of(log: Path, function: Callable[..., None], *arguments: Any, **others: Any) -> int:
    """Run a writer; the exit code of its error, which goes to a file, a line each.

    `PART_SEALED` for one that ended because another had sealed its capture, of which it says so in the log.
    """
    said = _Lines()
    logger = logging.getLogger("logitstore")
    logger.addHandler(said)
    try:
        function(*arguments, **others)
    except LogitStoreError as error:
        with log.open("a") as file:
            file.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    finally:
        logger.removeHandler(said)
    sealed = [line for line in said.lines if "another writer sealed" in line]
    if sealed:
        with log.open("a") as file:
            file.writelines(f"{line}\n" for line in sealed)
        return PART_SEALED
    return 0


class _Lines(logging.Handler):
    """Keeps what is logged from warnings on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def shards_of(part: Path, view: int, block: int, arrays: Collection[str]) -> dict[str, Path]:
    """Where the shards of a block of a capture are, by array."""
    flat = ("peak", "seen", "refine")  # arrays of one number a row
    return {array: part / array / f"c.{view}.{block}{'' if array in flat else '.0'}" for array in arrays}


def record_of(part: Path, view: int, block: int) -> Path:
    """Where the commit record of a block is."""
    return part / "__logitstore__" / "commits" / f"{view}-{block}.json"


def broken_commits(part: Path, places: Collection[Place] | None = None) -> list[str]:
    """What is wrong with committed blocks: all whose record is there when `places` is None, else these.

    Read here without any of logitstore: a record must parse, and each shard must have the sha256 that it names.
    """
    if places is None:
        names = [path.stem for path in (part / "__logitstore__" / "commits").glob("*.json")]
        places = {(int(view), int(block)) for view, _, block in (name.partition("-") for name in names)}
    wrong = []
    for view, block in sorted(places):
        try:
            record = json.loads(record_of(part, view, block).read_bytes())
            shards = shards_of(part, view, block, list(record["objects"]))
            for array, shard in shards.items():
                if hashlib.sha256(shard.read_bytes()).hexdigest() != record["objects"][array]["sha256"]:
                    wrong.append(f"block {block} of view {view}: {array} is torn")
        except (OSError, ValueError, KeyError) as error:
            wrong.append(f"block {block} of view {view}: {type(error).__name__}: {error}")
    return wrong


def stamps(part: Path, places: Collection[Place]) -> dict[str, tuple[int, int]]:
    """Which file each object of some blocks is (inode, time of its bytes): another one was written again."""
    found = {}
    for view, block in places:
        arrays = [item.name for item in part.iterdir() if item.is_dir() and item.name != "__logitstore__"]
        for path in (record_of(part, view, block), *shards_of(part, view, block, arrays).values()):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found[path.relative_to(part).as_posix()] = (status.st_ino, status.st_mtime_ns)
    return found


def acks(pipe: int) -> set[Place]:
    """The blocks that were acknowledged on a pipe; reads what is there."""
    os.set_blocking(pipe, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(pipe, 65536):
            data += piece
    return {(data[i], data[i + 1]) for i in range(0, len(data), 2)}


# Writers that are wrong


def in_place(pause: float = 0.002) -> None:
    """Objects are written under their own name: whoever looks meanwhile, or after a kill, finds half of one."""
    link = os.link

    def copy(source: Any, target: Any, **others: Any) -> None:
        final = path_of(target, others.get("dst_dir_fd"))
        if "/teachers/" not in final:
            link(source, target, **others)
            return
        data = Path(path_of(source, others.get("src_dir_fd"))).read_bytes()
        handle = os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            os.write(handle, data[: len(data) // 2])
            time.sleep(pause)
            os.write(handle, data[len(data) // 2 :])
        finally:
            os.close(handle)

    os.link = copy


def record_first() -> None:
    """The commit record gets its name before the shards that it speaks of get theirs."""
    link = os.link
    held: list[tuple[str, str]] = []

    def late(source: Any, target: Any, **others: Any) -> None:
        final = path_of(target, others.get("dst_dir_fd"))
        kind = kind_of_name(final)
        if kind == "data" and "/teachers/" in final and "/__logitstore__/tmp/" not in final:
            if os.path.exists(final):
                raise FileExistsError(final)
            hidden = (
                f"{final.partition('/teachers/')[0]}.held-{os.getpid()}-{len(held)}-{time.monotonic_ns()}"
            )
            link(path_of(source, others.get("src_dir_fd")), hidden)
            held.append((hidden, final))
            return
        try:
            link(source, target, **others)
        finally:
            if kind == "record" and held:
                time.sleep(0.002)
                for hidden, name in held:
                    with contextlib.suppress(FileExistsError):
                        link(hidden, name)
                    os.unlink(hidden)
                held.clear()

    os.link = late


def overwriting() -> None:
    """A name that is taken is taken over."""

    def replace(source: Any, target: Any, **others: Any) -> None:
        data = path_of(source, others.get("src_dir_fd"))
        copy = f"{data}.copy"
        Path(copy).write_bytes(Path(data).read_bytes())
        os.replace(copy, path_of(target, others.get("dst_dir_fd")))

    os.link = replace


def existing_is_done() -> None:
    """Resuming takes a shard that is there for a block that is committed."""

    def has_block(self: PartWriter, view: int, block: int) -> bool:
        return any((self.folder.path / name / f"c.{view}.{block}.0").exists() for name in ("logits", "codes"))

    PartWriter.has_block = has_block  # type: ignore[method-assign]


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    "in place instead of staged": in_place,
    "record before data": record_first,
    "what exists is done": existing_is_done,
    "acknowledged before the record": lambda: None,
}
"""Name -> what makes the writers of this process so. The last one is the `early` of `work`."""
EARLY: Final = "acknowledged before the record"


def golden(path: Path, plan: Plan = PLAN) -> dict[str, bytes]:
    """Every byte of the store that one writer makes that nothing interrupts."""
    work(path, plan)
    return stores.tree(path)


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> Iterator[str]:
    """The keys in which two stores differ."""
    for key in sorted(found.keys() | expected.keys()):
        if key not in found:
            yield f"{key} is missing"
        elif key not in expected:
            yield f"{key} should not be there"
        elif found[key] != expected[key]:
            yield f"{key} has other bytes"
