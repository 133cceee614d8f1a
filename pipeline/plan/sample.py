"""Which logits does a plan look at, and how fast does a teacher give them?

Of each teacher, in this order:

    "teacher"   it runs on the sample: its weights are there
    "capture"   the store has a sealed capture of it, in float16 or float32: its rows are the sample
    "model"     logits that are drawn, not computed: Gaussian, with five peaks a row. Nobody's teacher

A network is timed in any case, for its speed does not depend on what it has learned. Nothing is written.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import nn

from ...storage.api import Capture, Store
from ...storage.encodings.encoding import check_finite
from ...storage.encodings.half import FloatEncoding
from ...storage.format.grid import Grid
from ...storage.identity import as_json
from ...storage.parts.footprint import SampleRows
from ...storage.stream.inputs import Augment
from ..cache.teachers import load_teacher
from ..cache.todo import capture_identity, find_teacher
from ..experiment.document import Experiment, TeacherMember
from ..models.build import build_model
from ..models.loaders import with_stable_names
from ..runtime.inference import check_classes, run_model
from ..transfer import TransferRows
from ..workspace import Workspace

Source = Literal["teacher", "capture", "model"]


SPREAD: Final = 2.5
"""Standard deviation of the model's logits."""


PEAKS: Final = 5
"""Classes of a row that the model takes for probable (fewer where two fall together)."""


HEIGHT: Final = 8.0
"""What their logits have more."""


MODEL: Final = (
    f"Gaussian logits of standard deviation {SPREAD:g} with {PEAKS} peaks of +{HEIGHT:g} a row, seed 0"
)
"""The model in words."""


_TIMED: Final = 3
"""Batches that are timed, at least, after one that is not."""


@dataclass(frozen=True)
class TeacherSample:
    """Logits of one teacher, or of a model of it."""

    source: Source
    """Where they are from."""
    logits: Float32[np.ndarray, "rows classes"]
    """Of the rows of the sample, in its order; any additive constant per row."""
    is_rounded: bool
    """Whether they come from a float16 capture, so that what float16 loses cannot be seen in them."""
    rows_per_second: float
    """Rows that the network alone computes in a second, in batches of the experiment; without reading inputs."""


def sample_teacher(
    work: Workspace, member: TeacherMember, sample: SampleRows, grid: Grid, make_view: Augment | None
) -> TeacherSample:
    """The logits of a teacher on a sample, and its speed.

    grid: its blocks are those of the store, which batches do not straddle. make_view: makes a view of rows' inputs.
    Raises BadLogitsError where the network fails or gives what cannot be stored, BadDataError for weights that are
    not there or do not fit.
    """
    experiment, rows, progress, where = work.experiment, work.rows, work.progress, f"teacher {member.name!r}"
    runs = Runner(experiment, rows, make_view, where)
    record = find_teacher(work, member)
    if record is not None:
        module = load_teacher(work, member)
        logits = np.empty((len(sample), rows.num_classes), np.float32)
        task, done = f"running {where} on a sample", 0
        progress(task, done, len(sample))
        for view, batch in _batches(sample, grid, experiment.cache.batch_size):
            values = runs.batch(module, batch, view)
            check_classes(values, rows.num_classes, where)
            check_finite(values, int(batch[0]), f"{where}, view {view}")
            logits[done : done + len(batch)] = values
            done += len(batch)
            progress(task, done, len(sample))
        return TeacherSample("teacher", logits, False, runs.rows_per_second(module))
    with torch.random.fork_rng(devices=[]):
        untrained = build_model(
            member.teacher, experiment, input_shape=rows.first.shape, num_classes=rows.num_classes
        )
    speed = runs.rows_per_second(untrained.to(work.choose_device()).eval())
    capture = usable_capture(experiment, member, rows, work.find_store())
    if capture is None:
        return TeacherSample("model", modelled_logits(len(sample), rows.num_classes), False, speed)
    return TeacherSample("capture", _read(capture, sample), capture.encoding.kind == "float16", speed)


