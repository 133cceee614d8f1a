"""Progress callbacks.

Long library functions take a `progress` callback and call it after each unit of work. The command line draws bars; a
library user passes a function, or nothing.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """A callback that is called as a task progresses."""

    def __call__(self, task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        """Note that `done` of `total` units of `task` are done.

        task: one short phrase, the same on every call of a task.
        done, total: units, cumulative; the first call has done > 0 if work is resumed.
        unit: the unit's name in the plural ("rows", "blocks", "batches").
        detail: a few words that change (a loss, a file name); may be empty.
        """


def silent(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
    """Ignore progress: the default callback."""
