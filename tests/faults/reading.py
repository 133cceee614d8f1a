"""Readers during writes: a row is absent or exact, and stays.

`watch` is called in an interpreter of its own (`children.apart`). Four writers make one capture after another; eight
readers open the store again and again and read rows of sealed captures through the API, and rows of the one that is
being written through zarr-python, as any plain reader would.
"""

import json
import random
import tempfile
import time
import traceback
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from support.children import Child

from logitstore.storage.api import open_store
from logitstore.storage.integrity.verify import CLEAN, verify

from .killing import log_of
from .writers import PART_SEALED, Plan, in_place, status_of, work

PLAN: Final = Plan(rows=92, classes=16, block_rows=8, views=2)
SEALED_READ: Final = 3
"""Captures that are read through the API each time."""


def plan(number: int) -> Plan:
    """Capture number `number`."""
    return replace(PLAN, name=f"c{number}", seed=number)


@cache
def expected(name: str) -> NDArray[np.float32]:
    """What a capture holds: (view, row, class)."""
    raw = plan(int(name[1:])).logits
    return (raw - raw.max(axis=2, keepdims=True)).astype(np.float16).astype(np.float32)


def write(path: Path, share: tuple[int, int], until: float, pause: float, mutant: str) -> int:
    """A writer, in a fork: one capture after another until it is late."""
    if mutant:
        in_place(0.02)
    number = 0
    while time.monotonic() < until:
        status = status_of(
            log_of(path), work, path, plan(number), share, about_to_run=lambda: time.sleep(pause)
        )
        if status not in (0, PART_SEALED):
            return status
        number += 1
    return 0


class Reader:
    """Reads as much as it can see, and remembers what it has seen."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.rows = 0
        """Rows that were read, and compared."""
        self.opened = 0
        """How often the store was opened."""
        self.partial = 0
        """How often a capture was read of which some rows were there and some not."""
        self.wrong: list[str] = []
        self._sealed: set[str] = set()
        self._rows: dict[str, NDArray[np.bool_]] = {}

    def look(self) -> None:
        """Open the store and read."""
        store = open_store(self.path)
        self.opened += 1
        names = list(store.teachers)
        if not self._sealed <= set(names):
            self.wrong.append(f"sealed before, and not now: {self._sealed - set(names)}")
        self._sealed = set(names)
        for name in {*names[-1:], *self.chance.sample(names, min(len(names), SEALED_READ - 1))}:
            for view in range(PLAN.views):
                self._compare(name, view, store.teachers[name].read(slice(None), view), all_there=True)
        for folder in sorted(self.path.glob("teachers/c*")):
            if folder.name not in names:
                self._look_plainly(folder)

    def _look_plainly(self, folder: Path) -> None:
        # First the records, then the rows: what is committed must be there.
        committed = [path.stem.split("-") for path in folder.glob("__logitstore__/commits/*.json")]
        try:
            array = zarr.open_array(folder / "logits", mode="r", zarr_format=3)
        except FileNotFoundError:
            return
        values = np.asarray(array[:]).astype(np.float32)
        there = ~np.isnan(values).all(axis=2)
        before = self._rows.get(folder.name, np.zeros_like(there))
        if (before & ~there).any():
            self.wrong.append(f"{folder.name}: {(before & ~there).sum()} rows were there before")
        self._rows[folder.name] = there
        self.partial += bool(there.any() and not there.all())
        for view, block in committed:
            if not there[int(view), PLAN.rows_of(int(block))].all():
                self.wrong.append(f"{folder.name}: block {block} of view {view} is committed and not there")
        for view in range(PLAN.views):
            self._compare(folder.name, view, values[view], all_there=False)

    def _compare(self, name: str, view: int, values: NDArray[Any], *, all_there: bool) -> None:
        self.rows += len(values)
        exact = (values == expected(name)[view]).all(axis=1)
        good = exact if all_there else exact | np.isnan(values).all(axis=1)
        if not good.all():
            self.wrong.append(f"{name}, view {view}: rows {np.flatnonzero(~good).tolist()} are wrong")


def read(path: Path, seed: int, until: float, pause: float, result: Path) -> int:
    """A reader, in a fork."""
    reader = Reader(path, seed)
    while time.monotonic() < until and len(reader.wrong) < 10:
        try:
            reader.look()
        except Exception as error:  # noqa: BLE001 - whatever a reader sees of others' work is wrong
            reader.wrong.append(f"{type(error).__name__}: {error}" + traceback.format_exc(limit=-2))
        time.sleep(pause * (0.5 + reader.chance.random()))
    found = {key: getattr(reader, key) for key in ("rows", "opened", "partial", "wrong")}
    result.write_text(json.dumps(found))
    return 0


def watch(
    duration: float,
    writers: int,
    readers: int,
    writer_pause: float,
    reader_pause: float,
    folder: str,
    mutant: str = "",
) -> dict[str, Any]:
    """Write and read at once for some seconds: what was read, and every violation."""
    with tempfile.TemporaryDirectory(dir=folder) as base:
        path, results = Path(base) / "store", [Path(base) / f"{number}.json" for number in range(readers)]
        # The readers begin when there is something to open.
        assert status_of(log_of(path), work, path, plan(0)) == 0
        until = time.monotonic() + duration
        writing = [
            Child(write, path, (rank, writers), until, writer_pause, mutant) for rank in range(writers)
        ]
        reading = [
            Child(read, path, number, until, reader_pause, result) for number, result in enumerate(results)
        ]
        statuses = [child.wait(duration + 60) for child in (*writing, *reading)]
        found = [json.loads(result.read_text()) for result in results if result.exists()]
        violations = [f"reader {n}: {line}" for n, one in enumerate(found) for line in one["wrong"]]
        log = log_of(path)
        if any(statuses):
            violations.append(f"processes left with {statuses}: {log.read_text() if log.exists() else ''}")
        report = verify(path, deep=True)
        violations += map(str, report.problems)
        if report.exit_code != CLEAN:
            violations.append(f"at last verify leaves with {report.exit_code}")
        totals = {key: sum(one[key] for one in found) for key in ("rows", "opened", "partial")}
        return {"violations": violations, "captures": len(open_store(path).teachers), **totals}
