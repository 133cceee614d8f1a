"""How do specialists' logits get into a store: who is run, with which correction, and under which name?

The pass is stage one's (`cache`): the same batches, views, checks of the inputs, commits and ranks. What differs are
the columns, of which a capture's `classes` say what they are, and that the correction for the shares of a batch is in
the logits (`dustbin`), which its identity says: whoever combines them adds nothing.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int64

from ...storage.api import Store
from ...storage.errors import BadDataError
from ...storage.progress import Progress, silent
from ..cache.monitor import Quality
from ..cache.notes import capture_notes
from ..cache.stage import ReadyTeacher, capture_teachers, runner_of, try_teachers_out
from ..cache.todo import check_samples, find_teacher
from ..experiment.document import Experiment
from ..models.records import Models
from ..runtime.ranks import ALONE, Ranks
from ..transfer import TransferRows
from ..views import experiment_views
from .dustbin import DUSTBIN
from .todo import (
    KIND,
    SpecialistRun,
    columns_of,
    find_specialist,
    missing_specialist_captures,
    names_of,
    special_rows,
    specialist_capture_identity,
    specialist_encoding,
    specialist_runs,
)
from .training import load_specialist

TOGETHER = 8
"""Specialists that are shown the same inputs: each is a network in memory."""


def capture_specialists(
    experiment: Experiment,
    store: Store,
    models: Models,
    *,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    onto: tuple[Experiment, Store] | None = None,
) -> list[str]:
    """Run every trained specialist that is not captured yet over the transfer set, and seal its logits; their names.

    rows: the transfer set that they are run over, where the caller has it at hand. ranks: processes that do it
    together, all of which call this. onto: another experiment of the same teachers, on another transfer set, and its
    store, in which the generalist is captured: the specialists of `store` are run over that one.
    Raises BadDataError for one that is not trained, SpecMismatch where a capture has its name and is of something else,
    and as `cache`.
    """
    shown, there = (experiment, store) if onto is None else onto
    rows = TransferRows(shown) if rows is None else rows
    check_samples(there, rows)
    _check_generalist(experiment, store, there)
    missing = missing_specialist_captures(experiment, rows, models, store, onto=onto)
    ranks.counts(0)  # all have looked before one of them writes
    own = rows if onto is None else TransferRows(experiment)
    make_view = experiment_views(shown, rows)
    for start in range(0, len(missing), TOGETHER):
        some = missing[start : start + TOGETHER]
        ready = [
            _prepare(experiment, run, store, models, shown, there, rows, own, ranks.device(device))
            for run in some
        ]
        try_teachers_out(shown, rows, ready, make_view, ranks)
        quality = SpecialistQuality({one.name: one.columns for one in ready}, there.num_classes)
        capture_teachers(shown, there, rows, ready, make_view, quality, progress=progress, ranks=ranks)
    return names_of(missing)


class SpecialistQuality(Quality):
    """How good specialists are, each on its own classes and the dustbin."""

    def __init__(self, columns: Mapping[str, Int64[np.ndarray, " columns"]], num_classes: int) -> None:
        """columns: by specialist, the class of each of its logits, -1 the dustbin."""
        super().__init__(list(columns))
        self._column = {name: column_of(classes, num_classes) for name, classes in columns.items()}

    def note(
        self,
        teacher: str,
        at: tuple[int, int],
        logits: Float[np.ndarray, "rows columns"],
        labels: Int64[np.ndarray, " rows"],
    ) -> None:
        """See `Quality`; a label is the column that stands for it. Specialists are not compared with each other."""
        columns = np.where(labels >= 0, self._column[teacher][np.maximum(labels, 0)], -1)
        super().note(teacher, at, logits, columns)

    def compare(self, at: tuple[int, int], predicted: Int64[np.ndarray, " rows"]) -> None:
        """Nothing: the columns of each mean something else."""


def column_of(classes: Int64[np.ndarray, " columns"], num_classes: int) -> Int64[np.ndarray, " classes"]:
    """By class, the column that stands for it: its own, or the dustbin's; -1 where there is neither.

    >>> column_of(np.array([1, 3, -1]), 5).tolist()
    [2, 0, 2, 1, 2]
    """
    dustbin = np.flatnonzero(classes == DUSTBIN)
    found = np.full(num_classes, dustbin[0] if len(dustbin) else -1, np.int64)
    own = np.flatnonzero(classes != DUSTBIN)
    found[classes[own]] = own
    return found


def _check_generalist(experiment: Experiment, store: Store, there: Store) -> None:
    """Refuse to capture beside another generalist than the one that they began from. Raises BadDataError."""
    name = experiment.generalist.name
    weights = [str(one.teachers[name].part.spec.identity["teacher"]["weights"]) for one in (store, there)]
    if weights[0] != weights[1] or store.num_classes != there.num_classes:
        raise BadDataError(
            f"{there.path}: teachers/{name}",
            expected=f"the generalist that the specialists began from, of weights {weights[0]}",
            found=weights[1],
            remedy="cache that one there",
        )


def _prepare(
    experiment: Experiment,
    run: SpecialistRun,
    home: Store,
    models: Models,
    shown: Experiment,
    there: Store,
    rows: TransferRows,
    own: TransferRows,
    device: str | None,
) -> ReadyTeacher:
    """A specialist as it is run. own: the transfer set that it was trained on. Raises BadDataError for one that is not."""
    member, special = experiment.generalist, special_rows(experiment, run, home)
    record = find_specialist(experiment, run, home, models, find_teacher(experiment, member, own, models))
    where = f"specialist {run.name!r}"
    if record is None:
        raise BadDataError(
            where,
            expected=f"its weights, {models.weights_path(KIND, run.name)}",
            found="none that were trained with this experiment and store",
            remedy="run `logitstore train` with them",
        )
    network = load_specialist(experiment, run, special, home.num_classes, models, rows=rows, device=device)
    runner, is_begun = runner_of(shown, network, where, there, run.name)
    return ReadyTeacher(
        run.name,
        runner,
        specialist_capture_identity(
            experiment, run, home, record.weights, onto=there, shown=shown, rows=rows
        ),
        capture_notes(experiment, member, runner.device.type),
        specialist_encoding(experiment, shown),
        columns_of(experiment, special.classes, home.num_classes),
        is_begun,
    )


def specialist_names(experiment: Experiment, store: Store) -> list[str]:
    """The names of all specialists of an experiment."""
    return names_of(specialist_runs(experiment, store))
