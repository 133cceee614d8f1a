"""The stages as calls with things in hand: the same bytes as from a file, resumed, shared, and harmless to the things."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support import experiments, hands
from support.children import apart
from support.experiments import BATCH_SIZE, BLOCK_ROWS, VIEWS, Recorder, contents
from support.hands import Darker, Net, Pictures, cached, distilled
from torch import distributed

import logitstore
from logitstore.cli.calling import check_log
from logitstore.pipeline.augment import random_resized_crop, shift
from logitstore.pipeline.datasets import arrays
from logitstore.pipeline.models import mlp
from logitstore.pipeline.models.weights import load_weights
from logitstore.pipeline.runtime.session import session
from logitstore.pipeline.trainer.checkpoints import Checkpoints
from logitstore.pipeline.trainer.validation import Validation
from logitstore.storage.errors import (
    BadDataError,
    BadLogitsError,
    ConfigError,
    FactoryError,
    PartNotFound,
    RowMismatch,
    SpecMismatch,
)

pytestmark = pytest.mark.usefixtures("without_fsync")


def test_logits_and_samples_are_those_of_the_same_experiment_from_a_file(tmp_path: Path) -> None:
    done = experiments.finished()
    teacher = mlp([12], 0.1, input_shape=[4, 4], num_classes=experiments.CLASSES)
    load_weights(teacher, done / "out" / "models" / "teachers" / "wide.safetensors")
    settings: dict[str, Any] = {"batch_size": BATCH_SIZE, "block_rows": BLOCK_ROWS, "device": "cpu"}
    store = logitstore.cache(
        tmp_path / "store.zarr",
        {"wide": teacher},
        arrays(done / "train.npz"),
        views=VIEWS,
        augment=shift(pixels=1),
        **settings,
    )
    of_file = logitstore.open_store(done / "out" / "store.zarr")
    assert store.digest_of("samples") == of_file.digest_of("samples")
    for array in ("logits", "peak", "seen", "classes"):
        there = contents(done / "out" / "store.zarr" / "teachers" / "wide" / array)
        assert contents(tmp_path / "store.zarr" / "teachers" / "wide" / array) == there
        assert there
    # So is the augmentation: a student of a file may learn from this store.
    assert store.teachers["wide"].augmentation == of_file.teachers["wide"].augmentation


def test_a_student_is_the_one_of_a_file(tmp_path: Path) -> None:
    """The same network, seed and settings give the same weights to the last bit."""
    done = experiments.finished()
    torch.manual_seed(1)
    student = mlp([6], input_shape=[4, 4], num_classes=experiments.CLASSES)
    trained = logitstore.distill(
        done / "out" / "store.zarr",
        student,
        teachers="wide",
        augment=shift(pixels=1),
        temperature=3.0,
        lr=2e-2,
        epochs=3,
        batch_size=32,
        seed=1,
        device="cpu",
    )
    of_file = mlp([6], input_shape=[4, 4], num_classes=experiments.CLASSES)
    load_weights(of_file, done / "out" / "models" / "students" / "soft-seed1.safetensors")
    assert trained is student
    for name, tensor in of_file.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


def test_networks_stay_as_they_are(tmp_path: Path) -> None:
    net, before = Net(), {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    net.first.eval()
    store = logitstore.cache(tmp_path / "store.zarr", {"net": net}, Pictures(), device="cpu")
    logitstore.distill(store, Net(4), lr=1e-2, epochs=1, device="cpu")
    assert (net.training, net.first.training, net.second.training) == (True, False, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_random_numbers_of_torch_go_on_after_a_call(tmp_path: Path) -> None:
    net, student = Net(), Net(4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    store = logitstore.cache(tmp_path / "store.zarr", {"net": net}, Pictures(), device="cpu")
    logitstore.distill(store, student, lr=1e-2, epochs=1, device="cpu")
    logitstore.evaluate(student, Pictures(40, 2))
    assert torch.equal(torch.rand(3), expected)


def test_a_call_that_is_made_again_does_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = cached(tmp_path, progress=True).digest
    said = capsys.readouterr().out
    assert "captured  net" in said and "teacher  net" in said and first in said
    before = experiments.states(tmp_path)
    assert cached(tmp_path, progress=True).digest == first
    assert capsys.readouterr().out.startswith("nothing to do: net captured already and unchanged")
    assert experiments.states(tmp_path) == before


def test_a_student_that_is_trained_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    cached(tmp_path)
    first = distilled(tmp_path)
    again = distilled(tmp_path, progress=True)
    assert "nothing to do: student is trained and unchanged" in capsys.readouterr().out
    assert not again.training and torch.equal(again.first.weight, first.first.weight)
    assert not caplog.records
    # A script that does not seed makes other weights: those of the finished training count, with a warning.
    other = distilled(tmp_path, seed=9)
    assert torch.equal(other.first.weight, first.first.weight)
    assert "began with other weights" in caplog.text


def test_a_training_resumes_whatever_weights_the_script_begins_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached(tmp_path)
    whole = distilled(tmp_path)
    save = Checkpoints.save

    def saved(self: Checkpoints, checkpoint: Any) -> None:
        save(self, checkpoint)
        raise KeyboardInterrupt

    with mock.patch.object(Checkpoints, "save", saved), pytest.raises(KeyboardInterrupt):
        distilled(tmp_path, checkpoint=tmp_path / "other")
    with pytest.raises(SpecMismatch, match="temperature"):
        distilled(tmp_path, checkpoint=tmp_path / "other", temperature=5.0)
    resumed = distilled(tmp_path, seed=9, checkpoint=tmp_path / "other")
    assert "began with other weights" in caplog.text
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_nothing_is_printed_unless_it_is_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen = Recorder()
    store = cached(tmp_path, progress=seen)
    logitstore.cluster(store, clusters=2, classes_per_cluster=2)
    distilled(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert seen.of("caching net")[-1] == (hands.ROWS * 3, hands.ROWS * 3)


def test_another_teacher_is_added_and_the_first_is_kept(tmp_path: Path) -> None:
    cached(tmp_path)
    store = logitstore.cache(
        tmp_path / "store.zarr",
        {"net": Net(), "other": Net(5, seed=2)},
        Pictures(),
        views=3,
        augment=Darker(),
        batch_size=24,
        block_rows=BLOCK_ROWS,
        device="cpu",
    )
    assert list(store.teachers) == ["net", "other"]
    sets = logitstore.cluster(store, clusters=2, classes_per_cluster=2, name="pairs")
    assert sets.sets.shape == (2, 2) and store.clusterings == ["pairs"]


def test_a_store_without_inputs_takes_them_from_the_data_set(tmp_path: Path) -> None:
    cached(tmp_path / "with")
    cached(tmp_path / "without", store_inputs=False, order="as_is")
    cached(tmp_path / "as", order="as_is")
    student = distilled(tmp_path / "without", dataset=Pictures())
    assert torch.equal(student.first.weight, distilled(tmp_path / "as").first.weight)
    with pytest.raises(RowMismatch, match=r"row 0 "):
        distilled(tmp_path / "without", dataset=Pictures(seed=5), checkpoint=None)


def test_a_student_of_labels_alone_needs_no_teacher(tmp_path: Path) -> None:
    cached(tmp_path)
    student = distilled(tmp_path, targets="hard", temperature=1.0, label_smoothing=0.1, views="all")
    assert not student.training
    other = distilled(tmp_path, loss={"name": "dkd", "beta": 2.0}, checkpoint=None, rows=0.5, ema=0.9)
    assert not torch.equal(student.first.weight, other.first.weight)


def test_examples_of_the_shape_of_the_views_are_scored_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = Pictures(40, 2)
    settings: dict[str, Any] = {
        "augment": random_resized_crop((2, 8)),
        "evaluation": (pictures.images.reshape(-1, 2, 8), pictures.targets),
    }
    cached(tmp_path, first_view=0, **settings)
    distilled(tmp_path, **settings)
    assert "of shape" not in caplog.text
    # Negative control: images of the shape that the views are made from.
    distilled(tmp_path, **settings | {"evaluation": pictures})
    assert "inputs of shape (4, 4), those of the transfer set have (2, 8)" in caplog.text


@pytest.mark.parametrize("named", [True, False])
def test_a_teacher_for_the_size_of_the_crops_names_first_view(
    tmp_path: Path, sentence: Any, named: bool
) -> None:
    """Whether the set names its classes, or the teacher is run to count them."""
    net = torch.nn.Sequential(torch.nn.Flatten(), hands.Floats(), torch.nn.Linear(9, hands.CLASSES))
    pictures: Any = Pictures() if named else Pictures().images
    settings: dict[str, Any] = {"dataset": pictures, "views": 2, "device": "cpu"}
    with pytest.raises(FactoryError) as refused:
        logitstore.cache(
            tmp_path / "store.zarr", {"net": net}, augment=random_resized_crop((3, 3)), **settings
        )
    sentence(refused.value)
    with pytest.raises(BadLogitsError, match="correct the model for uint8 inputs"):  # negative control
        logitstore.cache(tmp_path / "store.zarr", {"net": net}, augment=shift(pixels=1), **settings)


def test_scores_are_those_of_the_network_in_evaluation_mode(tmp_path: Path) -> None:
    student, examples = Net(), Pictures(40, 2)
    examples.targets[:5] = -1  # unknown labels are left out
    score = logitstore.evaluate(student, examples, device="cpu", batch_size=7)
    assert student.training
    with torch.no_grad():
        logits = student.eval()(torch.from_numpy(examples.images)).numpy()
    assert (score.rows, score.errors) == (35, (logits.argmax(1) != examples.targets)[5:].sum())
    with pytest.raises(BadDataError, match="found a set without labels"):
        logitstore.evaluate(student, examples.images, device="cpu")


# Another network, set or setting under the same name


def test_other_things_under_the_same_name_are_refused(tmp_path: Path, sentence: Any) -> None:
    cached(tmp_path)
    changes: list[dict[str, Any]] = [
        {"batch_size": 25},
        {"augment": Darker(41)},
        {"encoding": "float32"},
        {"dataset": Pictures(seed=4)},
        {"teachers": {"net": Net(seed=1)}},
        {"teachers": {"net": Net(9)}},
    ]
    for change in changes:
        settings: dict[str, Any] = {"teachers": {"net": Net()}, "dataset": Pictures(), "views": 3}
        settings |= {
            "augment": Darker(),
            "batch_size": 24,
            "block_rows": BLOCK_ROWS,
            "device": "cpu",
        } | change
        with pytest.raises((SpecMismatch, RowMismatch)) as refused:
            logitstore.cache(tmp_path / "store.zarr", **settings)
        sentence(refused.value)


def test_a_student_without_the_augmentation_is_refused(tmp_path: Path, sentence: Any) -> None:
    cached(tmp_path)
    with pytest.raises(ConfigError) as missing:
        distilled(tmp_path, augment=None)
    with pytest.raises(RowMismatch, match="expected the input that the teacher saw"):
        distilled(tmp_path, augment=Darker(3))
    sentence(missing.value)


def test_a_store_without_a_teacher_or_inputs_is_refused(tmp_path: Path, sentence: Any) -> None:
    """A capture of some classes is no teacher of all."""
    store = logitstore.create_store(tmp_path / "s", num_classes=4, digests=np.zeros(9, np.uint64))
    with store.capture("some", provenance={}, classes=[2, 0]) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, np.eye(2, dtype=np.float32)[np.zeros(len(rows), int)])
    for call in (
        lambda: logitstore.distill(store, Net(), lr=1e-2, epochs=1),
        lambda: logitstore.cluster(store, clusters=2, classes_per_cluster=2),
    ):
        with pytest.raises(PartNotFound) as refused:
            call()
        sentence(refused.value)
    cached(tmp_path, store_inputs=False)
    with pytest.raises(ConfigError) as without_inputs:
        distilled(tmp_path)
    sentence(without_inputs.value)


# Killed, and on several ranks


def test_a_process_group_without_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, sentence: Any) -> None:
    """A script on GPUs may have made one; that of `support.hands` has gloo, and is used."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(ConfigError) as refused, session():
        pass
    sentence(refused.value)


