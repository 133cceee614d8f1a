"""How are models scored on the evaluation set? Each once for its weights; ensembles from their members' logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from ...storage.api import Store
from ...storage.errors import BadDataError, ConfigError
from ...storage.parts.reader import sets_of
from ...storage.progress import Progress, silent
from ...storage.stream.inputs import fetch_items
from ..cache.teachers import load_teacher
from ..cluster.errors_inside import DRAWS, ErrorsInside, errors_inside
from ..combine.experts import Experts, active_specialists
from ..combine.solve import combine_rows
from ..experiment.document import Experiment
from ..models.build import build_model
from ..models.networks import count_parameters
from ..models.records import Models
from ..models.weights import load_weights
from ..runtime.device import choose_device
from ..runtime.inference import run_model
from ..specialists.todo import columns_of, special_rows, specialist_runs
from ..specialists.training import load_specialist
from ..transfer import Examples, TransferRows
from .metrics import ensemble_logits, evaluate_logits
from .scores import Score, Scores, Subject, TableRow, subjects, table

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

    def score(self, subject: Subject) -> Score | ErrorsInside:
        if subject.kind == "sets":
            return self._errors_inside(subject)
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

    def _errors_inside(self, subject: Subject) -> ErrorsInside:
        """Count the errors of every teacher whose predictions were clustered, and those that a set holds."""
        cluster = self._experiment.cluster
        assert cluster is not None  # its sets are scored
        predictions = [self._teacher(name)[0].argmax(axis=1) for name in subject.members]
        return errors_inside(
            sets_of(self._store.clustering(subject.name), self._store.num_classes),
            np.tile(self._labels, len(predictions)),
            np.concatenate(predictions),
            num_classes=self._store.num_classes,
            disjoint=cluster.disjoint,
            draws=DRAWS,
            seed=cluster.seed,
        )

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


def combination_logits(
    experiment: Experiment,
    store: Store,
    models: Models,
    rows: TransferRows,
    inputs: NDArray[np.generic],
    generalist: Float[np.ndarray, "rows classes"],
    *,
    batch_size: int,
    device: str | None = None,
    progress: Progress = silent,
) -> tuple[Float32[np.ndarray, "rows classes"], int]:
    """ln q of each example, and the parameters of all specialists together.

    store: that of the experiment, which has the clustering and the labels that the specialists learnt from; they must be
    trained. inputs: (rows, …) as the transfer set gives them. generalist: its logits of them.
    """
    assert experiment.combine is not None  # whoever asks has looked
    combine = experiment.combine
    special = [(run, special_rows(experiment, run, store)) for run in specialist_runs(experiment, store)]
    columns = [columns_of(experiment, own.classes, store.num_classes) for _, own in special]
    experts = Experts.of(columns, store.num_classes)
    logits = generalist.astype(np.float32)
    active, said, parameters = active_specialists(logits, experts, combine.top), [], 0
    for number, (run, own) in enumerate(special):
        where = f"specialist {run.name!r}"
        network = load_specialist(experiment, run, own, store.num_classes, models, rows=rows, device=device)
        parameters += count_parameters(network)
        asked = np.flatnonzero(active[:, number])
        if len(asked):
            said.append(np.asarray(run_model(network, inputs[asked], batch_size, where=where), np.float32))
        else:
            said.append(np.zeros((0, len(columns[number])), np.float32))
        progress("evaluating", number + 1, len(special), "specialists", run.name)
    combined = combine_rows(logits, experts, active, said, direction=combine.direction, out=logits)
    return np.asarray(combined, np.float32), parameters
