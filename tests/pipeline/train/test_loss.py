"""The loss of a student: its choice, its settings, and the effect of each."""

from typing import Any

import pytest
import torch
from support import experiments
from support.trainings import finished_store
from torch import Tensor

from logitstore.pipeline import losses
from logitstore.pipeline.cache.todo import teacher_identity
from logitstore.pipeline.experiment.document import parse_experiment
from logitstore.pipeline.experiment.tables import Student
from logitstore.pipeline.runtime.ranks import Ranks
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.train.loss import StudentLoss
from logitstore.pipeline.train.todo import student_identity, student_seeds
from logitstore.pipeline.transfer import TransferRows
from logitstore.storage.errors import ConfigError

ROWS, CLASSES = 6, 4
T, W = 3.0, 0.3


def logits(seed: int) -> Tensor:
    """float32 (ROWS, CLASSES)."""
    return torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed)) * 3


def batch(unlabelled: int = 0) -> TorchBatch:
    """Rows with the logits of two teachers."""
    labels = torch.arange(ROWS) % CLASSES
    labels[:unlabelled] = -1
    rows = torch.arange(ROWS)
    return TorchBatch(rows, rows * 0, torch.zeros(ROWS, 1), labels, {"wide": logits(1), "deep": logits(2)})


def table(**changes: Any) -> Student:
    """A student of both teachers."""
    content = experiments.student("a", **{"teachers": ["wide", "deep"], "temperature": T, **changes})
    return Student.model_validate(content)


def value(student: Student, ranks: Ranks | None = None) -> float:
    """The loss of `batch()`."""
    weights = {"wide": 0.75, "deep": 0.25} if student.targets == "soft" else {}
    return float(StudentLoss(student, weights)(logits(0), batch()))


def test_each_loss_is_the_one_of_its_name_with_its_numbers() -> None:
    shares = {"wide": 0.75, "deep": 0.25}
    z, labels, given = logits(0), batch().labels, dict(batch().logits)
    mixed = losses.ensemble_logits(given, T, shares, "geometric")
    at_one = losses.ensemble_logits(given, 1.0, shares)
    common = {"mean": "geometric", "hard_weight": W}
    assert value(table(**common)) == float(
        losses.Distillation(T, W)(z, losses.soft_targets(given, T, shares, "geometric"), labels)
    )
    matching = experiments.student("a", teachers=["wide", "deep"], loss="logit_matching", hard_weight=W)
    del matching["temperature"]
    assert value(Student.model_validate(matching)) == float(losses.LogitMatching(W)(z, at_one, labels))
    for loss, expected in (
        ("dkd", losses.DecoupledDistillation(T, 1.0, 8.0, W)),
        ({"name": "dkd", "alpha": 2, "beta": 0.5}, losses.DecoupledDistillation(T, 2.0, 0.5, W)),
        ("dist", losses.Dist(T, 1.0, 1.0, W)),
        ({"name": "dist", "intra": 3.0}, losses.Dist(T, 1.0, 3.0, W)),
    ):
        assert value(table(**common, loss=loss)) == float(expected(z, mixed, labels)), loss
    values = [value(table(loss=loss)) for loss in ("distillation", "dkd", "dist")]
    assert len({round(v, 3) for v in values}) == 3


def test_standardised_rows_leave_the_hard_term_alone() -> None:
    """Sun et al. standardise what is compared with the teacher; the labels see the logits as they are."""
    shares = {"wide": 0.75, "deep": 0.25}
    given = {name: losses.standardise(z) for name, z in batch().teacher_logits().items()}
    soft = losses.Distillation(T)(losses.standardise(logits(0)), losses.soft_targets(given, T, shares))
    hard = losses.hard_cross_entropy(logits(0), batch().labels)
    assert value(table(standardise=True, hard_weight=W)) == pytest.approx(float(soft + W * hard), rel=1e-6)
    scaled = StudentLoss(table(standardise=True), shares)(logits(0) * 7 + 2, batch())
    assert float(scaled) == pytest.approx(value(table(standardise=True)), rel=1e-5)
    assert value(table()) != pytest.approx(value(table(standardise=True)), rel=1e-2)