def test_killed_calls_resume_to_the_same_bytes(memory_path: Path) -> None:
    report = apart("support.hands:killed", work=str(memory_path), puts=[3, 20], checkpoints=[1, 3])
    assert report["statuses"] == [[0], *[[-9, 0]] * 4]
    whole = report["results"][0]
    assert (
        any(name.endswith("student-seed0.safetensors") for name in whole) and "store.zarr/zarr.json" in whole
    )
    for result in report["results"][1:]:
        assert result == whole
    assert report["identities"] == hands.identities(), "they differ in another process"


@pytest.mark.xdist_group("ranks")
def test_two_ranks_share_the_calls_of_a_script(memory_path: Path) -> None:
    report = apart("support.hands:shared", work=str(memory_path))
    assert report["statuses 1"] == [0] and report["statuses 2"] == [0, 0]
    assert report["statuses own"] == [0, 0]
    assert report["store 1"] == report["store 2"] == report["store own"]
    one, other = report["weights 2"]
    assert one == other
    assert report["differing"] == [1, 1]
    assert report["said"][0].startswith("SpecMismatch: rank 1 of 2: expected teacher[0].weights = 'sha256:")
    assert report["said"][1].startswith("OtherRankFailed")


# Validation and logs


def test_a_network_ends_with_its_best_epoch_and_a_function_sees_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a data set in hand; the weights of the last epoch stand beside."""
    cached(tmp_path)
    seen: list[tuple[int, dict[str, float]]] = []
    with mock.patch.object(Validation, "_rank", lambda *_: (0.0, 0.0)):  # of equal epochs the first counts
        best = distilled(
            tmp_path,
            validation=Pictures(40, 5),
            keep="best",
            log=lambda step, values: seen.append((step, values)),
            progress=True,
        )
    assert "validated best epoch 1: " in capsys.readouterr().out
    accuracies = [values["validation/accuracy"] for _, values in seen if "validation/accuracy" in values]
    assert len(accuracies) == 2
    assert logitstore.evaluate(best, Pictures(40, 5)).accuracy == pytest.approx(accuracies[0])
    last = Net(6)
    load_weights(last, tmp_path / "student" / "students" / "student-seed0@last.safetensors")
    assert logitstore.evaluate(last, Pictures(40, 5)).accuracy == pytest.approx(accuracies[1])
    # The set that chose is part of what the student is: another one begins a new training.
    again = distilled(tmp_path, validation=Pictures(40, 5), keep="best", progress=True)
    assert "nothing to do" in capsys.readouterr().out and torch.equal(again.first.weight, best.first.weight)
    distilled(tmp_path, validation=Pictures(40, 6), keep="best", progress=True)
    assert "nothing to do" not in capsys.readouterr().out


def test_a_share_is_held_out_of_the_rows(tmp_path: Path) -> None:
    cached(tmp_path)
    seen: list[dict[str, float]] = []
    distilled(
        tmp_path, validation=0.2, checkpoint=None, checkpoint_every=None, log=lambda _, v: seen.append(v)
    )
    told = [values["validation/rows"] for values in seen if "validation/rows" in values]
    assert told == [30.0, 30.0]
    assert [values["epoch/rows"] for values in seen if "epoch/rows" in values] == [120.0, 240.0]
    assert all(values["validation/kl"] > 0 for values in seen if "validation/rows" in values)


def test_a_choice_on_the_set_of_the_scores_and_a_log_without_a_place_are_refused(
    tmp_path: Path, sentence: Any
) -> None:
    cached(tmp_path)
    test = Pictures(40, 2)
    wrong: list[dict[str, Any]] = [
        {"validation": test, "evaluation": test, "keep": "best"},
        {"keep": "best"},
        {"validation": 2.0},
        {"log": "tensorboard", "checkpoint": None},
    ]
    for arguments in wrong:
        with pytest.raises(ConfigError) as refused:
            distilled(tmp_path, **arguments)
        sentence(refused.value)
    with pytest.raises(ConfigError) as refused:
        check_log("wandb", tmp_path)
    sentence(refused.value)
    distilled(tmp_path, validation=test, evaluation=test)  # control: to watch it chooses nothing
