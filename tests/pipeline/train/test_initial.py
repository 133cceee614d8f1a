"""Weights that a student begins with: read as a teacher's are, part of its identity, and a new head where it is asked for."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import experiments
from support.experiments import CLASSES, SHAPE, document, parsed, student
from support.messages import Sentences
from torch import Tensor

from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.models.initial import initial_identity
from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.train import network, stage
from logitstore.pipeline.train.network import begun_network
from logitstore.pipeline.train.stage import train_student
from logitstore.pipeline.train.todo import StudentSeed, find_student, student_identity, student_seeds
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import BadDataError, ConfigError, LogitStoreError

FEW = experiments.some_digits(2, 0)[0]
SETTINGS = ("weights", "weights_key", "allow_pickle", "reset_classifier")


def state(classes: int = CLASSES, seed: int = 7) -> dict[str, Tensor]:
    """The tensors of a student's network, other than those of its own seeds."""
    torch.manual_seed(seed)
    return mlp([6], input_shape=SHAPE, num_classes=classes).state_dict()


def begins(folder: Path, **keys: Any) -> tuple[Experiment, StudentSeed]:
    """The experiment in a folder, of one student with these keys."""
    experiment = parsed(document() | {"student": [student("small", **keys)]}, folder)
    return experiment, next(iter(student_seeds(experiment)))


def begun(folder: Path, **keys: Any) -> dict[str, Tensor]:
    """The tensors with which a student begins."""
    return begun_network(*begins(folder, **keys), FEW, CLASSES)[0].state_dict()


