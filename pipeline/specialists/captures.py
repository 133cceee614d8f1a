"""Captures of specialists: their logits in the store, with the correction for the shares of their batches.

The pass is that of stage one: the same batches, views, checks of the inputs, commits and ranks. The columns differ, which
a capture's `classes` name; and the correction (`dustbin`) is in the logits, as the identity states, so that the
combination adds nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int64

from ...storage.encodings.feature_logits import FeatureLogits
from ...storage.errors import BadDataError
from ..cache.calibrate import calibrate_teachers
from ..cache.capture import ReadyTeacher
from ..cache.monitor import Quality
from ..cache.stage import agree_on_set, capture_teachers, ready_teacher, try_teachers_out
from ..models.class_names import match_classes
from ..models.records import Record
from ..same_set import check_samples
from ..views import views_onto
from ..workspace import Workspace
from .dustbin import DUSTBIN
from .todo import (
    KIND,
    SpecialistRun,
    columns_of,
    find_specialists,
    missing_captures,
    names_of,
    special_rows,
    specialist_capture_identity,
    specialist_encoding,
    table_of,
)
from .training import load_specialist

TOGETHER = 8
"""Specialists that are shown the same inputs: each is a network in memory."""


def capture_specialists(
    work: Workspace, missing: Sequence[SpecialistRun] | None = None, *, onto: Workspace | None = None
) -> list[str]:
    """Run the trained specialists over the transfer set and seal their logits; their names.

    missing: the specialists to be run, if the caller has found them (`missing_captures`). onto: a workspace of the same
    teachers on another transfer set, in whose store the generalist is captured; the specialists of `work` are then run
    over that one, with its ranks. All ranks call this.
    Raises BadDataError for a specialist that is not trained, SpecMismatch for a capture of its name and another identity,
    and as `cache`.
    """
    onto = onto or work
    check_samples(onto.store, onto.rows)
    _check_generalist(work, onto)
    records = find_specialists(work)
    if missing is None:
        missing = missing_captures(work, records, onto)
    agree_on_set(onto)  # all have looked before one of them writes
    make_view = views_onto(onto.experiment, onto.rows, onto.store)
    for start in range(0, len(missing), TOGETHER):
        ready = [_prepare(work, run, records[run], onto) for run in missing[start : start + TOGETHER]]
        try_teachers_out(onto, ready, make_view)
        ready = calibrate_teachers(onto, ready, make_view)
        quality = SpecialistQuality({one.name: one.columns for one in ready}, onto.store.num_classes)
        capture_teachers(onto, ready, make_view, quality)
    return names_of(missing)


class SpecialistQuality(Quality):
    """Tallies of specialists, each on its own classes and the dustbin."""

    def __init__(self, columns: Mapping[str, Int64[np.ndarray, " columns"]], num_classes: int) -> None:
        """Start from zero. columns: by specialist, the class of each of its logits, -1 the dustbin."""
        super().__init__(list(columns))
        self._column = {name: column_of(classes, num_classes) for name, classes in columns.items()}

    def note(
        self,
        teacher: str,
        at: tuple[int, int],
        logits: Float[np.ndarray, "rows columns"] | FeatureLogits,
        labels: Int64[np.ndarray, " rows"],
        *,
        is_whole: bool = True,
    ) -> None:
        """Count the rows of a block, each label as the column that stands for it."""
        columns = np.where(labels >= 0, self._column[teacher][np.maximum(labels, 0)], -1)
        super().note(teacher, at, logits, columns, is_whole=is_whole)

    def compare(self, at: tuple[int, int], predicted: Int64[np.ndarray, " rows"]) -> None:
        """Do nothing: the columns of specialists cannot be compared."""


def column_of(classes: Int64[np.ndarray, " columns"], num_classes: int) -> Int64[np.ndarray, " classes"]:
    """Return, by class, the column that stands for it: its own, or the dustbin's; -1 if there is neither.

    >>> column_of(np.array([1, 3, -1]), 5).tolist()
    [2, 0, 2, 1, 2]
    """
    dustbin, own = np.flatnonzero(classes == DUSTBIN), np.flatnonzero(classes != DUSTBIN)
    columns = np.full(num_classes, dustbin[0] if len(dustbin) else -1, np.int64)
    columns[classes[own]] = own
    return columns


def _check_generalist(work: Workspace, onto: Workspace) -> None:
    """Refuse a generalist other than the one that the specialists began from, and other classes. Raises BadDataError."""
    name = work.experiment.generalist.name
    began, there = (
        str(one.store.teachers[name].part.spec.identity["teacher"]["weights"]) for one in (work, onto)
    )
    if began != there or work.store.num_classes != onto.store.num_classes:
        raise BadDataError(
            f"{onto.store.path}: teachers/{name}",
            expected=f"the generalist that the specialists began from, of weights {began}",
            found=there,
            remedy="cache that one there",
        )
    where, ours = str(onto.store.path), work.store.class_names
    if match_classes(onto.store.class_names, ours, len(ours), where) is not None:
        raise BadDataError(
            f"{where}: classes",
            expected=f"those of the specialists' own store in their order: {', '.join(ours[:8])}",
            found=", ".join(onto.store.class_names[:8]),
            remedy="name the classes of the transfer set there in this order",
        )


def _prepare(work: Workspace, run: SpecialistRun, record: Record | None, onto: Workspace) -> ReadyTeacher:
    """Make a trained specialist ready to run. Raises BadDataError for one that is not trained."""
    where = f"specialist {run.name!r}"
    if record is None:
        raise BadDataError(
            where,
            expected=f"its weights, {work.models.weights_path(KIND, run.name)}",
            found="none that were trained with this experiment and store",
            remedy="run `logitstore train` with them",
        )
    special = special_rows(work, run)
    return ready_teacher(
        onto,
        work.experiment.generalist,
        load_specialist(work, run, special, record.weights),
        where=where,
        name=run.name,
        identity=specialist_capture_identity(work, run, record.weights, onto),
        encoding=specialist_encoding(work, onto),
        columns=columns_of(table_of(work.experiment), special.classes, work.store.num_classes),
    )
