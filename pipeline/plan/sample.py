"""Logits that a plan is made from, and the speed of each teacher.

Of each teacher, the first that is to be had:

    "teacher"   it runs on the sample: its weights are there
    "capture"   the rows of its sealed capture in the store, in float16 or float32
    "model"     Gaussian logits with five peaks a row: no teacher's

A network is timed in any case: its speed does not depend on its weights. Nothing is written.
"""

import statistics
import time
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn

from ...storage.api import Capture, Store
from ...storage.encodings.feature_logits import FeatureLogits, LinearHead, check_finite_rows, dense
from ...storage.encodings.half import FloatEncoding
from ...storage.identity import as_json
from ...storage.stream.inputs import Augment
from ..cache.teachers import build_teacher, load_without_head
from ..cache.todo import agreed, capture_identity, find_teacher
from ..experiment.document import Experiment, TeacherMember
from ..models.loaders import with_stable_names
from ..runtime.inference import Runner, check_classes
from ..transfer import TransferRows
from ..workspace import Workspace

Origin = Literal["teacher", "capture", "model"]
SPREAD: Final = 2.5
"""Standard deviation of the model's logits."""
PEAKS: Final = 5
"""Peaks of a row of the model; fewer classes where two coincide."""
HEIGHT: Final = 8.0
"""Height of a peak, in nats."""
MODEL: Final = (
    f"Gaussian logits of standard deviation {SPREAD:g} with {PEAKS} peaks of +{HEIGHT:g} a row, seed 0"
)
"""The model in words."""
_TIMED: Final = 3
"""Batches that are timed, after one that warms up."""


@dataclass(frozen=True)
class SampleRows:
    """The (view, row) pairs of a sample, ascending."""

    views: Int64[np.ndarray, " rows"]
    """View of each row."""
    rows: Int64[np.ndarray, " rows"]
    """Row of the store."""

    def __len__(self) -> int:
        return len(self.rows)


def spread_rows(num_rows: int, views: int, most: int) -> SampleRows:
    """Return at most `most` of the rows of all views, evenly spread.

    >>> spread = spread_rows(6, 2, 4)
    >>> spread.views.tolist(), spread.rows.tolist()
    ([0, 0, 1, 1], [1, 4, 1, 4])
    """
    total = num_rows * views
    count = min(most, total)
    chosen = (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)
    return SampleRows(chosen // num_rows, chosen % num_rows)


@dataclass(frozen=True)
class TeacherSample:
    """Logits of one teacher, or of the model."""

    source: Origin
    """Origin of the logits."""
    logits: Float32[np.ndarray, "rows classes"]
    """Logits of the sample, in its order; any additive constant per row."""
    is_rounded: bool
    """Whether they come from a float16 capture, so that the error of float16 cannot be seen in them."""
    rows_per_second: float
    """Rows a second of the network alone, in batches of the experiment, without reading inputs."""
    features: FeatureLogits | None = None
    """The same rows as features, of a teacher whose head is taken off."""


def sample_teacher(
    work: Workspace, member: TeacherMember, sample: SampleRows, make_view: Augment | None
) -> TeacherSample:
    """Return the logits of a teacher on a sample, and its speed. make_view: makes a view of rows' inputs.

    Raises BadLogitsError where the network fails or its logits cannot be stored, BadDataError for weights that are
    missing or do not fit.
    """
    experiment, rows, progress, where = work.experiment, work.rows, work.progress, f"teacher {member.name!r}"
    settings = experiment.cache

    def runner_of(module: nn.Module, head: LinearHead | None = None) -> Runner:
        precision, size = settings.precision, settings.batch_size
        return Runner(module, where=where, batch_size=size, precision=precision, head=head)

    if find_teacher(work, member) is not None:
        module, _, head = load_without_head(work, member)
        runner = runner_of(module, head)
        width = runner.width(rows.num_classes)
        logits = np.empty((len(sample), width), np.float32)
        task, done = f"running {where} on a sample", 0
        progress(task, done, len(sample))
        for view in np.unique(sample.views).tolist():
            of_view = sample.rows[sample.views == view]
            for batch in np.split(of_view, range(settings.batch_size, len(of_view), settings.batch_size)):
                inputs, _ = rows.fetch(rows.source[batch].tolist())
                values = runner.logits(inputs if make_view is None else make_view(inputs, view, batch))
                check_classes(values, width, where)
                first = int(
                    np.argmin(np.isfinite(values).all(axis=1))
                )  # rows of a batch need not be neighbours
                check_finite_rows(runner.rows(values[first:]), int(batch[first]), f"{where}, view {view}")
                logits[done : done + len(batch)] = values
                done += len(batch)
                progress(task, done, len(sample))
        features = None if head is None else FeatureLogits(logits, head)
        found = TeacherSample("teacher", dense(runner.rows(logits)), False, 0.0, features)
    else:
        with torch.random.fork_rng(devices=[]):
            module = build_teacher(work, member)
        module = module.to(work.choose_device()).eval()
        runner = runner_of(module)
        capture = usable_capture(experiment, member, rows, work.find_store())
        if capture is None:
            found = TeacherSample("model", modelled_logits(len(sample), rows.num_classes), False, 0.0)
        else:
            views = np.unique(sample.views).tolist()
            logits = np.concatenate([capture.read(sample.rows[sample.views == view], view) for view in views])
            found = TeacherSample("capture", logits, capture.encoding.kind == "float16", 0.0)
    inputs, _ = rows.rows(range(min(settings.batch_size, len(rows))))
    if make_view is not None:
        inputs = make_view(inputs, 0, np.arange(len(inputs), dtype=np.int64))
    seconds = []
    for _ in range(1 + _TIMED):
        started = time.perf_counter()
        runner.logits(inputs)  # copies the logits to the host, which waits for the device
        seconds.append(time.perf_counter() - started)
    speed = len(inputs) / statistics.median(seconds[1:])
    return replace(found, rows_per_second=speed)


def usable_capture(
    experiment: Experiment, member: TeacherMember, rows: TransferRows, store: Store | None
) -> Capture | None:
    """Return the sealed capture of a teacher that this experiment would make but for its encoding; None without one.

    An encoded capture is not used: its losses would look like a smaller teacher. Its weights are not compared: there are
    none to compare with.
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
    is_same = (
        agreed(ours, theirs) == theirs and capture.has_all_classes and capture.shape[2] == rows.num_classes
    )
    return capture if is_same and isinstance(capture.encoding, FloatEncoding) else None


def modelled_logits(num_rows: int, num_classes: int) -> Float32[np.ndarray, "rows classes"]:
    """Return logits of no teacher: see `MODEL`.

    >>> float(modelled_logits(1000, 100).max()) > 10
    True
    """
    random = np.random.default_rng(0)
    logits = random.normal(0.0, SPREAD, (num_rows, num_classes)).astype(np.float32)
    for _ in range(PEAKS):
        logits[np.arange(num_rows), random.integers(0, num_classes, num_rows)] += np.float32(HEIGHT)
    return logits
