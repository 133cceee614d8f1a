"""Processes that make a store at the same moment."""

import time
from pathlib import Path

from logitstore.storage.api import begin_store
from logitstore.storage.errors import NameTaken
from logitstore.storage.integrity.verify import verify

from .children import Child


def begin(where: Path, rows: int, moment: float) -> int:
    """Make a store at a moment, in a fork; note an error beside it."""
    while time.monotonic() < moment:
        pass
    try:
        begin_store(where, num_rows=rows, num_classes=3, block_rows=8, exist_ok=True)
    except NameTaken as error:
        where.with_suffix(f".{rows}-rows").write_text(str(error))
    return 0


def starts(path: str, count: int, rows: list[int]) -> list[list[str]]:
    """Start a process for each number of rows, `count` times; return the errors of each time."""
    found = []
    for number in range(count):
        where = Path(path) / str(number)
        moment = time.monotonic() + 0.05
        children = [Child(begin, where, one, moment) for one in rows]
        assert [child.wait(30) for child in children] == [0] * len(rows)
        assert not verify(where).problems
        found.append([file.read_text() for file in where.parent.glob(f"{number}.*-rows")])
    return found
