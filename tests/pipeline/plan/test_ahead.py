"""Students that do not fit, labelled sets of another form, and the cost of inputs, all found by a plan before a run."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import experiments
from support.messages import Sentences
from torch import Tensor, nn

from logitstore.pipeline.models.records import Models
from logitstore.pipeline.plan.inputs import measure_inputs, together
from logitstore.pipeline.plan.stage import Plan, plan
from logitstore.pipeline.train.stage import train_students
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, BadLogitsError, FactoryError, LogitStoreError

SLEEP = 0.002
"""Seconds that an input of the slow set takes, and a view of the slow augmentation."""
HERE, BATCH = __name__, 32


class _Backward(torch.autograd.Function):
    """The inputs as they are, whose gradient fails."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ArithmeticError("no gradient")


class Small(nn.Module):
    """A linear network with a fault on request."""

    def __init__(self, inputs: int, outputs: int, fault: str) -> None:
        super().__init__()
        self.layer, self.fault = nn.Linear(inputs, outputs), fault
        if fault == "nan":
            nn.init.constant_(self.layer.weight, float("nan"))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layer(inputs.float().flatten(1) / 255)
        if self.fault == "bfloat16" and torch.is_autocast_enabled("cpu"):
            raise TypeError("no autocast")
        return _Backward.apply(logits) if self.fault == "backward" and self.training else logits


def small(
    *, input_shape: list[int], num_classes: int, fault: str = "", more: int = 0, wide: int = 0
) -> Small:
    """Return a student. more: outputs beside those of the classes. wide: another number of inputs."""
    return Small(wide or int(np.prod(input_shape)), num_classes + more, fault)


class Slow(experiments.NoFingerprint):
    """A set whose inputs take some time."""

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        time.sleep(SLEEP)
        return super().__getitem__(index)


def slow(file: Path) -> Slow:
    """Return the slow set."""
    return Slow(file)