@pytest.mark.parametrize("loss", ["distillation", "logit_matching", "dkd", "dist"])
@pytest.mark.parametrize("standardise", [False, True], ids=["plain", "standardised"])
def test_the_kl_is_that_to_the_targets_whatever_is_minimised(loss: str, standardise: bool) -> None:
    """At the temperature, of the logits that are compared, without the hard term; of the pass that gives the loss."""
    at = 1.0 if loss == "logit_matching" else 20.0
    student = table(loss=loss, temperature=at, standardise=standardise, hard_weight=W)
    shares, z, given = {"wide": 0.75, "deep": 0.25}, logits(0), dict(batch().logits)
    if standardise:
        z, given = losses.standardise(z), {name: losses.standardise(v) for name, v in given.items()}
    p = losses.soft_targets(given, at, shares).double()
    expected = (p * (p.log() - torch.log_softmax(z.double() / at, dim=1))).sum(dim=1)
    measured = StudentLoss(student, shares)
    assert measured.divergence() is None  # before the first batch
    minimised = float(measured(logits(0), batch()))
    kl = measured.divergence()
    assert kl is not None and float(kl) == pytest.approx(float(expected.mean()), rel=2e-3, abs=1e-6)
    assert not kl.requires_grad
    rows = measured.divergences(logits(0), batch())
    assert rows is not None and rows.tolist() == pytest.approx(expected.tolist(), rel=2e-3, abs=1e-6)
    # Negative control: the loss is another number, of which the KL is a small part where it is a cross-entropy.
    assert abs(minimised - float(kl)) > 0.1
    if loss == "distillation" and not standardise:
        assert minimised / at**2 > 20 * float(kl)


def test_the_kl_of_a_perfect_student_is_0_and_labels_have_none() -> None:
    teacher = logits(1)
    alone = TorchBatch(
        *(getattr(batch(), n) for n in ("rows", "views", "inputs", "labels")), {"wide": teacher}
    )
    perfect = StudentLoss(table(teachers=["wide"], temperature=20.0), {"wide": 1.0})
    perfect(teacher + 5.0, alone)
    assert float(perfect.divergence()) == pytest.approx(0.0, abs=1e-6)  # type: ignore[arg-type]
    hard = StudentLoss(of_labels(), {})
    hard(teacher, alone)
    assert hard.divergence() is None and hard.divergences(teacher, alone) is None


def of_labels() -> Student:
    """A student of the labels."""
    return Student.model_validate(experiments.student("a", targets="hard"))


def test_label_smoothing_is_for_the_baseline() -> None:
    hard = experiments.student("a", targets="hard", train=experiments.train(label_smoothing=0.2))
    expected = torch.nn.functional.cross_entropy(logits(0), batch().labels, label_smoothing=0.2)
    assert value(Student.model_validate(hard)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "complete", "expected"),
    [
        ({}, False, False),
        ({"loss": "dist"}, True, True),
        ({"hard_weight": W}, True, False),
        ({"hard_weight": W}, False, True),
        ({"loss": "dkd"}, False, True),
        ({"loss": "dkd"}, True, False),
    ],
)
def test_rows_of_all_ranks_are_needed_where_a_loss_is_no_mean_over_rows(
    changes: dict[str, Any], complete: bool, expected: bool
) -> None:
    for ranks in (Ranks(), Ranks(0, 2)):
        loss = StudentLoss(table(**changes), {"wide": 1.0}, labels_are_complete=complete, ranks=ranks)
        assert loss.is_of_all_ranks == (expected and ranks.size > 1)


# The tables


def message(student: dict[str, Any]) -> str:
    """What a student's table is refused with."""
    with pytest.raises(ConfigError) as caught:
        experiments.parsed(experiments.document() | {"student": [student]}, experiments.finished())
    said = str(caught.value)
    assert "\n" not in said
    return said.removeprefix("tiny.toml: student[0].")


