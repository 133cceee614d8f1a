"""`logitstore.load_student`: the network that was scored, and no other."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import experiments
from support.messages import Sentences

import logitstore
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.in_hand import trained
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.train.stage import train_student
from logitstore.pipeline.train.todo import student_seeds
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, ConfigError, LogitStoreError, SpecMismatch
from logitstore.storage.format.documents import canonical_json

FILE = """
[transfer_set]
factory = "logitstore.pipeline.datasets:arrays"
args = { file = "train.npz" }

[cache]
views = 3
augment = { factory = "logitstore.pipeline.augment:shift", args = { pixels = 1 } }

[[teacher]]
name = "wide"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [12] }
train = { lr = 1e-2, epochs = 1 }

[[student]]
name = "small"
factory = "mine:net"
args = { width = 6 }
teachers = ["wide"]
train = { lr = 1e-2, epochs = 1, seeds = [0, 1] }
"""
MODULE = """
from torch import nn


def net(width, *, input_shape, num_classes):
    return nn.Sequential(
        nn.Flatten(), Scaled(), nn.Linear(input_shape[0] * input_shape[1], width), nn.ReLU(), nn.Linear(width, num_classes)
    )


class Scaled(nn.Module):
    def forward(self, pixels):
        return pixels.float() / 255
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment whose student is trained from both seeds, in `out`, without its store."""
    tmp_path = tmp_path_factory.mktemp("finished")
    experiments.write_data(tmp_path)
    (tmp_path / "a.toml").write_text(FILE)
    (tmp_path / "mine.py").write_text(MODULE)
    experiment = load_experiment(tmp_path / "a.toml")
    store = experiments.finished() / "out" / "store.zarr"
    work = Workspace(experiment, store, Models(tmp_path / "out" / "models"), device="cpu")
    for run in student_seeds(experiment):
        train_student(work, run)
    return tmp_path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of the first seed."""
    path = weights(folder, 0).with_suffix(".json")
    record = json.loads(path.read_text())
    change(record)
    path.write_bytes(canonical_json(record))


def loaded(folder: Path, name: str = "small", **keys: Any) -> torch.nn.Module:
    return logitstore.load_student(folder / "a.toml", name, **({"out": folder / "out"} | keys))


def refused(kind: type[LogitStoreError], *given: Any, **keys: Any) -> str:
    with pytest.raises(kind) as caught:
        loaded(*given, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights(folder: Path, seed: int) -> Path:
    return folder / "out" / "models" / "students" / f"small-seed{seed}.safetensors"


def test_each_seed_is_loaded_with_its_weights_and_draws_stay(folder: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = loaded(folder), loaded(folder, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    for seed, module in enumerate((first, second)):
        assert not module.training
        for name, tensor in load_file(weights(folder, seed)).items():
            assert torch.equal(module.state_dict()[name], tensor)
    assert not torch.equal(first.state_dict()["4.weight"], second.state_dict()["4.weight"])
    images = torch.from_numpy(experiments.some_digits(5, 0)[0])
    assert first(images).shape == (5, experiments.CLASSES)
    moved = folder / "elsewhere"
    (folder / "out" / "models").rename(moved)
    assert loaded(folder, out=None, models=moved)


def test_a_name_a_seed_or_a_folder_that_is_not_there_is_one_line(folder: Path, sentence: Sentences) -> None:
    sentence(refused(ConfigError, folder, "smal"))
    sentence(refused(ConfigError, folder, seed=7))
    sentence(refused(BadDataError, folder, out=folder / "elsewhere"))
    weights(folder, 0).with_suffix(".json").write_text("{}")
    sentence(refused(BadDataError, folder))
    weights(folder, 1).with_suffix(".json").unlink()
    sentence(refused(BadDataError, folder, seed=1))


def test_weights_that_are_not_those_of_the_record_are_refused(folder: Path, sentence: Sentences) -> None:
    shutil.copy(weights(folder, 1), weights(folder, 0))
    line = refused(BadDataError, folder)
    assert "of its record, found sha256:" in line
    assert loaded(folder, seed=1)  # negative control


def test_another_network_than_was_trained_is_refused(folder: Path, sentence: Sentences) -> None:
    path = folder / "a.toml"
    path.write_text(FILE.replace("width = 6", "width = 7"))
    sentence(refused(SpecMismatch, folder))
    path.write_text(FILE.replace("lr = 1e-2", "lr = 3e-2"))  # its training is no part of the network
    assert loaded(folder)


def test_the_factory_of_a_record_is_not_called(folder: Path) -> None:
    """A folder of models that came from elsewhere is data."""
    change_record(folder, lambda record: record["identity"].update(factory="os:system"))
    assert "'os:system'" in refused(SpecMismatch, folder)


def test_code_that_has_changed_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    with caplog.at_level(logging.WARNING, logger=trained.__name__):
        loaded(folder)
        assert not caplog.records  # negative control
        change_record(folder, lambda record: record["identity"]["source"].update({"mine.py": "sha256:00"}))
        loaded(folder)
    (line,) = (entry.getMessage() for entry in caplog.records)
    sentence(line)


def test_a_record_of_an_earlier_version_takes_the_store(folder: Path) -> None:
    change_record(folder, lambda record: record["facts"].pop("input_shape"))
    with pytest.raises(LogitStoreError, match=r"store\.zarr"):
        loaded(folder)
    shutil.copytree(experiments.finished() / "out" / "store.zarr", folder / "out" / "store.zarr")
    assert torch.equal(loaded(folder).state_dict()["4.bias"], load_file(weights(folder, 0))["4.bias"])
