"""A training is validated on examples that it does not learn from: seen, chosen by, resumed, and never silently on the test set."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import experiments, trainings
from support.messages import Sentences
from support.trainings import content, finished_store, interruption, only_run, trained, weights
from torch import nn

from logitstore.pipeline.evaluate.metrics import evaluate_logits, log_softmax
from logitstore.pipeline.held_out import held_out_rows
from logitstore.pipeline.models import mlp
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.pipeline.train.stage import open_stream
from logitstore.pipeline.train.todo import student_identity
from logitstore.pipeline.trainer.validation import Validation, measure
from logitstore.pipeline.trainer.validation_sets import LabelledBatch, without_teachers
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, ConfigError, MissingPackage

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS, STEPS_PER_EPOCH = 3, 4
"""120 rows that are learned from, 32 a step."""
TEST_SET = {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "test.npz"}}


def validated(**train: Any) -> dict[str, Any]:
    """A document with one student that holds a fifth of the rows out."""
    return content({"epochs": EPOCHS, "validation": 0.2, **train})


def beside(folder: Path, which: str) -> Path:
    return folder / "students" / f"a-seed0@{which}.safetensors"


def validations(folder: Path) -> list[dict[str, Any]]:
    return [line for line in trainings.lines(folder) if line["event"] == "validation"]


def without_clock(folder: Path) -> list[dict[str, Any]]:
    clock = ("seconds", "rows_per_second", "waiting")
    return [{k: v for k, v in line.items() if k not in clock} for line in trainings.lines(folder)]


# What is seen


def test_figures_are_those_of_the_weights_on_the_held_out_rows(tmp_path: Path) -> None:
    """Accuracy, NLL and KL of the last line, computed again from the file of weights and from the store."""
    store = finished_store()
    trained(validated(), store, tmp_path)
    *_, last = lines = validations(tmp_path)
    assert [(line["epoch"], line["step"], line["rows"]) for line in lines] == [
        (1, 4, 30),
        (2, 8, 30),
        (3, 12, 30),
    ]
    held = held_out_rows(experiments.ROWS, 0.2)
    network = mlp([6], 0.3, input_shape=[4, 4], num_classes=experiments.CLASSES).eval()
    network.load_state_dict(load_file(tmp_path / "students" / "a-seed0.safetensors"))
    inputs = store.samples.reader.read("input", held)
    logits = network(torch.from_numpy(inputs)).detach().numpy()
    metrics = evaluate_logits(logits, store.samples.labels[held])
    assert (last["accuracy"], last["nll"]) == pytest.approx((metrics.accuracy, metrics.nll), rel=1e-5)
    log_p = log_softmax(store.teachers["wide"].read(held, 0), 3.0)
    kl = (np.exp(log_p) * (log_p - log_softmax(logits, 3.0))).sum(axis=1).mean()
    assert last["kl"] == pytest.approx(kl, rel=1e-3)


def test_held_out_rows_are_not_learned_from_and_are_the_same_for_every_student(tmp_path: Path) -> None:
    held, store = set(held_out_rows(experiments.ROWS, 0.2).tolist()), finished_store()
    assert len(held) == 30
    for changes in ({}, {"rows": 0.5}, {"targets": "hard"}):
        document = content({"epochs": EPOCHS, "validation": 0.2}, **changes)
        experiment, run = only_run(document, experiments.finished())
        work = Workspace(experiment, Path(store.path), Models(tmp_path), device="cpu")
        seen = {int(row) for batch in TorchStream(open_stream(work, run)[0]) for row in batch.rows}
        assert len(seen) == (60 if "rows" in changes else 120)
        assert not seen & held


def test_validation_on_a_set_changes_no_byte_of_the_training(tmp_path: Path) -> None:
    """Dropout and batches are those of a training that is not validated, and so is the identity."""
    plain = content({"epochs": EPOCHS})
    trained(plain, finished_store(), tmp_path / "plain")
    for name, document in (
        ("set", {**plain, "validation_set": TEST_SET}),
        ("evaluation", content({"epochs": EPOCHS, "validation": "evaluation_set"})),
    ):
        record = trained(document, finished_store(), tmp_path / name)
        assert weights(tmp_path / name) == weights(tmp_path / "plain")
        assert len(validations(tmp_path / name)) == EPOCHS
        beside_it = (tmp_path / name / "students" / "a-seed0.json").read_text()
        assert json.loads(beside_it)["identity"] == record.identity
        without = json.loads((tmp_path / "plain" / "students" / "a-seed0.json").read_text())
        assert record.identity == without["identity"]
    # The scores come from the evaluation set: nothing is chosen on it, not even a file beside the result.
    assert beside(tmp_path / "set", "best").exists() and not beside(tmp_path / "evaluation", "best").exists()
    assert all("best" not in line for line in validations(tmp_path / "evaluation"))


class Noisy(nn.Module):
    """A network that draws random numbers in evaluation mode, and counts its calls in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(16, 4), nn.BatchNorm1d(4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.norm(self.layer(inputs.flatten(1).float()))
        return logits + torch.rand(())


def test_a_measurement_leaves_modes_statistics_and_random_numbers() -> None:
    network, inputs = Noisy(), torch.rand(8, 4, 4)
    batches = [LabelledBatch(inputs, torch.zeros(8, dtype=torch.int64))]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure(batches, without_teachers, 4, "network", network)
    assert torch.equal(torch.rand(2), expected)
    assert network.training and network.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    # Negative control: the same call outside of a measurement changes them.
    torch.manual_seed(3)
    network(inputs)
    assert not torch.equal(torch.rand(2), expected)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_unlabelled_examples_have_a_kl_alone(tmp_path: Path) -> None:
    store = trainings.plain_store(tmp_path / "x" / "y" / "s.zarr", unlabelled=experiments.ROWS)
    document = content({"epochs": 1, "validation": 0.2}, views=0)
    trained(document, store, tmp_path)
    (line,) = validations(tmp_path)
    assert "kl" in line and "accuracy" not in line and line["best"] is False
    document = content({"epochs": 1, "validation": 0.2, "keep": "best", "best_by": "kl"}, views=0)
    trained(document, store, tmp_path / "best")
    assert validations(tmp_path / "best")[0]["best"] is True
    document = content({"epochs": 1, "validation": 0.2, "keep": "best"}, views=0)
    with pytest.raises(
        BadDataError, match=r"expected labels on the rows that are held out, found none in 30 rows"
    ):
        trained(document, store, tmp_path / "refused")


# Best and last


def first_is_best() -> Any:
    """Rank all epochs alike: of equal ones the first is the best."""
    return mock.patch.object(Validation, "_rank", lambda *_: (0.0, 0.0))


def test_best_and_last_are_both_kept(tmp_path: Path) -> None:
    with first_is_best():
        trained(validated(best_by="kl"), finished_store(), tmp_path / "last")
        record = trained(validated(best_by="kl", keep="best"), finished_store(), tmp_path / "best")
    assert weights(tmp_path / "last") == beside(tmp_path / "best", "last").read_bytes()
    assert weights(tmp_path / "best") == beside(tmp_path / "last", "best").read_bytes()
    assert weights(tmp_path / "last") != weights(tmp_path / "best")
    assert not beside(tmp_path / "best", "best").exists() and not beside(tmp_path / "last", "last").exists()
    assert record.facts["validation"]["best"]["epoch"] == 1
    told = [(line["epoch"], line["best"]) for line in validations(tmp_path / "best")]
    assert told == [(1, True), (2, False), (3, False)]


def test_a_later_training_without_validation_leaves_no_best_weights_of_another(tmp_path: Path) -> None:
    trained(validated(), finished_store(), tmp_path)
    assert beside(tmp_path, "best").exists()
    trained(content({"epochs": 1}), finished_store(), tmp_path)
    assert not beside(tmp_path, "best").exists()


@pytest.mark.parametrize("step", [1, 4, 5, 8, 11, 12], ids="step {}".format)
def test_a_stopped_training_resumes_to_the_same_best(tmp_path: Path, best: Path, step: int) -> None:
    document = validated(keep="best", best_by="kl")
    with first_is_best():
        with interruption(step):
            trained(document, finished_store(), tmp_path)
        torch.manual_seed(77)
        trained(document, finished_store(), tmp_path)
    assert weights(tmp_path) == weights(best)
    assert beside(tmp_path, "last").read_bytes() == beside(best, "last").read_bytes()
    assert without_clock(tmp_path) == without_clock(best)
    assert facts(tmp_path) == facts(best)


def facts(folder: Path) -> Any:
    return json.loads((folder / "students" / "a-seed0.json").read_text())["facts"]["validation"]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was never interrupted, whose best epoch is the first."""
    folder = tmp_path_factory.mktemp("best")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with first_is_best():
        trained(validated(keep="best", best_by="kl"), finished_store(), folder)
    torch.set_num_threads(threads)
    return folder


def test_a_checkpoint_without_the_best_weights_is_found_out(tmp_path: Path, best: Path) -> None:
    """Negative control."""
    document = validated(keep="best", best_by="kl")
    with first_is_best():
        with interruption(5):
            trained(document, finished_store(), tmp_path)
        with mock.patch.object(Validation, "restore"):
            trained(document, finished_store(), tmp_path)
    assert weights(tmp_path) != weights(best)


def test_best_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """Found when the training is resumed, and not at its end."""
    document = validated(keep="best", best_by="kl")
    with interruption(5):
        trained(document, finished_store(), tmp_path)
    genuine = Validation.restore

    def narrow(self: Validation, state: Any, tensors: Any, own: Any) -> None:
        cut = {name: t[:1] if name.startswith("best/") else t for name, t in tensors.items()}
        genuine(self, state, cut, own)

    with (
        mock.patch.object(Validation, "restore", narrow),
        pytest.raises(BadDataError, match="best weights of other names or shapes"),
    ):
        trained(document, finished_store(), tmp_path)


def test_the_best_of_another_figure_is_not_taken_over(tmp_path: Path) -> None:
    """`best_by` of a training that keeps its last epoch is no part of its identity, and may change on the way."""
    with first_is_best(), interruption(5):
        trained(validated(best_by="kl"), finished_store(), tmp_path)
    trained(validated(best_by="nll"), finished_store(), tmp_path)
    assert facts(tmp_path)["best"]["epoch"] == 3


def test_equal_accuracies_are_told_apart_by_the_likelihood() -> None:
    from logitstore.pipeline.experiment.training import StudentTrain
    from logitstore.pipeline.trainer.validation import Figures

    found = iter(
        [Figures(9, 0.5, 0.9), Figures(9, 0.5, float("nan")), Figures(9, 0.5, 0.8), Figures(9, 0.5, 0.8)]
    )
    settings = StudentTrain(lr=1.0, epochs=4)
    validation = Validation(settings, "validation_set", lambda _: next(found))
    module = nn.Linear(1, 1)
    is_best = [validation.validate(module, epoch, trainings.ALONE)[1] for epoch in range(4)]
    assert is_best == [True, False, True, False]


def test_validation_may_be_rare_and_sees_the_last_epoch(tmp_path: Path) -> None:
    trained(validated(epochs=5, validate_every=2), finished_store(), tmp_path)
    assert [line["epoch"] for line in validations(tmp_path)] == [2, 4, 5]


# Identity and refusals


@pytest.mark.parametrize("file", ["test.npz", "train.npz"])
def test_weights_are_not_chosen_on_the_examples_of_the_scores(
    tmp_path: Path, file: str, sentence: Sentences
) -> None:
    """Of a set of the same content, whatever its table says; not of the control, train.npz."""
    same = {"factory": TEST_SET["factory"], "args": {"file": file, "fraction": 1.0}}
    document = content({"epochs": 1, "keep": "best"}) | {"validation_set": same, "evaluation_set": TEST_SET}
    if file == "train.npz":
        trained(document, finished_store(), tmp_path)
        return
    with pytest.raises(ConfigError) as caught:
        trained(document, finished_store(), tmp_path)
    sentence(str(caught.value))


def identity(document: dict[str, Any]) -> Any:
    experiment, run = only_run(document, experiments.finished())
    return student_identity(experiment, run, finished_store())


def test_an_identity_changes_where_the_weights_do() -> None:
    plain = identity(content())
    for idle in ({"log": "tensorboard"}, {"validation": "evaluation_set", "validate_every": 2}):
        assert identity(content(idle)) == plain
    assert identity(content() | {"validation_set": TEST_SET}) == plain
    held = identity(content({"validation": 0.2}))
    assert held == plain | {"validation": {"held_out": 0.2}}
    assert identity(content({"validation": 0.2, "validate_every": 2, "best_by": "kl"})) == held
    chosen = [
        content({"validation": 0.2, "keep": "best"}),
        content({"validation": 0.2, "keep": "best", "best_by": "kl"}),
        content({"validation": 0.2, "keep": "best", "validate_every": 2}),
        content({"keep": "best"}) | {"validation_set": TEST_SET},
        content({"keep": "best"}) | {"validation_set": {**TEST_SET, "args": {"file": "train.npz"}}},
    ]
    assert len({json.dumps(each, sort_keys=True) for each in [plain, held, *map(identity, chosen)]}) == 7


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (
            {"validation": "evaluation_set", "keep": "best"},
            "train.keep: expected examples besides the evaluation set to choose on, found validation = 'evaluation_set'",
        ),
        (
            {"keep": "best"},
            "train.keep: expected examples to validate on, found neither validation nor [validation_set]",
        ),
        ({"validate_every": 2}, "train.validate_every: expected examples to validate on"),
        (
            {"validation": 1.5},
            "train.validation: expected a share of the rows between 0 and 1, or 'evaluation_set', found 1.5",
        ),
        ({"validation": 1}, "train.validation: expected a share of the rows between 0 and 1"),
        (
            {"validation": "test"},
            "train.validation: expected a share of the rows between 0 and 1, or 'evaluation_set', found 'test'",
        ),
        ({"validation": 0.1, "validate_every": 0}, "train.validate_every: expected 1 or more, found 0"),
        ({"validation": 0.1, "keep": "first"}, "train.keep: expected 'last' or 'best', found 'first'"),
        (
            {"validation": "evaluation_set", "best_by": "kl"},
            "train.best_by: expected soft targets and validation = SHARE, for rows that have teachers' logits",
        ),
    ],
    ids=lambda value: (
        value.partition(",")[0] if isinstance(value, str) else " ".join(map(str, value.values()))
    ),
)
def test_a_validation_that_cannot_be_is_one_line(
    train: dict[str, Any], line: str, sentence: Callable[[str], None]
) -> None:
    """Above all the choice of weights on the test set."""
    with pytest.raises(ConfigError) as caught:
        experiments.parsed(content(train), Path())
    sentence(str(caught.value))
    assert f"student[0].{line}" in str(caught.value)


def test_labels_give_no_kl_to_choose_by() -> None:
    document = content({"validation": 0.1, "best_by": "kl"}, targets="hard")
    with pytest.raises(
        ConfigError, match=r"best_by: expected soft targets.*found rows held out of a training from labels"
    ):
        experiments.parsed(document, Path())


# Teachers


def test_a_teacher_keeps_its_best_epoch_and_a_log(tmp_path: Path) -> None:
    """The rows of the store that it does not learn from are those of a student."""
    experiments.write_data(tmp_path)
    settings = {"validation": 0.2, "keep": "best", "epochs": 2}
    document = experiments.document() | {
        "teacher": [experiments.teacher("wide", train=experiments.train(**settings))]
    }
    document["student"] = []
    with first_is_best():
        experiments.run_document(document, tmp_path, tmp_path / "out")
    folder = tmp_path / "out" / "models" / "teachers"
    assert sorted(path.name for path in folder.iterdir()) == [
        "wide.json",
        "wide.metrics.jsonl",
        "wide.safetensors",
        "wide@last.safetensors",
    ]
    record = json.loads((folder / "wide.json").read_text())
    assert record["facts"]["validation"]["best"]["epoch"] == 1
    assert record["facts"]["validation"]["last"]["rows"] == 30
    assert record["identity"]["validation"]["held_out"] == 0.2
    lines = [json.loads(line) for line in (folder / "wide.metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["epoch", "validation"] * 2
    assert lines[0]["rows"] == 120 and "kl" not in lines[0]


# The log


def test_every_line_reaches_the_function_that_is_passed(tmp_path: Path) -> None:
    calls: list[tuple[int, dict[str, float]]] = []
    experiment, run = only_run(validated(epochs=2), experiments.finished())
    work = Workspace(
        experiment,
        Path(finished_store().path),
        Models(tmp_path),
        device="cpu",
        outlet=lambda step, values: calls.append((step, values)),
    )
    with mock.patch("os.fsync"), mock.patch("logitstore.pipeline.trainer.loop.REPORT_EVERY", 3):
        trainings.train_student(work, run)
    lines = trainings.lines(tmp_path)
    assert [step for step, _ in calls] == [line["step"] for line in lines] == [3, 4, 4, 6, 8, 8]
    assert calls[0][1]["train/loss"] == lines[0]["loss"] and calls[0][1]["train/kl"] == lines[0]["kl"]
    assert calls[1][1]["epoch/kl"] == lines[1]["kl"]
    assert calls[2][1]["validation/accuracy"] == lines[2]["accuracy"]
    assert all(values["epoch"] == line["epoch"] for (_, values), line in zip(calls, lines, strict=True))


def test_a_missing_package_is_named_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Callable[[str], None]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingPackage) as caught:
        trained(content({"log": "tensorboard"}), finished_store(), tmp_path)
    sentence(str(caught.value))
    assert str(caught.value).endswith("pip install tensorboard, or remove log")
    assert not (tmp_path / "students").exists()


class Writer:
    """A stand-in for `SummaryWriter`, which keeps what it is given."""

    made: ClassVar["list[Writer]"] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purged, self.scalars, self.closed = (
            folder,
            purge_step,
            list[tuple[str, int]](),
            False,
        )
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert isinstance(value, float | int)
        self.scalars.append((name, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_a_curve_a_value_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = mock.Mock(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Writer.made.clear()
    document = validated(epochs=2, log="tensorboard")
    with interruption(5):
        trained(document, finished_store(), tmp_path)
    trained(document, finished_store(), tmp_path)
    first, second = Writer.made
    assert Path(first.folder) == tmp_path / "students" / "a-seed0.tensorboard" == Path(second.folder)
    assert ("epoch/loss", 4) in first.scalars and ("validation/kl", 4) in first.scalars
    assert second.purged == 8 and first.closed and second.closed
    assert weights(tmp_path)


# Before anything is trained


def test_a_run_finds_what_a_later_training_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of teachers are not spent for a student that cannot be logged or validated."""
    experiments.write_data(tmp_path)
    document = experiments.document()
    document["student"] = [experiments.student("a", train=experiments.train(log="tensorboard"))]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingPackage, match="tensorboard"):
        experiments.run_document(document, tmp_path, tmp_path / "out")
    document["student"] = [experiments.student("a")]
    images, _ = experiments.some_digits(9, 4)
    np.savez(tmp_path / "images.npz", inputs=images)
    document["validation_set"] = {**TEST_SET, "args": {"file": "images.npz", "labels": ""}}
    with pytest.raises(BadDataError, match=r"^validation_set: expected labelled examples"):
        experiments.run_document(document, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
