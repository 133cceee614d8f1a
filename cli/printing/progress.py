"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere.

Nothing is shown of a task that ends within a second, or with -q. The rate counts from the first report of a
task: a function whose first unit takes long reports 0 units first.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING

from ...storage.progress import Progress, silent
from .encodings import echo

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SHOW_AFTER = 1.0
"""Seconds from the first report of a task until it is shown."""
LINE_EVERY = 5.0
"""Seconds between two lines of a task where stderr is no terminal."""
BAR, NARROW = 40, 100
"""Columns of a bar, and those of a terminal that leave a quarter of it."""


@dataclass
class _Task:
    """A task in progress."""

    started: float
    """Clock at the first report, seconds."""
    first: int
    """Units done by then, perhaps by an earlier run: they do not count in the rate."""
    done: int
    """Units done."""
    shown: float = -inf
    """Clock at its last line, seconds."""


def format_seconds(seconds: float) -> str:
    """Format a duration in its two largest units.

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
    """Format units a second, with three digits at least.

    >>> [format_rate(rate) for rate in (0.0123, 4.56, 51234.5)]
    ['0.0123', '4.56', '51,234']
    """
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


class Lines:
    """A `Progress` as lines of text: one a task every `LINE_EVERY` seconds, and one at its end.

    Any thread may call it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the time from `clock`, seconds."""
        self._clock, self._lock = clock, threading.Lock()
        self._tasks: dict[str, _Task] = {}

    def __call__(self, task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        """Report, as a `logitstore.storage.progress.Progress`."""
        with self._lock:
            now = self._clock()
            state = self._tasks.get(task)
            if state is None or done < state.done:
                state = self._tasks[task] = _Task(now, done, done)
            state.done, seconds = done, now - state.started
            if done >= total:
                del self._tasks[task]
            if seconds < SHOW_AFTER:
                return
            # As in `1,200/60,000 rows, 5,100 rows/s, 12 s left, loss 0.31`.
            figures = [f"{done:,}/{total:,} {unit}"]
            if done > state.first and seconds > 0:
                rate = (done - state.first) / seconds
                figures.append(f"{format_rate(rate)} {unit}/s")
                if done < total:
                    figures.append(f"{format_seconds((total - done) / rate)} left")
            text = ", ".join([*figures, detail] if detail else figures)
            if done >= total:
                self._end(task, text, seconds)
            else:
                self._show(task, text, state, now, done / total)

    def _show(self, name: str, text: str, task: _Task, now: float, share: float) -> None:
        if now - task.shown >= LINE_EVERY:
            task.shown = now
            echo(f"{name}: {text}", err=True)

    def _end(self, name: str, text: str, seconds: float) -> None:
        echo(f"{name}: {text}, took {format_seconds(seconds)}", err=True)

    def close(self) -> None:
        """Do nothing: lines stay."""


class Bars(Lines):
    """A `Progress` as bars at the bottom of a terminal, each removed at the end of its task."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the time from `clock`, seconds."""
        super().__init__(clock)
        self._shown: dict[str, TaskID] = {}

    @cached_property
    def _bars(self) -> "RichProgress":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        # The text is that of the lines: rich's own rate leaves out all reports before the first bar.
        console = Console(stderr=True)
        bar = BarColumn(self._bar_width(console.width))
        columns = TextColumn("{task.description}"), bar, TextColumn("{task.fields[text]}")
        return Progress(*columns, console=console, transient=True, redirect_stdout=False)

    @staticmethod
    def _bar_width(width: int) -> int:
        return BAR if width >= NARROW else BAR // 4

    def _fitted(self, name: str, text: str) -> str:
        """Return a text cut to the room beside name and bar: rich would cut all three, the name first."""
        width, longest = self._bars.console.width, max(map(len, [*self._shown, name]))
        room = max(width - longest - self._bar_width(width) - 3, 1)
        return text if len(text) <= room else text[: room - 1] + "…"

    def _show(self, name: str, text: str, task: _Task, now: float, share: float) -> None:
        text = self._fitted(name, text)
        if name not in self._shown:
            self._shown[name] = self._bars.add_task(name, total=1.0, text=text)
        self._bars.update(self._shown[name], completed=share, text=text)
        self._bars.start()

    def _end(self, name: str, text: str, seconds: float) -> None:
        if name in self._shown:
            self._bars.remove_task(self._shown.pop(name))
            if not self._shown:
                self._bars.stop()

    def close(self) -> None:
        """Remove all bars."""
        if self._shown:
            self._bars.stop()


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Yield a callback that shows progress on stderr until the block is left; with `quiet`, one that does not."""
    if quiet:
        yield silent
        return
    watch = Bars() if sys.stderr.isatty() else Lines()
    try:
        yield watch
    finally:
        watch.close()