def hard(**changes: Any) -> dict[str, Any]:
    """A baseline."""
    return experiments.student("a", targets="hard", **changes)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (
            experiments.student("a", train=experiments.train(label_smoothing=0.1)),
            "train.label_smoothing: expected targets = 'hard', found targets = 'soft'; remove train.label_smoothing",
        ),
        (hard(loss="dkd"), "loss: expected targets = 'soft', found targets = 'hard'; remove loss"),
        (
            hard(standardise=True),
            "standardise: expected targets = 'soft', found targets = 'hard'; remove standardise",
        ),
        (
            experiments.student("a", loss="logit_matching"),
            "temperature: expected loss.name = 'distillation', 'dkd' or 'dist', found loss.name = 'logit_matching'; remove temperature",
        ),
        (
            experiments.student("a", loss="dkt"),
            "loss.name: expected 'distillation', 'logit_matching', 'dkd' or 'dist', found 'dkt'; correct name",
        ),
        (
            experiments.student("a", loss={"name": "dist", "alpha": 2.0}),
            "loss.alpha: expected name = 'dkd', found name = 'dist'; remove alpha",
        ),
        (
            experiments.student("a", loss={"name": "dkd", "beta": -1.0}),
            "loss.beta: expected 0 or more, found -1.0; correct beta",
        ),
        (
            experiments.student("a", loss={"nmae": "dkd"}),
            "loss.nmae: expected a known key, found 'nmae'; did you mean 'name'?",
        ),
        (
            experiments.student("a", train=experiments.train(ema=1.0)),
            "train.ema: expected a number below 1, found 1.0; correct ema",
        ),
        (
            experiments.student("a", train=experiments.train(clip_norm=0)),
            "train.clip_norm: expected a number above 0, found 0; correct clip_norm",
        ),
        (
            experiments.student("a", train=experiments.train(precision="half")),
            "train.precision: expected 'float32', 'bfloat16' or 'float16', found 'half'; correct precision",
        ),
        (
            experiments.student("a", train=experiments.train(checkpoint_every=0)),
            "train.checkpoint_every: expected 1 or more, found 0; correct checkpoint_every",
        ),
    ],
)
def test_what_has_no_effect_or_makes_no_sense_is_refused_in_one_line(
    student: dict[str, Any], said: str
) -> None:
    assert message(student) == said


def test_teachers_have_no_checkpoints() -> None:
    content = experiments.document()
    content["teacher"][0]["train"]["checkpoint_every"] = 5
    with pytest.raises(
        ConfigError,
        match=r"teacher\[0\]\.train\.checkpoint_every: expected a known key, found 'checkpoint_every'",
    ):
        parse_experiment(content, where="tiny.toml", base=experiments.finished())


# What was made before these keys were there is still what it was


def test_identities_are_those_of_the_time_before_these_keys() -> None:
    store = finished_store()
    experiment = experiments.parsed(experiments.document(), experiments.finished())
    soft = next(student_seeds(experiment))
    assert student_identity(experiment, soft, store) == {
        "factory": "logitstore.pipeline.models:mlp",
        "args": {"hidden": [6]},
        "targets": "soft",
        "mean": "arithmetic",
        "temperature": 3.0,
        "hard_weight": 0.0,
        "views": "cycle",
        "teachers": {"wide": 1.0},
        "train": {
            "lr": 0.02,
            "epochs": 3,
            "optimizer": "adam",
            "momentum": 0.0,
            "weight_decay": 0.0,
            "batch_size": 32,
            "schedule": "constant",
            "warmup_epochs": 0,
        },
        "seed": 0,
        "samples": store.samples.digest,
        "seals": {"wide": store.teachers["wide"].digest},
    }
    rows = TransferRows(experiment)
    teacher = teacher_identity(experiment.teacher_members()[0], rows)
    assert teacher["train"] == {
        "lr": 0.02,
        "epochs": 3,
        "optimizer": "adam",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch_size": 32,
        "schedule": "constant",
        "warmup_epochs": 0,
        "label_smoothing": 0.0,
        "augment": None,
    }


def identity(student: dict[str, Any]) -> dict[str, Any]:
    """What a student of this table follows from."""
    content = experiments.document() | {"student": [student]}
    experiment = experiments.parsed(content, experiments.finished())
    return student_identity(experiment, next(student_seeds(experiment)), finished_store())


def test_what_changes_a_student_changes_its_identity_and_nothing_else_does() -> None:
    plain = identity(experiments.student("a"))
    for changes in (
        {"loss": "dkd"},
        {"loss": {"name": "dkd", "alpha": 2.0}},
        {"loss": "dist"},
        {"standardise": True},
        {"rows": 0.5},
    ):
        assert identity(experiments.student("a", **changes)) != plain
    for changes in ({"ema": 0.9}, {"clip_norm": 1.0}, {"precision": "bfloat16"}):
        found = identity(experiments.student("a", train=experiments.train(**changes)))
        assert found["train"] == plain["train"] | changes
    for changes in ({"checkpoint_every": 5}, {"compile": True}, {"precision": "float32"}, {"workers": 2}):
        assert identity(experiments.student("a", train=experiments.train(**changes))) == plain
    same = (
        {"loss": "distillation"},
        {"loss": {"name": "distillation"}},
        {"standardise": False},
        {"rows": 1.0},
    )
    assert all(identity(experiments.student("a", **changes)) == plain for changes in same)
    named = [identity(experiments.student("a", loss=loss)) for loss in ("dkd", {"name": "dkd", "beta": 8})]
    assert named[0] == named[1]
    assert named[0]["loss"] == {"name": "dkd", "alpha": 1.0, "beta": 8.0}