def refused(folder: Path, kind: type[LogitStoreError] = BadDataError, **keys: Any) -> str:
    with pytest.raises(kind) as caught:
        begun(folder, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The names under which two networks have the same numbers."""
    assert one.keys() == other.keys()
    return {name for name in one if torch.equal(one[name], other[name])}


HEAD = {"head.weight", "head.bias"}


def test_a_file_is_read_in_every_form_that_a_teachers_may_have(tmp_path: Path) -> None:
    ours = state()
    save_file(ours, tmp_path / "plain.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in ours.items()}},
        tmp_path / "checkpoint.pth",
    )
    two = {"model": ours, "ema": state(seed=8)}
    torch.save(two, tmp_path / "two.pth")
    plain = begun(tmp_path, weights="plain.safetensors")
    assert equal(plain, ours) == set(ours)
    assert equal(begun(tmp_path, weights="checkpoint.pth", allow_pickle=True), ours) == set(ours)
    averaged = begun(tmp_path, weights="two.pth", allow_pickle=True, weights_key="ema")
    assert equal(averaged, two["ema"]) == set(ours)
    assert not equal(begun(tmp_path), ours)  # negative control: its own seed's


def test_another_number_of_classes_is_refused_or_gets_a_new_head(
    tmp_path: Path, sentence: Sentences, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = state(classes=10)
    monkeypatch.setattr(network, "_logged", set())
    save_file(theirs, tmp_path / "ten.safetensors")
    sentence(refused(tmp_path, weights="ten.safetensors"))
    with caplog.at_level(logging.WARNING, logger=network.__name__):
        made = begun(tmp_path, weights="ten.safetensors", reset_classifier=True)
        begun(tmp_path, weights="ten.safetensors", reset_classifier=True)
    (line,) = (record.getMessage() for record in caplog.records)
    sentence(line)
    fresh = begun(tmp_path)
    assert equal(made, fresh) == HEAD  # as it is drawn without weights
    assert all(torch.equal(made[name], theirs[name]) for name in made.keys() - HEAD)


def test_a_head_is_new_whatever_the_file_has_in_its_place(tmp_path: Path, sentence: Sentences) -> None:
    """Of as many classes, without any, and behind a prefix."""
    ours = state()
    save_file(ours, tmp_path / "same.safetensors")
    save_file({n: t for n, t in ours.items() if n not in HEAD}, tmp_path / "headless.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in ours.items()}, tmp_path / "prefixed.safetensors")
    fresh = begun(tmp_path)
    for name in ("same", "headless", "prefixed"):
        made = begun(tmp_path, weights=f"{name}.safetensors", reset_classifier=True)
        assert equal(made, fresh) == HEAD
        assert equal(made, ours) == ours.keys() - HEAD
    sentence(refused(tmp_path, weights="headless.safetensors"))


def test_other_weights_than_those_of_the_network_are_refused(tmp_path: Path, sentence: Sentences) -> None:
    torch.manual_seed(0)
    save_file(mlp([7], input_shape=SHAPE, num_classes=CLASSES).state_dict(), tmp_path / "wider.safetensors")
    sentence(refused(tmp_path, weights="wider.safetensors", reset_classifier=True))
    assert "reset_classifier" not in refused(tmp_path, weights="wider.safetensors")
    assert "expected a file of weights" in refused(tmp_path, weights="absent.safetensors")
    (tmp_path / "fixed.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))\n"
    )
    save_file(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4)).state_dict(), tmp_path / "fixed.st"
    )
    (tmp_path / "fixed.st").rename(tmp_path / "fixed.safetensors")
    fixed = {"factory": "fixed:net", "args": {}, "weights": "fixed.safetensors"}
    sentence(refused(tmp_path, ConfigError, **fixed, reset_classifier=True))
    assert begun(tmp_path, **fixed)  # negative control


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"weights": "factory"}, "student[0].weights: expected a file of weights, found 'factory'"),
        ({"weights_key": "ema"}, "expected a file of weights beside weights_key, found no weights"),
        ({"allow_pickle": True}, "expected a file of weights beside allow_pickle, found no weights"),
        ({"reset_classifier": True}, "expected weights beside reset_classifier, found no weights"),
        (
            {"timm": "resnet18"},
            "expected one of factory, hugging_face, timm, torchvision, found factory and timm",
        ),
        ({"file": "net.pt2"}, "student[0].file: expected a known key, found 'file'; name the factory"),
        ({"seed": 1}, "student[0].seed: expected a known key, found 'seed'; set train.seeds"),
    ],
)
def test_keys_without_effect_are_refused(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        begins(tmp_path, **keys)
    assert expected in str(caught.value)


# Identity


def workspace(experiment: Experiment, models: Path) -> Workspace:
    store = open_store(experiments.finished() / "out" / "store.zarr")
    return Workspace(experiment, Path(str(store.path)), Models(models), device="cpu")


def test_the_bytes_of_the_weights_are_part_of_the_identity(tmp_path: Path) -> None:
    experiments.write_data(tmp_path)
    save_file(state(), tmp_path / "one.safetensors")
    experiment, run = begins(tmp_path, weights="one.safetensors", train=experiments.train(epochs=1))
    work = workspace(experiment, tmp_path / "models")
    record = train_student(work, run)
    assert record.identity["initial"]["weights"].startswith("sha256:")
    assert find_student(work, run) is not None
    (tmp_path / "one.safetensors").rename(tmp_path / "moved.safetensors")
    moved, again = begins(tmp_path, weights="moved.safetensors", train=experiments.train(epochs=1))
    assert find_student(workspace(moved, tmp_path / "models"), again) is not None  # of the same bytes
    save_file(state(seed=8), tmp_path / "moved.safetensors")
    assert find_student(workspace(moved, tmp_path / "models"), again) is None


def test_each_setting_of_the_reading_is_part_of_the_identity(tmp_path: Path) -> None:
    torch.save({"model": state()}, tmp_path / "one.pth")
    given: dict[str, Any] = {"weights": "one.pth", "allow_pickle": True}

    def identity(**keys: Any) -> Any:
        experiment, run = begins(tmp_path, **keys)
        work = workspace(experiment, tmp_path)
        return student_identity(experiment, run, work.store)

    found = [identity(), identity(**given), identity(**given, weights_key="model")]
    found.append(identity(**given, reset_classifier=True))
    assert all(one != other for number, one in enumerate(found) for other in found[:number])
    # A student without such keys has the identity that it had before there were any.
    assert not {*SETTINGS, "timm", "torchvision", "hugging_face", "initial", "files"} & found[0].keys()


def test_a_configuration_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = [{"config.json": "sha256:before"}, {"config.json": "sha256:after"}]

    def changing(experiment: Experiment, run: StudentSeed, store: Any) -> dict[str, Any]:
        return {**student_identity(experiment, run, store), "files": found.pop(0)}

    monkeypatch.setattr(stage, "student_identity", changing)
    experiment, run = begins(tmp_path)
    with pytest.raises(BadDataError, match=r"expected the files .*before.*, found .*sha256:after"):
        train_student(workspace(experiment, tmp_path / "models"), run)
    found += [{}, {}]
    assert train_student(workspace(experiment, tmp_path / "models"), run)  # negative control


def hugging_face(folder: Path, **keys: Any) -> dict[str, Any]:
    """The digests in the identity of a student of Hugging Face; no transformers is needed for them."""
    table = {"name": "small", "teachers": ["wide"], "train": experiments.train(), **keys}
    experiment = parsed(document() | {"student": [table]}, folder)
    return initial_identity(experiment.students[0], folder)


def test_the_files_of_hugging_face_are_part_of_the_identity(tmp_path: Path) -> None:
    vit = tmp_path / "vit"
    vit.mkdir()
    (vit / "config.json").write_text("{}")
    alone = hugging_face(tmp_path, hugging_face="vit")
    assert alone == hugging_face(tmp_path, hugging_face="vit/config.json")
    assert list(alone) == ["files"] and list(alone["files"]) == ["config.json"]
    (vit / "preprocessor_config.json").write_text("{}")
    save_file(state(), vit / "model.safetensors")
    whole = hugging_face(tmp_path, hugging_face="vit")
    assert set(whole["files"]) == {"config.json", "preprocessor_config.json"}
    config = hugging_face(tmp_path, hugging_face="vit/config.json")
    assert config == {"files": whole["files"]}  # the configuration alone begins with new weights
    # The folder, named in either way, and the file inside it.
    for weights in ("vit", "vit/model.safetensors"):
        assert hugging_face(tmp_path, hugging_face="vit/config.json", weights=weights) == whole
    save_file(state(seed=8), vit / "model.safetensors")
    other = hugging_face(tmp_path, hugging_face="vit")
    assert other["files"] == whole["files"] and other["initial"] != whole["initial"]


@pytest.mark.parametrize(
    ("file", "found"),
    [("pytorch_model.bin", "a pickle"), ("adapter_config.json", "an adapter")],
)
def test_a_folder_of_other_weights_does_not_begin_with_new_ones(
    tmp_path: Path, file: str, found: str
) -> None:
    vit = tmp_path / "vit"
    vit.mkdir()
    (vit / "config.json").write_text("{}")
    assert hugging_face(tmp_path, hugging_face="vit")  # negative control
    (vit / file).write_text("{}")
    with pytest.raises(BadDataError, match=found):
        hugging_face(tmp_path, hugging_face="vit")


def test_weights_that_change_between_the_digest_and_the_training_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state(), tmp_path / "one.safetensors")
    experiment, run = begins(tmp_path, weights="one.safetensors")
    monkeypatch.setattr(
        stage, "begun_network", lambda *given: (begun_network(*given)[0], "sha256:of another file")
    )
    with pytest.raises(BadDataError, match=r"expected the weights sha256:.*found sha256:of another file"):
        train_student(workspace(experiment, tmp_path / "models"), run)
