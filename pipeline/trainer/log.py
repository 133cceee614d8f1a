"""The log of a training: JSON lines beside the weights.

    {"epoch":1,"event":"step","loss":1.94,"lr":0.001,"rows":2560,"rows_per_second":51234.5,"seconds":0.1,"step":20,"waiting":0.02}

    {"accuracy":0.912,"best":true,"epoch":1,"event":"validation","kl":0.042,"nll":0.31,"rows":500,"seconds":2.1,"step":118}

`step`: steps so far, this one included. `epoch`: from 1, as in every text. `rows`: shown so far, on all ranks. `loss`, `lr`: of this step;
in the line of an epoch (`"event":"epoch"`) the loss is the mean over its steps. `rows_per_second`, and `waiting`, the
share of the time spent waiting for data: since the last line of the same event, or since the training began or resumed.
`seconds`: of training so far, without interruptions. `kl`: mean KL from the student to its soft targets, nats, where it
has any; that of an epoch is the mean over every eighth step. The line of a validation follows that of its epoch.

The values of a line also go to outlets, such as TensorBoard's files: `train/loss`, `epoch/loss`, `validation/accuracy` …

A training that resumes from a checkpoint removes the later lines, so that no step has two.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from ...storage.backends.posix import read_plain, replace_file
from ...storage.errors import LogitStoreError
from ...storage.format.documents import canonical_json, parse_json

_ITEM = TypeVar("_ITEM")


class Clock:
    """The clock of a training: its time, and the share spent waiting for data."""

    def __init__(self) -> None:
        """Begin now."""
        self.seconds_before = 0.0
        """Seconds of training before the interruption."""
        self._started = time.perf_counter()
        self._waited, self._rows = 0.0, 0
        # Time, seconds waited and rows at the last report of each event.
        self._reported = dict.fromkeys(("step", "epoch"), (self._started, 0.0, 0))

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.seconds_before + time.perf_counter() - self._started

    def waiting_for(self, items: Iterable[_ITEM]) -> Iterator[_ITEM]:
        """Yield the items, measuring the wait for each."""
        iterator = iter(items)
        while True:
            began = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - began
            yield item

    def count(self, rows: int) -> None:
        """Count rows of a step."""
        self._rows += rows

    def lap(self, event: str) -> tuple[float, float]:
        """Return rows/s and the share of time spent waiting since the last "step" or "epoch" report."""
        since, waited, rows = self._reported[event]
        now = time.perf_counter()
        self._reported[event] = (now, self._waited, self._rows)
        passed = max(now - since, 1e-9)
        return (self._rows - rows) / passed, min(1.0, (self._waited - waited) / passed)


Outlet = Callable[[int, dict[str, float]], object]
"""A function of a step and its values, by name."""
_GROUPS: Final = {"step": "train", "epoch": "epoch", "validation": "validation"}
"""First part of the names that an outlet gets, by event."""


class TrainingLog:
    """The log file of a training, created with its first line, and further outlets of its values."""

    def __init__(self, path: Path | None, outlets: Sequence[Outlet] = ()) -> None:
        """Set the file, or None for no file. outlets: called with every line."""
        self._path, self._outlets = path, outlets
        self._kept = b""
        self._file: TextIO | None = None

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def begin(self, step: int, epoch: int) -> None:
        """Keep the lines up to `step` and before the end of `epoch`, which counts from 0; later lines are removed."""
        self._kept = (
            b"".join(line for line in self._lines() if _is_before(line, step, epoch)) if step else b""
        )

    def write(self, **values: Any) -> None:
        """Add a line, and hand its values to the outlets."""
        group = _GROUPS[values["event"]]
        named = {
            f"{group}/{key}": float(value)
            for key, value in values.items()
            if key not in ("event", "step", "epoch") and type(value) in (int, float)
        }
        for outlet in self._outlets:
            outlet(values["step"], {"epoch": float(values["epoch"]), **named})
        if self._path is None:
            return
        if self._file is None:
            replace_file(self._path, self._kept)
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(canonical_json(values).decode())
        self._file.flush()

    def _lines(self) -> list[bytes]:
        try:
            return [] if self._path is None else read_plain(self._path).splitlines(keepends=True)
        except FileNotFoundError:
            return []


def _is_before(line: bytes, step: int, epoch: int) -> bool:
    """Return whether a line was written before a checkpoint; a torn line was not.

    The lines of an epoch and of its validation follow the checkpoint of its last step, and are written again.
    """
    try:
        values = parse_json(line, "a line")
        of_epoch = values["event"] in ("epoch", "validation")
        return int(values["epoch"]) <= epoch if of_epoch else int(values["step"]) <= step
    except (LogitStoreError, KeyError, TypeError, ValueError):
        return False
