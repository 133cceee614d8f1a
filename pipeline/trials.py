"""Trials of the networks and sets that later stages need, before anything is written or hours are spent.

    teachers       those that are trained here, as their training calls them
    views          of the first rows: each has the form of view 0
    specialists    the generalist, with the outputs of a specialist
    students       each of them, forward and backward, on inputs as its training gets them
    labelled sets  the evaluation set and the validation set, beside the inputs that networks get

A trial ends in the line that the stage itself would raise. All of them are run, and their errors listed together.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import nn

from ..storage.errors import MOST_LISTED, BadDataError, LogitStoreError, with_notes
from ..storage.stream.items import fetch_items, listed_labels, split_item
from .cache.teachers import build_teacher
from .evaluation_set import EvaluationExamples, SetName, warn_if_unlike
from .experiment.document import TeacherMember
from .experiment.tables import Student
from .experiment.training import ValidatedTrain
from .held_out import check_shares
from .runtime.inference import check_model
from .specialists.heads import find_head
from .specialists.training import begin_specialist
from .train.network import begun_network
from .train.todo import StudentSeed, student_seeds
from .trainer.trial import check_backward, check_training
from .transfer import TransferRows
from .views import check_one_form, experiment_views, naming_unlike_views, refuse_mixtures, shown_views
from .workspace import Workspace

LABELLED_SETS: Final[tuple[SetName, ...]] = ("evaluation_set", "validation_set")
StudentTrial = Callable[[StudentSeed, nn.Module, "NDArray[Any]"], object]
"""A function of a student, its network on its device, and one or two of its inputs."""


class Failures:
    """The errors of some trials."""

    def __init__(self) -> None:
        self._errors: list[LogitStoreError] = []

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Keep an error of the block for `raise_any`."""
        try:
            yield
        except LogitStoreError as error:
            self._errors.append(error)

    def raise_any(self) -> None:
        """Raise the first error, with the others as its notes, if there is one."""
        if not self._errors:
            return
        listed, rest = self._errors[:MOST_LISTED], self._errors[MOST_LISTED:]
        more = f"and {len(rest)} more: {', '.join(error.where for error in rest)}" if rest else ""
        raise with_notes(listed, more)


def try_ahead(
    work: Workspace,
    *,
    teachers: Sequence[TeacherMember] = (),
    views: bool = False,
    specialists: bool = False,
    students: bool = False,
    sets: Mapping[SetName, EvaluationExamples | None] = MappingProxyType({}),
    warns: bool = False,
    and_then: StudentTrial | None = None,
) -> None:
    """Run the trials that are asked for, and raise their errors together.

    sets: labelled sets that are compared with the inputs that networks get; None for one that is to be opened. warns: whether a set of another scale is
    warned of. and_then: called with each student whose trial has passed.
    Raises FactoryError, ConfigError or BadDataError; BadLogitsError for a model that fails.
    """
    failures, experiment, rows = Failures(), work.experiment, work.rows
    for member in teachers:
        with failures.noting():
            train = member.teacher.train
            if train is not None:
                check_shares(train, len(rows), f"teacher {member.name!r}")
            module, few = build_teacher(work, member), work.shown_few
            check = check_model if train is None else check_training
            with naming_unlike_views(experiment, rows):
                check(module, few, rows.num_classes, f"teacher {member.name!r}")
                if train is not None:
                    check_backward(module, few, train.precision, f"training teacher {member.name}")
            del module
    if views:
        with failures.noting():
            _try_views(work)
    if specialists:
        with failures.noting():
            _try_specialists(work)
    for run in first_runs(work) if students else ():
        with failures.noting():
            _try_student(work, run, and_then)
    for name, examples in sets.items():
        with failures.noting():
            _try_set(work, name, examples, warns=warns)
    failures.raise_any()


def first_runs(work: Workspace) -> list[StudentSeed]:
    """Return the first seed of each student, in the order of the students."""
    first = dict[str, StudentSeed]()
    for run in student_seeds(work.experiment):
        first.setdefault(run.student.name, run)
    return list(first.values())


def _try_views(work: Workspace) -> None:
    """Make the first, the first augmented and the last view of a few rows. Raises FactoryError for one of another form."""
    make_view, few, cache = (
        experiment_views(work.experiment, work.rows),
        work.rows.a_few,
        work.experiment.cache,
    )
    if make_view is None or cache.augment is None:
        return
    for view in sorted({0, min(cache.augment.first_view, cache.views - 1), cache.views - 1}):
        check_one_form(make_view(few, view, np.arange(len(few))), view, work.shown_few)


