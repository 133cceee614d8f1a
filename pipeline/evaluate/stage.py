"""Evaluation of an experiment's models, each once for its weights; ensembles from their members' logits."""

import logging
from collections.abc import Mapping
from typing import Literal, cast

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from ...storage.backends.posix import remove_leftovers
from ...storage.parts.reader import sets_of
from ...storage.sharing.card_file import refresh_card
from ..cache.teachers import load_teacher
from ..cache.todo import find_teacher, missing_captures
from ..cluster.errors_inside import DRAWS, ErrorsInside, errors_inside
from ..combine.experts import Experts, active_specialists
from ..combine.solve import combine_rows
from ..evaluation_set import EvaluationExamples, warn_if_unlike, warn_of_first_class
from ..experiment.tables import Cluster, Combine
from ..models.networks import count_parameters
from ..models.records import check_loaded
from ..models.weights import load_weights
from ..runtime.inference import run_model
from ..same_set import check_repeatable, check_samples
from ..specialists.todo import columns_of, special_rows, specialist_runs, table_of
from ..specialists.todo import find_todo as find_specialists_todo
from ..specialists.training import load_specialist
from ..train.network import new_network
from ..train.todo import missing_students, student_seeds
from ..workspace import Workspace
from .metrics import ensemble_logits, evaluate_logits
from .scores import EVALUATION_BATCH, Score, Scores, Subject, TableRow, scores_of_captures, subjects, table

log = logging.getLogger(__name__)
Logits = Float[np.ndarray, "rows classes"]


def evaluate(work: Workspace, examples: EvaluationExamples | None = None) -> list[TableRow]:
    """Score every model that is there and has no score yet; the whole table. Models that are not there are named in a warning.

    examples: the evaluation set, if the caller has opened it. Raises as `left_out`.
    """
    if (store := work.find_store()) is not None:
        check_samples(store, work.rows)
        if absent := left_out(work):
            log.warning(
                "not in the table, as they are not made: %s; `logitstore run` makes them", ", ".join(absent)
            )
    if examples is None:
        examples = EvaluationExamples(work.experiment, work.rows)
    remove_leftovers(work.scores)
    scores, found = Scores(work.scores), list(subjects(work, examples))
    missing = scores.missing(found)
    if missing:
        check_repeatable(examples)
        warn_if_unlike(examples, work.rows)
        scorer = _Scorer(work, examples)
        for number, subject in enumerate(missing):
            scores.put(subject, scorer.score(subject))
            work.progress("evaluating", number + 1, len(missing), "models", subject.name)
    if store is not None:
        refresh_card(store.root, scores_of_captures(store, found, scores), made=bool(missing))
    return table(found, scores)


def left_out(work: Workspace) -> list[str]:
    """List the models of an experiment that are not made, or were made otherwise, so that no score can show them.

    Raises SpecMismatch if something in the store has the name of one and another identity.
    """
    missing_captures(work)  # for its comparisons: a teacher that is not captured can be scored
    specialists, members = find_specialists_todo(work), work.experiment.teacher_members()
    lines = [f"teacher {member.name}" for member in members if find_teacher(work, member) is None]
    lines += [f"specialist {run.name}" for run in specialists.train]
    return lines + [f"student {run.name}" for run in missing_students(work)]


