"""How are models scored on the evaluation set? Each once for its weights; ensembles from their members' logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..storage.api import Store
from ..storage.errors import BadDataError, ConfigError
from ..storage.inputs import fetch_items
from ..storage.progress import Progress, silent
from .device import choose_device
from .experiment import Experiment
from .inference import run_model
from .metrics import ensemble_logits, evaluate_logits
from .models import count_parameters
from .records import Models
from .results import Score, Scores, Subject, TableRow, subjects, table
from .teachers import build_model, load_teacher
from .transfer import Examples, TransferRows
from .weights import load_weights

EVALUATION_BATCH = 512
"""Examples that a model is given at a time."""


def evaluation_examples(experiment: Experiment, num_classes: int) -> Examples:
    """The evaluation set.

    Raises ConfigError where the experiment has none, BadDataError where it has more classes than `num_classes`, or
    no labels.
    """
    if experiment.evaluation_set is None:
        raise ConfigError(
            "evaluation_set",
            expected="the labelled examples that models are evaluated on",
            found="no such table",
            remedy="add [evaluation_set] to the experiment",
        )
    return check_evaluation(
        Examples(experiment.evaluation_set, experiment.base, "evaluation_set"), num_classes
    )


def check_evaluation(examples: Examples, num_classes: int) -> Examples:
    """The evaluation set itself. Raises BadDataError where it has more classes than `num_classes`, or no labels."""
    names = examples.class_names
    if names is not None and len(names) > num_classes:
        raise BadDataError(
            "evaluation_set",
            expected=f"the {num_classes} classes of the transfer set",
            found=f"{len(names)}",
            remedy="evaluate on examples of the same classes",
        )
    (first,) = fetch_items(examples.dataset, [0])
    if not isinstance(first, tuple) or getattr(examples.dataset, "labels", ()) is None:
        raise BadDataError(
            "evaluation_set",
            expected="labelled examples, (input, label)",
            found="a set without labels",
            remedy="evaluate on a labelled set, or drop [evaluation_set]",
        )
    return examples


def evaluate(
    experiment: Experiment,
    store: Store,
    models: Models,
    scores: Path,
    *,
    rows: TransferRows | None = None,
    examples: Examples | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> list[TableRow]:
    """Score every model that is there and has no score yet; the whole table.

    rows, examples: the transfer set and the evaluation set, where the caller has them at hand.
    """
    rows = TransferRows(experiment) if rows is None else rows
    if examples is None:
        examples = evaluation_examples(experiment, rows.num_classes)
    known = Scores(scores)
    found = list(subjects(experiment, rows, models, store, examples))
    missing = [subject for subject in found if known.get(subject) is None]
    if missing:
        scorer = _Scorer(experiment, store, rows, models, examples, device)
        for number, subject in enumerate(missing):
            known.put(subject, scorer.score(subject))
            progress("evaluating", number + 1, len(missing), "models", subject.name)
    return table(found, known)


class _Scorer:
    """Runs models over the evaluation set, each teacher at most once."""

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        rows: TransferRows,
        models: Models,
        examples: Examples,
        device: str | None,
    ) -> None:
        self._store = store
        self._experiment, self._rows, self._models, self._device = experiment, rows, models, device
        self._inputs, self._labels = examples.fetch(range(len(examples)))
        self._teachers: dict[str, tuple[np.ndarray[Any, np.dtype[np.float32]], int]] = {}

    def score(self, subject: Subject) -> Score:
        if subject.kind == "teacher":
            logits, parameters = self._teacher(subject.name)
        elif subject.kind == "ensemble":
            logits, parameters = self._ensemble(subject.members, subject.mean)
        elif subject.kind == "combination":
            logits, parameters = self._combination()
        else:
            logits, parameters = self._student(subject)
        metrics = evaluate_logits(np.asarray(logits), self._labels)
        return Score(metrics.rows, metrics.errors, metrics.nll, metrics.calibration_error, parameters)

    def _teacher(self, name: str) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
        if name not in self._teachers:
            member = next(m for m in self._experiment.teacher_members() if m.name == name)
            module = load_teacher(self._experiment, member, self._rows, self._models, self._device)
            logits = run_model(module, self._inputs, EVALUATION_BATCH, where=f"teacher {name!r}")
            self._teachers[name] = logits, count_parameters(module)
        return self._teachers[name]

    def _ensemble(self, members: Mapping[str, float], mean: str) -> tuple[Any, int]:
        logits = {name: self._teacher(name)[0] for name in members}
        kind: Any = mean
        return ensemble_logits(logits, members, kind), sum(self._teacher(name)[1] for name in members)

    def _combination(self) -> tuple[Any, int]:
        from .evaluate_combination import combination_logits

        generalist, own = self._teacher(self._experiment.generalist.name)
        logits, parameters = combination_logits(
            self._experiment,
            self._store,
            self._models,
            self._rows,
            self._inputs,
            generalist,
            batch_size=EVALUATION_BATCH,
            device=self._device,
        )
        return logits, own + parameters

    def _student(self, subject: Subject) -> tuple[Any, int]:
        student = next(s for s in self._experiment.students if s.name == subject.name)
        module = build_model(
            student,
            self._experiment,
            input_shape=self._inputs.shape[1:],
            num_classes=self._rows.num_classes,
        )
        load_weights(module, self._models.weights_path("students", subject.run))
        module.to(choose_device(self._device)).eval()
        logits = run_model(module, self._inputs, EVALUATION_BATCH, where=f"student {subject.run!r}")
        return logits, count_parameters(module)