def _try_specialists(work: Workspace) -> None:
    """Try the generalist with the outputs of a specialist. Which classes are its own is not known before the clustering."""
    experiment, classes = work.experiment, work.rows.num_classes
    special, cluster = experiment.specialists, experiment.cluster
    if special is None:
        return
    where = f"specialists of {experiment.generalist.name!r}"
    check_shares(special.train, len(work.rows), "specialists")
    network = build_teacher(work, experiment.generalist)
    own = np.arange(1 if cluster is None else max(1, min(cluster.classes_per_cluster, classes - 1)))
    if special.variant == "dustbin":
        find_head(network, classes, where=where, name=special.head)
    if not any(True for _ in network.parameters()):
        return
    few = work.shown_few
    network = begin_specialist(network, special, own, classes, few, where, offset=0.0)
    check_backward(network, few, special.train.precision, where)


def student_few(work: Workspace, student: Student) -> Shaped[np.ndarray, "few ..."]:
    """Return one or two inputs as the training of a student gets them."""
    return work.shown_few if sees_views(work, student) else work.rows.a_few


def sees_views(work: Workspace, student: Student) -> bool:
    """Return whether a student learns from the views of the cache: with hard targets, from the rows where there is one view."""
    return student.targets != "hard" or work.experiment.cache.views > 1


def _try_student(work: Workspace, run: StudentSeed, and_then: StudentTrial | None) -> None:
    """Build the network of a student, and try it forward and backward. Raises as its training would."""
    student, where, classes = run.student, f"student {run.student.name!r}", work.rows.num_classes
    check_shares(student.train, len(work.rows), where, rows=student.rows)
    _check_labels(work, student, where)
    few = student_few(work, student)
    module = _built(work, run).to(work.choose_device())
    check_training(module, few, classes, where)
    check_backward(module, few, student.train.precision, f"training student {run.name}")
    if and_then is not None:
        and_then(run, module, few)


def _check_labels(work: Workspace, student: Student, where: str) -> None:
    """Refuse a student that needs labels where there are none, as far as the set lists them. Raises BadDataError."""
    needed, experiment = student.labels_needed_for, work.experiment
    if needed is None:
        return
    if _is_unlabelled(work.rows):
        raise BadDataError(
            where,
            expected=f"labels, for {needed}",
            found="a store without any",
            remedy="train it on soft targets alone, or label the transfer set",
        )
    if sees_views(work, student) and (table := experiment.cache.augment) is not None:
        views = shown_views(student.views, experiment.cache.views)
        make_view = experiment_views(experiment, work.rows, made_twice=False)
        refuse_mixtures(where, needed, [view for view in views if view >= table.first_view], make_view)


def _is_unlabelled(rows: TransferRows) -> bool:
    listed = listed_labels(rows.dataset)
    if listed is not None:
        return not (listed >= 0).any() and bool((rows.fetch(range(min(16, len(rows))))[1] < 0).all())
    return not split_item(fetch_items(rows.dataset, [0])[0], f"{rows.where}, example 0").is_labelled


def _try_set(work: Workspace, name: SetName, examples: EvaluationExamples | None, *, warns: bool) -> None:
    """Open a labelled set, if it is not, and try the networks on its inputs if these have another form. Raises BadDataError."""
    experiment, shown, classes = work.experiment, work.shown_few, work.rows.num_classes
    examples = examples or EvaluationExamples(experiment, work.rows, name)
    if warns:
        warn_if_unlike(examples, work.rows)
    few = examples.a_few
    if (few.dtype, few.shape[1:]) == (shown.dtype, shown.shape[1:]):
        return
    for network, build in _networks(work, name):
        # One that fails on both is not the fault of the set.
        module = build()
        try:
            check_model(module, shown, classes, network)
        except LogitStoreError:
            continue
        try:
            check_model(module, few, classes, network)
        except LogitStoreError as error:
            raise BadDataError(
                name,
                expected=f"inputs of {shown.dtype} of shape {shown.shape[1:]}, as networks get them of the transfer set",
                found=f"{few.dtype} of shape {few.shape[1:]}, on which {network} fails: {error.found}",
                remedy="prepare both sets alike",
            ) from error


def _networks(work: Workspace, name: SetName) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield the networks that are run on a labelled set: each name, with the function that builds it."""
    experiment = work.experiment

    def is_run(train: ValidatedTrain | None) -> bool:
        scores = name == "evaluation_set"
        return scores or (train is not None and experiment.validation_source(train) == name)

    for member in experiment.teacher_members():
        if is_run(member.teacher.train):
            yield f"teacher {member.name!r}", partial(build_teacher, work, member)
    for run in first_runs(work):
        if is_run(run.student.train):
            yield f"student {run.student.name!r}", partial(_built, work, run)


def _built(work: Workspace, run: StudentSeed) -> nn.Module:
    """Build the network of a student as its training begins."""
    few, rows = student_few(work, run.student), work.rows
    return begun_network(work.experiment, run, few, rows.num_classes, rows.class_names)[0]