class _Scorer:
    """Runs models over the evaluation set, each teacher at most once."""

    def __init__(self, work: Workspace, examples: EvaluationExamples) -> None:
        self._work = work
        self._inputs, self._labels = examples.fetch(range(len(examples)))
        warn_of_first_class(examples, self._labels)
        self._teachers: dict[str, tuple[Logits, int]] = {}

    def score(self, subject: Subject) -> Score | ErrorsInside:
        combine, cluster = self._work.experiment.combine, self._work.experiment.cluster
        if subject.kind == "sets" and cluster is not None:
            return self._errors_inside(subject, cluster)
        if subject.kind == "teacher":
            logits, parameters = self._teacher(subject, subject.name)
        elif subject.kind == "ensemble":
            logits, parameters = self._ensemble(subject)
        elif subject.kind == "combination" and combine is not None:
            logits, parameters = self._combination(subject, combine)
        else:
            logits, parameters = self._student(subject)
        metrics = evaluate_logits(np.asarray(logits), self._labels)
        return Score(metrics.rows, metrics.errors, metrics.nll, metrics.calibration_error, parameters)

    def _errors_inside(self, subject: Subject, cluster: Cluster) -> ErrorsInside:
        """Count the errors of every teacher whose predictions were clustered, and those that a set holds."""
        predictions = [self._teacher(subject, name)[0].argmax(axis=1) for name in subject.members]
        store = self._work.store
        return errors_inside(
            sets_of(store.clustering(subject.name), store.num_classes),
            np.tile(self._labels, len(predictions)),
            np.concatenate(predictions),
            num_classes=store.num_classes,
            disjoint=cluster.disjoint,
            draws=DRAWS,
            seed=cluster.seed,
        )

    def _teacher(self, subject: Subject, name: str) -> tuple[Logits, int]:
        if name not in self._teachers:
            member = next(m for m in self._work.experiment.teacher_members() if m.name == name)
            module = load_teacher(self._work, member, subject.networks[name])
            logits = run_model(module, self._inputs, EVALUATION_BATCH, where=f"teacher {name!r}")
            self._teachers[name] = logits, count_parameters(module)
        return self._teachers[name]

    def _ensemble(self, subject: Subject) -> tuple[Logits, int]:
        logits = {name: self._teacher(subject, name)[0] for name in subject.members}
        mean = cast(Literal["arithmetic", "geometric"], subject.mean)
        mixed = ensemble_logits(logits, subject.members, mean)
        return mixed, sum(self._teacher(subject, name)[1] for name in subject.members)

    def _combination(self, subject: Subject, combine: Combine) -> tuple[Logits, int]:
        generalist, own = self._teacher(subject, self._work.experiment.generalist.name)
        logits, parameters = combination_logits(
            self._work, combine, self._inputs, generalist, subject.networks
        )
        return logits, own + parameters

    def _student(self, subject: Subject) -> tuple[Logits, int]:
        work = self._work
        run = next(run for run in student_seeds(work.experiment) if run.name == subject.run)
        module = new_network(work.experiment, run, self._inputs[:2], work.rows.num_classes)
        loaded = load_weights(module, work.models.weights_path("students", subject.run))
        check_loaded(f"student {subject.run!r}", subject.networks[subject.run], loaded)
        module.to(work.choose_device()).eval()
        logits = run_model(module, self._inputs, EVALUATION_BATCH, where=f"student {subject.run!r}")
        return logits, count_parameters(module)


def combination_logits(
    work: Workspace,
    combine: Combine,
    inputs: NDArray[np.generic],
    generalist: Logits,
    weights: Mapping[str, str],
) -> tuple[Float32[np.ndarray, "rows classes"], int]:
    """Return ln q of each example, and the parameters of all specialists together, which must be trained.

    inputs: (rows, …) as the transfer set gives them. generalist: its logits of them. weights: digest of those of each
    specialist. Raises BadDataError where others are loaded.
    """
    experiment, num_classes = work.experiment, work.store.num_classes
    special = [(run, special_rows(work, run)) for run in specialist_runs(experiment, work.store)]
    columns = [columns_of(table_of(experiment), own.classes, num_classes) for _, own in special]
    experts = Experts.of(columns, num_classes)
    logits = generalist.astype(np.float32)
    active, logits_of_each, parameters = active_specialists(logits, experts, combine.top), [], 0
    for number, (run, own) in enumerate(special):
        network = load_specialist(work, run, own, weights[run.name])
        parameters += count_parameters(network)
        asked, given = np.flatnonzero(active[:, number]), np.zeros((0, len(columns[number])), np.float32)
        if len(asked):
            where = f"specialist {run.name!r}"
            given = np.asarray(run_model(network, inputs[asked], EVALUATION_BATCH, where=where), np.float32)
        logits_of_each.append(given)
    combined = combine_rows(logits, experts, active, logits_of_each, direction=combine.direction, out=logits)
    return np.asarray(combined, np.float32), parameters
