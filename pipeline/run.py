"""How does a whole experiment run, stage by stage, doing only what is not done?

    OUT/store.zarr         the store
    OUT/models/            trained teachers and students, each with a record of what it was made from
    OUT/evaluation.json    the scores

Each stage asks the agenda first. Torch is imported when a stage has something to do, so that an experiment
in which everything is done says so at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..storage.api import Store
from ..storage.format.constants import SAMPLES
from ..storage.progress import Progress, silent
from .cache.todo import check_samples, missing_captures, open_existing
from .cluster.errors_inside import ErrorsInside
from .cluster.todo import check_cluster, needs_clustering
from .evaluate.scores import Scores, TableRow, errors_in_sets, subjects, table
from .experiment.document import Experiment
from .specialists.stage import SpecialistsPending, make_specialists, pending_specialists
from .train.todo import missing_students, shown_capture, student_seeds
from .transfer import Examples, TransferRows
from .workspace import Workspace


@dataclass(frozen=True)
class Pending:
    """What is still to be done."""

    captures: Sequence[str]
    """Teachers to be run (and trained, where they are not)."""
    samples: bool
    """Whether samples that are sealed have lost blocks, which are to be written again."""
    clustering: str | None
    """The clustering to be made."""
    students: Sequence[str]
    """Students to be trained, one a seed."""
    scores: Sequence[str]
    """Models to be evaluated, as far as they are there; those that are still to be made come on top."""
    specialists: SpecialistsPending = field(default_factory=SpecialistsPending)
    """Specialists to be trained, captured and combined."""

    def __bool__(self) -> bool:
        return bool(
            self.captures
            or self.samples
            or self.clustering
            or self.specialists
            or self.students
            or self.scores
        )

    def lines(self) -> list[str]:
        """A line for each thing to do."""
        lines = ["write samples again"] if self.samples else []
        lines += [f"capture teacher {name}" for name in self.captures]
        lines += [f"make clustering {self.clustering}"] if self.clustering else []
        lines += self.specialists.lines()
        lines += [f"train student {name}" for name in self.students]
        return lines + [f"evaluate {name}" for name in self.scores]


@dataclass(frozen=True)
class RunReport:
    """What a run did, and where things stand."""

    done: Sequence[str]
    """A line for each thing that was done now; empty where everything was done already."""
    store: Store
    """The store."""
    table: Sequence[TableRow]
    """Teachers, ensembles and students on the evaluation set; empty where there is none."""
    errors_inside: ErrorsInside | None = None
    """Errors of the clustered teachers on the evaluation set; None where there is none, or no clustering."""


def _evaluation_set(experiment: Experiment) -> Examples | None:
    table = experiment.evaluation_set
    return None if table is None else Examples(table, experiment.base, "evaluation_set")


def pending(
    experiment: Experiment, workspace: Workspace, rows: TransferRows, examples: Examples | None = None
) -> Pending:
    """What of an experiment is still to be done. Changes nothing.

    examples: the evaluation set, where the caller has it at hand.
    Raises SpecMismatch where something in the store has a name of the experiment and is something else, ConfigError for
    a clustering that so many classes cannot have.
    """
    store = open_existing(workspace.store)
    if store is not None:
        check_samples(store, rows)
    captures = [m.name for m in missing_captures(experiment, rows, workspace.models, store)]
    if store is None or not store.root.has(SAMPLES):
        store = None
    samples = store is not None and not store.root.is_whole(SAMPLES)
    cluster = experiment.cluster
    clustering = None
    if cluster is not None and (
        store is None
        or any(name not in store.teachers for name in cluster.shares)
        or needs_clustering(store, cluster)
    ):
        check_cluster(cluster, rows.num_classes)
        clustering = cluster.part_name
    specialists = pending_specialists(experiment, rows, workspace.models, store)
    students = [run.name for run in missing_students(experiment, workspace.models, store)]
    return Pending(
        captures,
        samples,
        clustering,
        students,
        _unscored(experiment, workspace, rows, store, examples),
        specialists,
    )


def _unscored(
    experiment: Experiment,
    workspace: Workspace,
    rows: TransferRows,
    store: Store | None,
    examples: Examples | None,
) -> list[str]:
    if store is None:
        return []
    if any(
        name not in store.teachers
        for run in student_seeds(experiment)
        for name in shown_capture(experiment, run.student)
    ):
        return []
    examples = examples or _evaluation_set(experiment)
    if examples is None:
        return []
    known = Scores(workspace.scores)
    found = subjects(experiment, rows, workspace.models, store, examples)
    return [subject.run or subject.name for subject in found if known.get(subject) is None]


def _check_ahead(
    experiment: Experiment, rows: TransferRows, todo: Pending, examples: Examples | None
) -> None:
    """Let what would fail in a later stage fail now, before anything is written.

    Raises FactoryError, ConfigError or BadDataError; BadLogitsError for a model that fails.
    """
    from .cache.teachers import build_teacher
    from .evaluate.stage import check_evaluation
    from .models.build import build_model
    from .runtime.inference import check_model
    from .specialists.heads import find_head
    from .specialists.todo import table_of

    captured = [member for member in experiment.teacher_members() if member.name in todo.captures]
    # Teachers that come with weights are tried by stage one, which writes nothing before; but it trains.
    if any(member.teacher.train is not None for member in captured):
        for member in captured:
            module = build_teacher(experiment, member, rows)
            check_model(module, rows.a_few, rows.num_classes, f"teacher {member.name!r}")
    if todo.specialists.train and table_of(experiment).variant == "dustbin":
        generalist = experiment.generalist
        module = build_teacher(experiment, generalist, rows)
        where = f"specialists of {generalist.name!r}"
        find_head(module, rows.num_classes, where=where, name=table_of(experiment).head)
    if todo.students:
        for student in experiment.students:
            module = build_model(
                student, experiment, input_shape=rows.first.shape, num_classes=rows.num_classes
            )
            check_model(module, rows.a_few, rows.num_classes, f"student {student.name!r}")
    if examples is not None:
        check_evaluation(examples, rows.num_classes)


def run(
    experiment: Experiment, out: Path, *, device: str | None = None, progress: Progress = silent
) -> RunReport:
    """Do every stage of an experiment that is not done, and score every model.

    out: the folder that everything is kept in. Raises whatever a stage raises; running it again goes on.
    """
    workspace = Workspace(out)
    rows = TransferRows(experiment)
    examples = _evaluation_set(experiment)
    todo = pending(experiment, workspace, rows, examples)
    store = open_existing(workspace.store)
    models = workspace.models
    common: dict[str, Any] = {"device": device, "progress": progress}
    if todo:
        _check_ahead(experiment, rows, todo, examples)
    if todo.captures or todo.samples or store is None:
        from .cache.stage import cache

        cache(experiment, workspace.store, models, rows=rows, **common)
        store = open_existing(workspace.store)
    assert store is not None  # it was there, or stage one has made it
    if todo.clustering and experiment.cluster is not None:
        from .cluster.stage import cluster_store

        cluster_store(store, experiment.cluster, progress=progress)
    if todo.specialists:
        make_specialists(experiment, store, models, rows=rows, **common)
    if todo.students:
        from .train.stage import train_students

        train_students(experiment, store, models, **common)
    if examples is None:
        return RunReport(todo.lines(), store, ())
    if todo:
        from .evaluate.stage import evaluate

        evaluate(experiment, store, models, workspace.scores, rows=rows, examples=examples, **common)
    found = list(subjects(experiment, rows, models, store, examples))
    scores = Scores(workspace.scores)
    return RunReport(todo.lines(), store, table(found, scores), errors_in_sets(found, scores))
