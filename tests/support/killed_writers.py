"""Writers of one capture that are killed at a put, resumed, and run two at a time, for tests/storage and tests/pipeline.

`killed`, `together` and `compressions` are called in an interpreter of its own (`children.apart`), and each writer is a fork.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

from logitstore.storage.api import Store, open_store
from logitstore.storage.backends.local import NewObject
from logitstore.storage.errors import LogitStoreError
from support import stores
from support.children import Child, Countdown
from support.stores import Made, Teacher

TEACHER = Teacher(views=2, augmented=True)
ROWS, BLOCK_ROWS, CLASSES = 61, 8, 5


def empty_store(path: Path) -> Made:
    """Make a store with samples and no teachers."""
    return stores.make(path, rows=ROWS, block_rows=BLOCK_ROWS, teachers={})


def write(store: Store) -> None:
    """Write the missing blocks of the capture "wide", and seal it."""
    logits = stores.some_logits(2, ROWS, CLASSES)
    stores.write_capture(store, "wide", logits, TEACHER, stores.some_inputs(ROWS))


def _dying(at: int | None, after: bool = False, pause: float = 0.0) -> None:
    """Make this process die at a put, and wait `pause` seconds before each, so that another writer comes in between."""
    puts = Countdown(at)
    genuine = puts.counted(NewObject.publish, after=after)

    def publish(self: NewObject) -> bool:
        time.sleep(pause)
        return bool(genuine(self))

    NewObject.publish = publish  # type: ignore[method-assign]
    os.fsync = lambda handle: None  # a killed process takes nothing of the page cache with it


def writer(path: Path, at: int | None = None, after: bool = False, pause: float = 0.0) -> None:
    """Write the capture in this process, and die at a put."""
    _dying(at, after, pause)
    write(open_store(path))


def killed(folder: str, kills: int, most: int) -> list[dict[str, Any]]:
    """Kill writers at a random put of the next `most`, over as few captures (`store-0.zarr` …) as needed.

    Returns:
        For each kill: the exit status, and how a reader is refused: the name of the error and `found`; None if the
        capture had not yet begun.
    """
    chance = random.Random(4)
    reports: list[dict[str, Any]] = []
    number = 0
    while len(reports) < kills:
        path = empty_store(Path(folder) / f"store-{number}.zarr").path
        number += 1
        while len(reports) < kills:
            status = Child(writer, path, chance.randint(1, most), chance.random() < 0.5).wait()
            if status == 0:
                break
            reports.append({"status": status, "refusal": _refusal(path)})
    return reports


def _refusal(path: Path) -> list[str] | None:
    if not (path / "teachers/wide/__logitstore__/spec.json").exists():
        return None
    try:
        _ = open_store(path).teachers["wide"]
    except LogitStoreError as error:
        return [type(error).__name__, str(error.found)]
    return ["none", "a sealed part"]


def together(path: str, kill_at: int | None = None) -> list[int]:
    """Write one capture in two processes, the first of them killed before put `kill_at`; return the exit statuses."""
    empty_store(Path(path))
    children = [
        Child(writer, Path(path), kill_at, False, 0.001),
        Child(writer, Path(path), None, False, 0.0015),
    ]
    return [child.wait() for child in children]


def compressions(path: str, puts: list[int]) -> list[int]:
    """Compress the capture "half" to "small", killed after so many more puts each time; return the exit statuses."""
    from logitstore.pipeline.compress.stage import compress  # not for the tests of storage

    def compressing(at: int) -> None:
        _dying(at, after=True)
        compress(open_store(Path(path)), "half", "small", {"max_kl": 1e-3})

    return [Child(compressing, at).wait() for at in puts]