def slow_view(image: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Return the image after some time."""
    time.sleep(SLEEP)
    return image ^ np.uint8(generator.integers(2))


def slow_views() -> Any:
    """Return the slow augmentation."""
    return slow_view


def wider(image: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Return an image of another shape."""
    return np.concatenate([image, image])


def wider_views() -> Any:
    """Return an augmentation whose views have another shape than the rows."""
    return wider


def document(**changes: Any) -> dict[str, Any]:
    """Return the small experiment without a clustering, with one student of ours."""
    content = experiments.document() | {"student": [experiments.student("first", views=0)]}
    del content["cluster"]
    return content | changes


def own(name: str, train: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
    """Return a student of this file."""
    settings = experiments.train(epochs=1, seeds=[0], **(train or {}))
    return experiments.student(name, factory=f"{HERE}:small", args=args, train=settings)


def planned(content: dict[str, Any], folder: Path) -> Plan:
    """Plan a document; its data are those of `experiments`."""
    experiments.write_data(folder)
    return plan(experiments.parsed(content, folder), folder / "s.zarr", Models(folder / "m"), device="cpu")


def refused(content: dict[str, Any], folder: Path) -> LogitStoreError:
    """Return the error of a plan, which writes nothing."""
    with pytest.raises(LogitStoreError) as caught:
        planned(content, folder)
    assert not (folder / "s.zarr").exists() and not (folder / "m").exists()
    return caught.value


# Networks


def test_every_student_that_does_not_fit_is_named(tmp_path: Path, sentence: Sentences) -> None:
    students = [own("one", more=1), own("good"), own("two", fault="backward"), own("three", fault="nan")]
    students += [own("four", wide=5), own("five", {"precision": "bfloat16"}, fault="bfloat16")]
    error = refused(document(student=students), tmp_path)
    lines = [str(error), *error.__notes__]
    assert isinstance(error, BadLogitsError) and len(lines) == 5
    for line, name in zip(lines, ("one", "two", "three", "four", "five"), strict=True):
        assert f"student {name}" in line.replace("'", "").replace("training ", "")
        sentence(line)


@pytest.mark.parametrize(
    "student",
    [own("s", more=1), own("s", fault="backward"), own("s", fault="nan"), own("s", wide=5)],
    ids=["classes", "backward", "nan", "inputs"],
)
def test_the_line_is_that_of_the_training(tmp_path: Path, student: dict[str, Any]) -> None:
    done = experiments.copy_finished(tmp_path / "done")
    content = experiments.document() | {"student": [student]}
    experiment = experiments.parsed(content, done)
    with pytest.raises(LogitStoreError) as trained:
        train_students(Workspace.of_folder(experiment, done / "out", device="cpu"))
    error = refused(content, tmp_path / "new")
    # A trial has two rows; the training a batch.
    line = str(trained.value).replace(f"shape ({BATCH}, ", "shape (2, ")
    assert (type(error), str(error)) == (type(trained.value), line)


def test_a_trial_leaves_weights_and_gradients_alone(tmp_path: Path) -> None:
    from logitstore.pipeline.trainer.trial import check_backward

    network = Small(16, 4, "")
    network.layer.weight.grad = torch.ones_like(network.layer.weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_backward(network.eval(), np.zeros((1, 4, 4), np.uint8), "float32", "here")
    assert network.layer.bias.grad is None and bool((network.layer.weight.grad == 1).all())
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_views_of_another_shape_are_refused(tmp_path: Path) -> None:
    views = {"augment": {"factory": f"{HERE}:wider_views"}, "views": 2}
    error = refused(document(cache=views), tmp_path)
    assert isinstance(error, FactoryError) and error.where == "view 1"
    # The control: a student gets the views where every one is augmented.
    content = document(cache=views | {"augment": {"factory": f"{HERE}:wider_views", "first_view": 0}})
    del content["evaluation_set"]  # of the shape of the rows
    made = planned(content, tmp_path)
    assert made.students[0].name == "first"


def test_labels_that_a_student_needs_are_looked_for(tmp_path: Path, sentence: Sentences) -> None:
    experiments.write_data(tmp_path)
    held = dict(np.load(tmp_path / "train.npz"))
    np.savez(tmp_path / "bare.npz", **(held | {"labels": np.full(len(held["labels"]), -1)}))
    content = document(student=[experiments.student("hard", targets="hard")])
    content["transfer_set"]["args"] = {"file": "bare.npz"}
    sentence(refused(content, tmp_path))
    content = document(student=[experiments.student("hard", targets="hard", views="all")])
    content["cache"]["augment"] = {"factory": "logitstore.pipeline.augment:mixup"}
    sentence(refused(content, tmp_path))


def test_specialists_are_tried(tmp_path: Path) -> None:
    content = experiments.whole_document()
    content["specialists"] |= {"variant": "dustbin"}
    assert planned(content, tmp_path).specialists == 3  # the control
    content["teacher"][0] |= {"factory": f"{HERE}:small", "args": {"fault": "backward"}}
    error = refused(content, tmp_path)
    lines = [str(error), *error.__notes__]
    for line, where in zip(lines, ("training teacher wide: ", "specialists of 'wide': "), strict=False):
        assert line.startswith(where) and "no gradient" in line


# Labelled sets


@pytest.mark.parametrize("name", ["evaluation_set", "validation_set"])
@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_a_labelled_set_of_another_form_is_refused(
    tmp_path: Path, name: str, change: str, sentence: Sentences
) -> None:
    experiments.write_data(tmp_path)
    held = dict(np.load(tmp_path / "test.npz"))
    inputs = held["inputs"]
    inputs = np.pad(inputs, [(0, 0), (0, 1), (0, 0)]) if change == "shape" else inputs / np.float32(255)
    np.savez(tmp_path / "other.npz", **(held | {"inputs": inputs}))
    table = {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "other.npz"}}
    error = refused(document(**{name: table}), tmp_path)
    assert isinstance(error, BadDataError) and error.where == name
    sentence(error)


def test_a_network_that_takes_any_shape_is_let_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Negative control: warn of shapes that differ, which are no fault by themselves."""
    experiments.write_data(tmp_path)
    held = dict(np.load(tmp_path / "test.npz"))
    np.savez(tmp_path / "other.npz", **(held | {"inputs": np.pad(held["inputs"], [(0, 0), (0, 1), (0, 0)])}))
    content = document(student=[])
    content["teacher"] = [experiments.teacher("wide", factory=f"{HERE}:anything", args={})]
    content["evaluation_set"]["args"] = {"file": "other.npz"}
    planned(content, tmp_path)
    assert "inputs of shape (5, 4), those of the transfer set have (4, 4)" in caplog.text


class Anything(Small):
    """A network of inputs of any shape."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.float().mean(dim=(1, 2))[:, None])


def anything(num_classes: int) -> Anything:
    """Return the network."""
    return Anything(1, num_classes, "")


# Inputs


def slow_document(**cache: Any) -> dict[str, Any]:
    content = document()
    content["transfer_set"] = {
        "factory": f"{HERE}:slow",
        "args": {"file": "train.npz"},
        "store_inputs": False,
    }
    content["cache"] |= {"augment": {"factory": f"{HERE}:slow_views"}, **cache}
    content["student"] = [
        experiments.student("rows", views=0, train=experiments.train(seeds=[0, 1])),
        experiments.student("views", views=1, train=experiments.train(seeds=[0], workers=2)),
        experiments.student("hard", targets="hard", train=experiments.train(seeds=[0])),
    ]
    return content


def test_hours_have_the_time_of_the_inputs(tmp_path: Path) -> None:
    made = planned(slow_document(), tmp_path)
    inputs, least = made.inputs, SLEEP
    assert least <= inputs.fetch_seconds < 5 * least and least <= inputs.view_seconds < 5 * least
    assert inputs.row_seconds == pytest.approx(inputs.fetch_seconds + 2 * inputs.view_seconds)
    assert inputs.hours >= inputs.row_seconds * experiments.ROWS / 3600
    assert inputs.bound in ("inputs", "processors")
    rows, views, hard = made.students
    assert rows.input_seconds == pytest.approx(inputs.fetch_seconds)
    assert views.input_seconds == pytest.approx(inputs.fetch_seconds + inputs.view_seconds)
    assert hard.input_seconds == pytest.approx(inputs.fetch_seconds + inputs.view_seconds * 2 / 3)
    assert rows.hours >= 2 * 3 * experiments.ROWS * rows.input_seconds / 3600
    assert views.workers == 2


def test_stored_inputs_cost_a_student_nothing_but_its_views(tmp_path: Path) -> None:
    content = slow_document()
    content["transfer_set"]["store_inputs"] = True
    rows, views, _ = planned(content, tmp_path).students
    assert rows.input_seconds == 0.0 and rows.bound == "network"
    assert SLEEP <= views.input_seconds < 5 * SLEEP


def test_fast_inputs_leave_the_hours_to_the_network(tmp_path: Path) -> None:
    """Negative control."""
    content = document()
    content["teacher"] = [experiments.teacher("wide", factory=f"{HERE}:sleepy", args={})]
    made = planned(content, tmp_path)
    assert made.inputs.bound in ("network", "processors")
    assert made.inputs.hours < 2 * sum(teacher.cached_hours for teacher in made.teachers)


class Sleepy(Small):
    """A network that takes some time."""

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(inputs)


def sleepy(*, input_shape: list[int], num_classes: int) -> Sleepy:
    """Return the network."""
    return Sleepy(int(np.prod(input_shape)), num_classes, "")


def test_a_block_that_is_read_once_a_sweep_is_counted_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.pipeline.cache import capture

    monkeypatch.setattr(capture, "PIECE_BYTES", 16 * experiments.BATCH_SIZE)
    monkeypatch.setattr(capture, "GATHERED_BYTES", 1)
    inputs = planned(slow_document(), tmp_path).inputs
    assert inputs.row_seconds == pytest.approx(3 * inputs.fetch_seconds + 2 * inputs.view_seconds)


def test_times_are_medians_and_warm(tmp_path: Path) -> None:
    experiments.write_data(tmp_path)
    experiment = experiments.parsed(document(), tmp_path)
    times = measure_inputs(Workspace(experiment, tmp_path / "s", Models(tmp_path / "m"), device="cpu"))
    assert 0 < times.fetch < SLEEP and 0 < times.view < SLEEP


def test_the_longest_of_inputs_network_and_processors_counts() -> None:
    assert together(8.0, 2.0, 0, 0, 16).seconds == 8.0
    assert together(8.0, 2.0, 2, 0, 16).seconds == 4.0
    assert together(8.0, 2.0, 64, 0, 4).seconds == 2.0  # no more than there are processors
    assert together(8.0, 2.0, 0, 16, 16).bound == "inputs"
    shared = together(4.0, 4.0, 0, 2, 2)
    assert (shared.seconds, shared.bound) == (6.0, "processors")
    assert together(0.0, 4.0, 0, 2, 2).bound == "network"