def usable_capture(
    experiment: Experiment, member: TeacherMember, rows: TransferRows, store: Store | None
) -> Capture | None:
    """The sealed capture of a teacher that this experiment would make but for its encoding; None where there is none.

    One by an error budget or of the k largest logits is not used: what it has lost would look like a small teacher.
    Its weights are not compared: there are none to compare with.
    """
    if store is None or member.name not in store.teachers:
        return None
    capture = store.teachers[member.name]
    theirs = with_stable_names(capture.part.spec.identity)
    ours = as_json(capture_identity(experiment, member, rows, "")) | {"views": experiment.cache.views}
    made_by = theirs.get("teacher")
    if isinstance(made_by, dict):
        theirs["teacher"] = {**made_by, "weights": ""}
    theirs.pop("encoding", None)
    is_same = ours == theirs and capture.shape[2] == rows.num_classes
    return capture if is_same and isinstance(capture.encoding, FloatEncoding) else None


def modelled_logits(num_rows: int, num_classes: int) -> Float32[np.ndarray, "rows classes"]:
    """Logits of no teacher: see `MODEL`.

    >>> float(modelled_logits(1000, 100).max()) > 10
    True
    """
    random = np.random.default_rng(0)
    logits = random.normal(0.0, SPREAD, (num_rows, num_classes)).astype(np.float32)
    for _ in range(PEAKS):
        logits[np.arange(num_rows), random.integers(0, num_classes, num_rows)] += np.float32(HEIGHT)
    return logits


class Runner:
    """Runs networks on rows of the transfer set, batch by batch, and takes the time."""

    def __init__(
        self, experiment: Experiment, rows: TransferRows, make_view: Augment | None, where: str
    ) -> None:
        """where: who is run, for messages."""
        self._experiment = experiment
        self._rows = rows
        self._make_view = make_view
        self._where = where
        self._whole = min(experiment.cache.batch_size, len(rows))
        self._seconds: list[float] = []  # of whole batches, the first of which is warming up
        self._last: Shaped[np.ndarray, "rows ..."] | None = None  # inputs of such a one

    def batch(
        self, module: nn.Module, batch: Int64[np.ndarray, " rows"], view: int
    ) -> Float32[np.ndarray, "rows classes"]:
        """Logits of some rows of a view, at most a batch of them."""
        inputs, _ = self._rows.fetch(self._rows.source[batch].tolist())
        shown = inputs if self._make_view is None else self._make_view(inputs, view, batch)
        return self._run(module, shown)

    def rows_per_second(self, module: nn.Module) -> float:
        """The speed of a network: the median of whole batches, as many as are needed beside those that were run."""
        if self._last is None:
            self._last = self._rows.rows(range(self._whole))[0]
        while len(self._seconds) <= _TIMED:
            self._run(module, self._last)
        return self._whole / statistics.median(self._seconds[1:])

    def _run(
        self, module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."]
    ) -> Float32[np.ndarray, "rows classes"]:
        settings = self._experiment.cache
        started = time.perf_counter()
        # The logits are copied to the host, which waits for the device.
        logits = run_model(
            module, inputs, settings.batch_size, where=self._where, precision=settings.precision
        )
        if len(inputs) == self._whole:
            self._seconds.append(time.perf_counter() - started)
            self._last = inputs
        return logits


def _batches(
    sample: SampleRows, grid: Grid, batch_size: int
) -> Iterator[tuple[int, Int64[np.ndarray, " rows"]]]:
    """The rows of a sample in the batches of a teacher: (view, rows).

    A sample that is whole is cut as stage one cuts it, so that a network whose logits depend on their batch gives the
    very same; another one is in as few batches as there can be.
    """
    for view in np.unique(sample.views).tolist():
        rows = sample.rows[sample.views == view]
        pieces = [rows]
        if sample.is_whole:
            pieces = [rows[list(grid.rows(block))] for block in range(grid.num_blocks)]
        for piece in pieces:
            for start in range(0, len(piece), batch_size):
                yield view, piece[start : start + batch_size]


def _read(capture: Capture, sample: SampleRows) -> Float32[np.ndarray, "rows classes"]:
    """The rows of a sample as a capture has them."""
    views = np.unique(sample.views).tolist()
    return np.concatenate([capture.read(sample.rows[sample.views == view], view) for view in views])
