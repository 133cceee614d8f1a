"""How does a library function say how far it is, without knowing who listens?

Everything long takes a `progress` callback and calls it after each unit of work. Only the command
line draws bars; a library user passes a function, or nothing.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """A callback that is told how much of a task is done."""

    def __call__(self, task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        """Take note that `done` of `total` units of `task` are done.

        task: what is going on, one short phrase; the same phrase on every call of the same task.
        done, total: units, cumulative; the first call may have done > 0 where work was resumed.
        unit: what is counted, in the plural ("rows", "blocks", "batches").
        detail: a few words that change as it goes (a loss, a file name); may be empty.
        """


def silent(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
    """A `Progress` that nobody listens to."""
