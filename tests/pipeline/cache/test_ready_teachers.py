"""Teachers that a factory returns with their weights: captured, and known by the tensors that it returned."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import small_experiment as small
from support.messages import Sentences
from torch import nn

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.cache.teachers import load_teacher
from logitstore.pipeline.cache.todo import find_todo
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.models.module_state import state_digest, tensor_digests
from logitstore.pipeline.run import run
from logitstore.pipeline.runtime.inference import forward
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import (
    BadDataError,
    BadLogitsError,
    FactoryError,
    LogitStoreError,
    SpecMismatch,
)

NETS = """
import torch

FILE = __file__.replace("ready_nets.py", "net.pth")


class Out(dict):
    logits = property(lambda self: self["logits"])


class Pixels(torch.nn.Linear):
    main_input_name = "pixel_values"

    def forward(self, inputs):
        return Out(logits=super().forward(inputs))


def net(kind=torch.nn.Linear):
    checkpoint = torch.load(FILE, weights_only=True)
    network = kind(4, 3)
    network.load_state_dict(checkpoint["state_dict"])
    return network.eval()


def of_pixels(problem=None):
    network = net(Pixels)
    network.config = type("Config", (), {"problem_type": problem})()
    return network


def of_tokens():
    network = net(Pixels)
    network.main_input_name = "input_ids"
    return network


def new_head():
    return torch.nn.Sequential(net(), torch.nn.Linear(3, 3))


def untrained():
    return torch.nn.Linear(4, 3)


def seeded():
    torch.manual_seed(5)
    return untrained()


def counted(calls=[]):
    network = net()
    network.scale = torch.tensor(float(len(calls)))
    calls.append(1)
    return network


kept = []


def same_again():
    kept[:] = kept or [net()]
    return kept[0]
"""


def write_checkpoint(folder: Path, bias: float = 0.0) -> None:
    weight = 3 * torch.eye(4)[:3]
    state = {"weight": weight, "bias": torch.full((3,), bias)}
    torch.save(
        {"epoch": 3, "state_dict": state, "ema": {"weight": 2 * weight, "bias": state["bias"]}},
        folder / "net.pth",
    )


def experiment(folder: Path, factory: str = "net", more: str = "", weights: str = "factory") -> Path:
    """Write the small experiment with a ready teacher."""
    small.lay_out(folder)
    (folder / "ready_nets.py").write_text(NETS)
    write_checkpoint(folder)
    return small.write_experiment(
        folder,
        ('factory = "faulty:linear"', f'factory = "ready_nets:{factory}"'),
        ('weights = "line.safetensors"', f'weights = "{weights}"\n{more}'),
    )


def workspace(path: Path) -> Workspace:
    return Workspace.of_folder(load_experiment(path), path.parent / "out", device="cpu")


def refused(path: Path, kind: type[LogitStoreError] = LogitStoreError) -> LogitStoreError:
    """Return the error of stage one, a line that comes before anything is written."""
    with pytest.raises(kind) as caught:
        cache(workspace(path))
    assert "\n" not in str(caught.value) and not (path.parent / "out" / "store.zarr").exists()
    return caught.value


@pytest.mark.parametrize("factory", ["net", "of_pixels", "seeded"])
def test_a_ready_teacher_is_captured_and_known_again(tmp_path: Path, factory: str) -> None:
    path = experiment(tmp_path, factory)
    report = run(load_experiment(path), tmp_path / "out", device="cpu")
    store, work = open_store(tmp_path / "out" / "store.zarr"), workspace(path)
    module = load_teacher(work, work.experiment.teacher_members()[0])
    inputs = np.load(tmp_path / "data.npz")["inputs"]
    with torch.no_grad():
        expected = forward(module, torch.from_numpy(inputs), "net").numpy()
    found = store.teachers["line"].read(slice(None), 0)
    np.testing.assert_allclose(found, expected - expected.max(axis=1, keepdims=True), atol=0.02, rtol=1e-2)
    weights = store.teachers["line"].part.spec.identity["teacher"]["weights"]
    assert weights == state_digest(tensor_digests(module, "net")) and report.done
    again = run(load_experiment(path), tmp_path / "out", device="cpu")
    assert not again.done and again.table == report.table


def test_other_weights_behind_a_factory_are_another_teacher(tmp_path: Path, sentence: Sentences) -> None:
    """Its code and its arguments are the same."""
    path = experiment(tmp_path)
    cache(workspace(path))
    assert not find_todo(workspace(path))
    write_checkpoint(tmp_path, bias=1.0)
    with pytest.raises(SpecMismatch) as caught:
        find_todo(workspace(path))
    sentence(caught.value)
    write_checkpoint(tmp_path)  # control: its tensors count, not its time
    assert not find_todo(workspace(path))


@pytest.mark.parametrize("factory", ["new_head", "untrained", "counted"])
def test_a_network_that_is_not_loaded_in_full_is_refused(
    tmp_path: Path, factory: str, sentence: Sentences
) -> None:
    sentence(refused(experiment(tmp_path, factory), FactoryError))


def test_a_network_that_is_kept_between_calls_is_refused(tmp_path: Path, sentence: Sentences) -> None:
    """Two calls that return one object would agree, whatever is in it."""
    sentence(refused(experiment(tmp_path, "same_again"), FactoryError))


def test_a_model_of_hugging_face_that_is_no_classifier_of_images_is_refused(
    tmp_path: Path, sentence: Sentences
) -> None:
    sentence(refused(experiment(tmp_path, "of_tokens"), BadLogitsError))
    path = experiment(tmp_path, "of_pixels", 'args = { problem = "multi_label_classification" }')
    sentence(refused(path, BadDataError))


def test_the_part_of_a_file_belongs_to_the_identity(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file, two networks in it."""
    more = 'allow_pickle = true\nweights_key = "state_dict"'
    path = experiment(tmp_path, "untrained", more, weights="net.pth")
    report = run(load_experiment(path), tmp_path / "out", device="cpu")
    text = path.read_text()
    path.write_text(text.replace('weights_key = "state_dict"', 'weights_key = "ema"'))
    with pytest.raises(SpecMismatch) as caught:
        run(load_experiment(path), tmp_path / "out", device="cpu")
    assert "weights_key" in str(caught.value) and "ema" in str(caught.value)
    # Another store: scores of the one part are not those of the other.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "evaluation.json").write_bytes((tmp_path / "out" / "evaluation.json").read_bytes())
    with caplog.at_level(logging.INFO):
        other = run(load_experiment(path), tmp_path / "other", device="cpu")
    assert "evaluate line" in other.done or other.table[0].scores[0].nll != report.table[0].scores[0].nll


