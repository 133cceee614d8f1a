"""How does somebody who waits see how far it is?

1. `show_progress` gives the callback that library functions take, and clears up afterwards.
2. A task that has lasted a second gets a bar on stderr with rows/s and time left; it vanishes when it ends.
3. Where stderr is no terminal, it gets a line every few seconds and one at its end.

Nothing is drawn for what is over in a second, or with -q. Time counts from the first report of a task: a
function whose first unit takes long reports 0 units first.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import click

from ...storage.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import TaskID


SHOW_AFTER = 1.0
"""Seconds that a task has lasted before anything is shown of it."""


LINE_EVERY = 5.0
"""Seconds between two lines where there is no terminal."""


@dataclass
class _Task:
    """What is known of one task."""

    name: str
    """The phrase that it was reported under."""
    started: float
    """Clock when it was first heard of, seconds."""
    first: int
    """Units that were done by then, perhaps by an earlier run: they say nothing about the speed."""
    done: int
    """Units that are done."""
    total: int
    """Units in all."""
    unit: str
    """What is counted."""
    detail: str
    """A few words that change."""
    now: float
    """Clock at the last report, seconds."""

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return self.now - self.started

    @property
    def rate(self) -> float:
        """Units a second since the first report; 0 while unknown."""
        return (self.done - self.first) / self.seconds if self.seconds > 0 else 0.0

    @property
    def figures(self) -> str:
        """`1,200/60,000 rows, 5,100 rows/s, 12 s left, loss 0.31`."""
        parts = [f"{self.done:,}/{self.total:,} {self.unit}"]
        if self.rate > 0:
            parts.append(f"{format_rate(self.rate)} {self.unit}/s")
            if self.done < self.total:
                parts.append(f"{format_seconds((self.total - self.done) / self.rate)} left")
        if self.detail:
            parts.append(self.detail)
        return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """A time to the precision that somebody who waits cares for.

    >>> [format_seconds(seconds) for seconds in (0.2, 12.3, 75.0, 3600.0, 7384.0)]
    ['0 s', '12 s', '1 min 15 s', '1 h 0 min', '2 h 3 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_rate(rate: float) -> str:
    """Units a second, to three digits at least where it is slow.

    >>> [format_rate(rate) for rate in (0.0123, 4.56, 51234.5)]
    ['0.0123', '4.56', '51,234']
    """
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


class Display(Protocol):
    """How the state of a task is shown."""

    def show(self, task: _Task) -> None:
        """Show a task that goes on, or shows it anew."""

    def end(self, task: _Task) -> None:
        """Take away a task that has ended."""

    def close(self) -> None:
        """Take away everything."""


class Lines:
    """Lines of text, not too many."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def show(self, task: _Task) -> None:
        """Write a line if the last one is some seconds old."""
        if task.now - self._last.get(task.name, task.started - LINE_EVERY) >= LINE_EVERY:
            self._last[task.name] = task.now
            click.echo(f"{task.name}: {task.figures}", err=True)

    def end(self, task: _Task) -> None:
        """Write the last line."""
        self._last.pop(task.name, None)
        click.echo(f"{task.name}: {task.figures}, took {format_seconds(task.seconds)}", err=True)

    def close(self) -> None:
        """Nothing is left to take away."""


class Bars:
    """Bars at the bottom of a terminal, which vanish when they are full."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        self._shown: dict[str, TaskID] = {}

    def show(self, task: _Task) -> None:
        """Draw or move a bar."""
        if task.name not in self._shown:
            self._shown[task.name] = self._bars.add_task(task.name, total=task.total, figures=task.figures)
        self._bars.update(self._shown[task.name], completed=task.done, total=task.total, figures=task.figures)
        self._bars.start()

    def end(self, task: _Task) -> None:
        """Remove a bar."""
        if task.name in self._shown:
            self._bars.remove_task(self._shown.pop(task.name))
            if not self._shown:
                self._bars.stop()

    def close(self) -> None:
        """Remove all bars."""
        self._shown.clear()
        self._bars.stop()


class Watch:
    """A `Progress` that shows what it is told, once it is worth showing. May be called by any thread."""

    def __init__(self, display: Callable[[], Display], clock: Callable[[], float] = time.monotonic) -> None:
        """Show by what `display` makes, which is not called for tasks that are short."""
        self._make = display
        self._display: Display | None = None
        self._clock = clock
        self._tasks: dict[str, _Task] = {}
        self._lock = threading.Lock()

    def __call__(self, task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        """See `logitstore.storage.progress.Progress`."""
        with self._lock:
            now = self._clock()
            state = self._tasks.get(task)
            if state is None or done < state.done:
                state = self._tasks[task] = _Task(task, now, done, done, total, unit, detail, now)
            state.done, state.total, state.unit, state.detail, state.now = done, total, unit, detail, now
            ended = done >= total
            if ended:
                del self._tasks[task]
            if state.seconds < SHOW_AFTER:
                return
            if self._display is None:
                self._display = self._make()
            if ended:
                self._display.end(state)
            else:
                self._display.show(state)

    def close(self) -> None:
        """Take away what is shown."""
        with self._lock:
            if self._display is not None:
                self._display.close()


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A callback that shows progress on stderr until the block is left.

    quiet: show nothing; normally `settings().quiet`.
    """
    if quiet:
        yield silent
        return
    watch = Watch(Bars if sys.stderr.isatty() else Lines)
    try:
        yield watch
    finally:
        watch.close()
