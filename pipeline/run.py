"""A whole experiment, stage by stage, of which only the missing parts are made.

Each stage finds its todo first. Torch is imported when there is something to do, so that a finished experiment takes no
time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..storage.api import Store
from ..storage.backends.posix import check_writable, remove_leftovers
from .cache import todo as caching
from .cluster.errors_inside import ErrorsInside
from .cluster.todo import missing_clustering
from .evaluate.scores import Scores, Subject, TableRow, errors_in_sets, subjects, table
from .evaluation_set import EvaluationExamples, SetName
from .experiment.document import Experiment
from .experiment.tables import Cluster
from .experiment.training import Train
from .specialists import todo as specialising
from .train.todo import StudentSeed, check_compressed, missing_students, student_seeds
from .workspace import Workspace

if TYPE_CHECKING:
    from .cache.monitor import Tally


@dataclass(frozen=True)
class Pending:
    """The work that an experiment still needs, by stage."""

    cache: caching.CacheTodo
    """Samples and captures."""
    cluster: Cluster | None
    """The clustering."""
    specialists: specialising.SpecialistsTodo
    """Specialists, their captures and their combination."""
    students: Sequence[StudentSeed]
    """Students, one a seed."""
    scores: Sequence[Subject]
    """Models to be evaluated that are there already."""

    def __bool__(self) -> bool:
        return bool(self.lines())

    def lines(self) -> list[str]:
        """List what is to be done, a line each."""
        lines = self.cache.lines()
        lines += [f"make clustering {self.cluster.part_name}"] if self.cluster is not None else []
        lines += self.specialists.lines()
        lines += [f"train student {run.name}" for run in self.students]
        return lines + [f"evaluate {subject.run or subject.name}" for subject in self.scores]


@dataclass(frozen=True)
class RunReport:
    """The work of a run, and its results."""

    done: Sequence[str]
    """A line for each thing that was done now; empty if nothing was to be done."""
    figures: Mapping[str, str]
    """By line of `done`: the accuracy of a capture and the validation of a training, in words; only those that have some."""
    store: Store
    """The store."""
    compared: str
    """What of the transfer set was compared with the store beforehand, in words; empty if there was no store."""
    table: Sequence[TableRow] = field(default=())
    """Teachers, ensembles and students on the evaluation set; empty without one."""
    errors_inside: ErrorsInside | None = None
    """Errors of the clustered teachers on the evaluation set; None without one, or without a clustering."""


def _evaluation_set(work: Workspace) -> EvaluationExamples | None:
    return None if work.experiment.evaluation_set is None else EvaluationExamples(work.experiment, work.rows)


def pending(work: Workspace, examples: EvaluationExamples | None = None) -> Pending:
    """Find the missing parts of an experiment, those that follow from other missing ones included. Changes nothing.

    examples: the evaluation set, if the caller has opened it.
    Raises SpecMismatch if something in the store has a name of the experiment and another identity, ConfigError for a
    clustering that does not fit the number of classes, PartNotFound for a compressed capture that a student names and that
    is not there.
    """
    check_compressed(work)
    cache = caching.find_todo(work)
    cluster, specialists, students = (
        missing_clustering(work),
        specialising.find_todo(work),
        missing_students(work),
    )
    scores: list[Subject] = []
    if work.find_store() is not None and (examples := examples or _evaluation_set(work)) is not None:
        scores = Scores(work.scores).missing(subjects(work, examples))
    return Pending(cache, cluster, specialists, students, scores)


def _check_ahead(work: Workspace, todo: Pending, examples: EvaluationExamples | None) -> None:
    """Try each network that a later stage needs, and what its training needs besides, before anything is written.

    examples: the evaluation set, if there is one.
    Raises FactoryError, ConfigError or BadDataError; BadLogitsError for a model that fails.
    """
    from .trainer.tensorboard import check_tensorboard
    from .trials import try_ahead

    experiment = work.experiment
    special = experiment.specialists if todo.specialists.train else None
    trains: list[Train | None] = [member.teacher.train for member in todo.cache.captures]
    trains += [run.student.train for run in todo.students]
    trains += [] if special is None else [special.train]
    if any(train is not None and train.log == "tensorboard" for train in trains):
        check_tensorboard()
    sets: dict[SetName, EvaluationExamples | None] = {}
    if examples is not None:
        sets["evaluation_set"] = examples
    if trains and experiment.validation_set is not None:
        sets["validation_set"] = None
    # Stage one tries teachers with weights before it writes; but it trains the others first.
    trains_teachers = any(member.teacher.train is not None for member in todo.cache.captures)
    try_ahead(
        work,
        teachers=todo.cache.captures if trains_teachers else (),
        specialists=special is not None,
        students=bool(todo.students),
        sets=sets,
    )


def _tidy(work: Workspace) -> None:
    """Remove what a killed run left beside the models of this experiment and its scores."""
    names = [("teachers", member.name) for member in work.experiment.teacher_members()]
    names += [
        (specialising.KIND, one.name)
        for one in specialising.specialist_runs(work.experiment, work.find_store())
    ]
    names += [("students", seed.name) for seed in student_seeds(work.experiment)]
    for kind, name in names:
        work.models.tidy(kind, name)
    remove_leftovers(work.scores)


def run(experiment: Experiment, out: PurePath, models: Path | None = None, **settings: Any) -> RunReport:
    """Do every stage of an experiment that is not done, and score every model.

    out: the folder of the store, the models and the scores; or an `Address`, for the store alone. models: folder of the models,
    and with an address of the scores. settings: `device`, `progress`, `reuse` and `access` of the workspace. Raises what a stage
    raises; called again, it resumes.
    """
    work = Workspace.of_folder(experiment, out, models, **settings)
    examples = _evaluation_set(work)
    todo = pending(work, examples)
    _tidy(work)
    if not todo:
        return _report(work, todo, examples, {})
    work.check_writable(store=bool(todo.cache or todo.cluster or todo.specialists))
    check_writable(work.scores.parent)
    _check_ahead(work, todo, examples)
    specialists, students = todo.specialists, todo.students
    tallies: Mapping[str, Tally] = {}
    if todo.cache:
        from .cache.stage import cache

        tallies = cache(work, todo.cache).quality
    if todo.cluster is not None:
        from .cluster.stage import cluster_store

        cluster_store(work.store, todo.cluster, progress=work.progress)
    # A store that was lost comes back with the same seals: what follows from it may be there.
    if specialists and (todo.cache or todo.cluster):
        specialists = specialising.find_todo(work)
    if specialists:
        from .specialists.stage import make_specialists

        make_specialists(work, specialists)
    if students and (todo.cache or todo.cluster or specialists):
        students = missing_students(work)
    if students:
        from .train.stage import train_students

        train_students(work, students)
    if examples is not None:
        from .evaluate.stage import evaluate

        evaluate(work, examples)
    done = replace(todo, specialists=specialists, students=students)
    return _report(work, done, examples, _figures(work, done, tallies))


def _figures(work: Workspace, done: Pending, tallies: Mapping[str, "Tally"]) -> dict[str, str]:
    """Return the figures that the stages print of their work, by its line in `Pending.lines`. tallies: of the captures."""
    from .trainer.validation import in_words

    def validated(kind: str, name: str) -> str:
        told = in_words(work.models.recorded_facts(kind, name))
        return f"validated: {told}" if told else ""

    figures = {
        f"capture teacher {member.name}": "; ".join(
            filter(
                None,
                (
                    tallies[member.name].described if member.name in tallies else "",
                    validated("teachers", member.name) if member.teacher.train is not None else "",
                ),
            )
        )
        for member in done.cache.captures
    }
    figures |= {
        f"train specialist {one.name}": validated(specialising.KIND, one.name)
        for one in done.specialists.train
    }
    figures |= {f"train student {one.name}": validated("students", one.name) for one in done.students}
    return {line: told for line, told in figures.items() if told}


def _report(
    work: Workspace, todo: Pending, examples: EvaluationExamples | None, figures: Mapping[str, str]
) -> RunReport:
    done, compared = todo.lines(), todo.cache.compared
    if examples is None:
        return RunReport(done, figures, work.store, compared)
    found, scores = list(subjects(work, examples)), Scores(work.scores)
    return RunReport(done, figures, work.store, compared, table(found, scores), errors_in_sets(found, scores))