# Digests of tensors


class Net(nn.Module):
    """Tensors at each place where a network may keep some."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.zeros_(self.layer.bias)  # type: ignore[arg-type]
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.scale = torch.tensor(2.0)
        self.numbers = {"mean": [np.float32([1, 2])]}
        self.others = [nn.Linear(1, 1, bias=False)]
        nn.init.ones_(self.others[0].weight)
        self.mine = self.others  # twice


def digest(module: nn.Module) -> str:
    return state_digest(tensor_digests(module, "net"))


def test_every_tensor_of_a_network_has_a_name() -> None:
    names = set(tensor_digests(Net(), "net"))
    assert names == {
        *("layer.weight", "layer.bias", "table", "scale", "numbers[mean][0]", "others[0].weight"),
    }


def test_the_digest_of_a_network_stays_what_it_was() -> None:
    assert digest(Net()) == "sha256:6da8a15348825acc81e7252a418ebcd3fb6425af1786bbfd64885a69655f39ba"


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.layer.weight.data.add_(1),
        lambda net: net.table.add_(1),
        lambda net: net.scale.add_(1),
        lambda net: net.numbers["mean"][0].__iadd__(1),
        lambda net: net.others[0].weight.data.add_(1),
        lambda net: net.half(),
        lambda net: net.register_buffer("more", torch.zeros(1)),
    ],
)
def test_every_tensor_counts(change: Any) -> None:
    changed = Net()
    with torch.no_grad():
        change(changed)
    assert digest(changed) != digest(Net())


def test_layout_mode_and_gradients_do_not_count() -> None:
    """Negative control."""
    net: Any = Net()
    net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    assert net.layer.weight.stride() != Net().layer.weight.stride()
    assert digest(net) == digest(Net())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_of_other_kinds_are_read() -> None:
    """Sparse, quantised, complex and of bfloat16: each value has a digest of its own."""
    values = [
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.eye(2), 0.5, 0, torch.qint8),
        torch.quantize_per_tensor(torch.eye(2) * 2, 1.0, 0, torch.qint8),
        torch.eye(2, dtype=torch.complex64).conj(),
        torch.eye(2, dtype=torch.bfloat16),
        torch.tensor(True),
        torch.zeros(0, 3),
    ]
    found = set()
    for value in values:
        net = nn.Module()
        net.register_buffer("value", value)
        found.add(digest(net))
    assert len(found) == len(values)


class Odd(nn.Module):
    """A state dict with a value of its own in it."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def get_extra_state(self) -> object:
        return self.value

    def set_extra_state(self, state: object) -> None:
        self.value = state


def test_values_in_a_state_dict_are_read_and_objects_refused(sentence: Sentences) -> None:
    plain = [None, 3, {"a": [1.5, "b"]}, io.BytesIO(b"ab"), b"cd", (torch.float32, torch.zeros(2))]
    assert len({digest(Odd(value)) for value in plain}) == len(plain)
    for module in (Odd(object()), nn.Linear(2, 2, device="meta")):
        with pytest.raises(BadDataError) as caught:
            digest(module)
        sentence(caught.value)
