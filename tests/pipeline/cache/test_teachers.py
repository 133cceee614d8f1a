"""Teachers from files of whole networks and by name, and the order of their classes.

Linear networks of four inputs and three classes: the first columns are the largest. Networks of timm and torchvision are
tried in tests/integrations.
"""

import hashlib
import json
import logging
import os
import sys
import types
import unicodedata
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import small_experiment as small

from logitstore.pipeline.experiment.document import Experiment, load_experiment, parse_experiment
from logitstore.pipeline.models.class_names import (
    check_class_order,
    is_generic,
    module_class_names,
    stated_class_names,
)
from logitstore.pipeline.models.exported import Exported, exported
from logitstore.pipeline.models.libraries import timm_model
from logitstore.pipeline.models.sources import model_files, source_digests, unchanged
from logitstore.pipeline.run import run
from logitstore.pipeline.runtime.inference import is_placed
from logitstore.storage.errors import BadDataError, ConfigError, LogitStoreError, SpecMismatch

NAMES = ["a", "b", "c"]


class Net(torch.nn.Module):
    """Dropout, so that training and evaluation differ, and a layer."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.weight.copy_(3 * torch.eye(4)[:3] + shift)
            self.layer.bias.zero_()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.nn.functional.dropout(inputs, 0.5, self.training))


class Two(Net):
    """Takes two arguments."""

    def forward(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(inputs + other)


def write_exported(
    path: Path, module: torch.nn.Module | None = None, names: list[str] | None = None, any_size: bool = True
) -> Path:
    """A `.pt2` of a network."""
    dynamic = ({0: torch.export.Dim("batch")},) if any_size else None
    program = torch.export.export(module or Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=dynamic)
    extra = {} if names is None else {"class_names.json": json.dumps(names)}
    torch.export.save(program, path, extra_files=extra)
    return path


def write_scripted(path: Path, names: list[str] | None = None) -> Path:
    """A TorchScript file of a network."""
    extra = {} if names is None else {"class_names.json": json.dumps(names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Net().eval()), str(path), _extra_files=extra)
    return path


INPUTS = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32))


def refused(*arguments: Any, by: Any) -> str:
    """What is said when something is refused: one line."""
    with pytest.raises(LogitStoreError) as caught:
        by(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


# Files of whole networks


@pytest.mark.parametrize("write", [write_exported, write_scripted])
def test_a_network_from_a_file_gives_the_logits_of_the_network(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / ("net.pt2" if write is write_exported else "net.pt"))
    module = exported(path)
    assert not module.training and not module.eval().training
    torch.testing.assert_close(module(INPUTS), Net().eval()(INPUTS))
    assert sum(p.numel() for p in module.parameters()) == 15


def test_an_exported_network_stays_in_evaluation(tmp_path: Path) -> None:
    module = exported(write_exported(tmp_path / "net.pt2"))
    assert isinstance(module, Exported)
    torch.testing.assert_close(module.train()(INPUTS), Net().eval()(INPUTS))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_written_while_it_is_read_is_refused(kind: str, tmp_path: Path) -> None:
    path = file = tmp_path / "net"
    if kind == "folder":
        path.mkdir()
        (path / "config.json").write_text("{}")
        file = path / "model.safetensors"
    file.write_bytes(b"old")
    with unchanged(path):
        file.read_bytes()
    with pytest.raises(BadDataError) as caught, unchanged(path):
        file.write_bytes(b"other")
    assert str(caught.value) == (
        f"{path}: expected a {kind} that does not change while it is read, found a file that was replaced or written to; "
        "run the same command again when nothing writes it any more"
    )


def test_an_exported_file_is_watched_while_it_is_read(tmp_path: Path) -> None:
    path, load = write_exported(tmp_path / "net.pt2"), torch.export.load

    def exchanged(name: str) -> Any:
        found = load(name)
        write_exported(path)
        return found

    with mock.patch.object(torch.export, "load", exchanged):
        assert "found a file that was replaced or written to; " in refused(path, by=exported)


def test_what_is_no_network_for_this_is_told_apart(tmp_path: Path) -> None:
    training = write_exported(tmp_path / "training.pt2", Net().train())
    assert "found aten.dropout.default in training mode; call .eval()" in refused(training, by=exported)
    fixed = write_exported(tmp_path / "fixed.pt2", any_size=False)
    assert "found a network for batches of 2; export it with dynamic_shapes" in refused(fixed, by=exported)
    two = tmp_path / "two.pt2"
    torch.export.save(torch.export.export(Two().eval(), (INPUTS, INPUTS)), two)
    assert "a network of 1 argument, the inputs, found 2 arguments (" in refused(two, by=exported)
    torch.save(Net().state_dict(), tmp_path / "state.pt")
    assert "found a pickle, such as a state dict; " in refused(tmp_path / "state.pt", by=exported)
    script = write_scripted(tmp_path / "script.pt2")
    assert "expected a torch.export file, found a TorchScript file; rename it to end in .pt" in refused(
        script, by=exported
    )
    (tmp_path / "text.pt2").write_text("nothing of the kind")
    assert "found a file of another format; write it with" in refused(tmp_path / "text.pt2", by=exported)
    assert "found no regular file; correct" in refused(tmp_path / "gone.pt2", by=exported)
    assert "found .onnx; set weights and factory" in refused(tmp_path / "net.onnx", by=exported)
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(write_exported(tmp_path / "whole.pt2").read_bytes()[:-200])
    refused(cut, by=exported)


class Scaled(torch.nn.Module):
    """Converts its inputs by their dtype, as networks of pixels do: an exported graph keeps one of the two ways."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs / 255 if inputs.dtype == torch.uint8 else inputs * 1.0


def test_an_exported_network_takes_inputs_of_the_dtype_that_it_was_exported_with(tmp_path: Path) -> None:
    path, dynamic = tmp_path / "net.pt2", ({0: torch.export.Dim("batch")},)
    pixels = torch.full((3, 4), 51, dtype=torch.uint8)
    for given, other in (
        (pixels, pixels.float()),
        (pixels.float(), pixels),
        (pixels.float(), pixels.double()),
    ):
        torch.export.save(torch.export.export(Scaled().eval(), (given,), dynamic_shapes=dynamic), path)
        module = exported(path)
        torch.testing.assert_close(module(given), Scaled()(given))
        assert "with which the network was exported, found inputs of " in refused(other, by=module)
        # Negative control: the graph itself takes them, and gives other numbers or none.
        assert isinstance(module, Exported)
        if {given.dtype, other.dtype} == {torch.uint8, torch.float32}:
            assert not torch.allclose(module.graph(other), Scaled()(other))


class Many(Net):
    """Dropout and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.nn.functional.dropout(self.norm(inputs), 0.5, self.training))


@pytest.mark.parametrize("net", [Net, Many])
def test_a_network_that_was_traced_in_training_is_refused(net: Any, tmp_path: Path) -> None:
    """Its flag is a constant, and eval() changes nothing: each call gave other logits."""
    path = tmp_path / "net.pt"
    for training in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(net().train(training), INPUTS, check_trace=False)
            torch.jit.save(traced, str(path))
        if not training:
            torch.testing.assert_close(exported(path)(INPUTS), net().eval()(INPUTS))
            continue
        said = refused(path, by=exported)
        assert "in training mode; call .eval() on it before torch.jit.trace" in said
        traced.eval()
        if net is Net:
            assert not torch.equal(traced(INPUTS), traced(INPUTS))


class Always(Net):
    """Dropout that no mode turns off, in a branch."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.shape[0] > 1:
            inputs = torch.nn.functional.dropout(inputs, 0.5, True)
        return self.layer(inputs)


def test_dropout_that_is_always_on_is_found_in_a_branch(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Always().eval()), str(tmp_path / "net.pt"))
    assert "found aten.dropout_ in training mode" in refused(tmp_path / "net.pt", by=exported)


def test_a_scripted_network_is_put_into_evaluation(tmp_path: Path) -> None:
    """Negative control: its flag is an attribute, and it may be saved in either mode."""
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Many().train()), str(path))
    torch.testing.assert_close(exported(path)(INPUTS), Many().eval()(INPUTS))


def test_a_graph_of_core_operators_in_training_is_refused(tmp_path: Path) -> None:
    """Decomposed, batch normalisation and dropout have other names."""
    dynamic = ({0: torch.export.Dim("batch")},)
    for net in (Net(), Many()):
        program = torch.export.export(net.train(), (torch.zeros(2, 4),), dynamic_shapes=dynamic)
        path = tmp_path / "net.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.export.save(program.run_decompositions(), path)
        assert " in training mode; call .eval() on it" in refused(path, by=exported)


# The experiment file


def parsed(base: Path = Path(), **teacher: Any) -> Experiment:
    """An experiment of one teacher."""
    document = {"transfer_set": {"factory": "a:b"}, "teacher": [{"name": "t", **teacher}]}
    return parse_experiment(document, where="a.toml", base=base)


def test_a_source_stands_in_the_place_of_a_factory() -> None:
    for key in ("hugging_face", "file"):
        table = parsed(**{key: "here"}, base=Path("/x")).teachers[0]
        assert table.is_whole and table.weights_file == "here" and table.factory.startswith("logitstore.")
        assert parsed(**{key: "here"}, base=Path("/x")).teacher_members()[0].weights == Path("/x/here")
    for key in ("timm", "torchvision"):
        table = parsed(**{key: "resnet18"}, weights="w.safetensors", args={"mean": [0.5]}).teachers[0]
        assert table.args == {"model": "resnet18", "mean": [0.5]} and not table.is_whole
    members = parsed(file="net-{member}.pt2", members=2).teacher_members()
    assert [str(member.weights) for member in members] == ["net-0.pt2", "net-1.pt2"]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({}, "a.toml: teacher[0].factory: expected a value, found no such key; add factory"),
        (
            {"factory": "a:b", "timm": "resnet18", "weights": "w"},
            (
                "a.toml: teacher[0]: expected one of factory, hugging_face, file, timm, torchvision, found factory and "
                "timm; keep one of them"
            ),
        ),
        (
            {"file": "net.pt2", "weights": "w.safetensors"},
            "a.toml: teacher[0].weights: expected source = 'factory', 'timm' or 'torchvision', found source = 'file'; remove weights",
        ),
        (
            {"hugging_face": "vit", "train": {"lr": 1e-3, "epochs": 1}},
            "a.toml: teacher[0].train: expected source = 'factory', 'timm' or 'torchvision', found source = 'hugging_face'; remove train",
        ),
        (
            {"timm": "resnet18"},
            ("a.toml: teacher[0]: expected one of weights, train, found no such key; add weights or train"),
        ),
        (
            {"timm": "resnet18", "weights": "w", "args": {"model": "x"}},
            "a.toml: teacher[0]: expected timm alone, found args.model = 'x'; remove args.model",
        ),
        (
            {"file": "net.pt2", "members": 2},
            (
                "a.toml: teacher[0].file: expected a file name with {member} in it, found 'net.pt2'; write it "
                "like 'wide-{member}.pt2', or remove members"
            ),
        ),
    ],
)
def test_what_does_not_go_together_is_refused(teacher: dict[str, Any], said: str) -> None:
    assert refused(by=lambda: parsed(**teacher)) == said


# From a file into a store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small experiment, its teacher a file."""
    small.lay_out(tmp_path)
    return tmp_path


def with_file(folder: Path, file: str, more: str = "") -> Experiment:
    """The small experiment with a teacher from a file."""
    old = 'factory = "faulty:linear"\nweights = "line.safetensors"'
    return load_experiment(small.write_experiment(folder, (old, f'file = "{file}"{more}')))


def captured(experiment: Experiment, out: Path) -> Any:
    """The store of a run on the CPU."""
    with mock.patch("os.fsync"):
        return run(experiment, out, device="cpu").store


@pytest.mark.parametrize("file", ["net.pt2", "net.pt"])
def test_a_file_is_captured_and_another_one_is_refused_before_it_is_loaded(folder: Path, file: str) -> None:
    write = write_exported if file.endswith("2") else write_scripted
    write(folder / file, names=NAMES)
    experiment = with_file(folder, file)
    store = captured(experiment, folder / "out")
    inputs = torch.from_numpy(np.load(folder / "data.npz")["inputs"])
    expected = Net().eval()(inputs).detach()
    np.testing.assert_allclose(
        store.teachers["line"].read(slice(None)).argmax(axis=1), expected.argmax(dim=1).numpy()
    )
    made_by = store.teachers["line"].provenance["teacher"]
    assert made_by["weights"] == source_digests(folder / file)[0]
    with mock.patch(
        "logitstore.pipeline.cache.stage.load_without_head", side_effect=AssertionError("loaded")
    ):
        captured(experiment, folder / "out")  # nothing to do
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
        with pytest.raises(SpecMismatch, match=r"teacher\.weights = 'sha256:"):
            captured(experiment, folder / "out")


# Classes


def test_names_are_found_where_they_may_be(tmp_path: Path) -> None:
    assert stated_class_names(write_exported(tmp_path / "net.pt2", names=NAMES)) == NAMES
    assert stated_class_names(write_scripted(tmp_path / "net.pt", names=NAMES)) == NAMES
    assert stated_class_names(write_exported(tmp_path / "plain.pt2")) is None
    tensors = {"layer": torch.zeros(1)}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"class_names": json.dumps(NAMES)})
    assert stated_class_names(tmp_path / "w.safetensors") == NAMES
    save_file(tensors, tmp_path / "plain.safetensors")
    assert stated_class_names(tmp_path / "plain.safetensors") is None
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"class_names": "a, b"})
    assert "expected class names, a JSON list of strings, found 'a, b'; " in refused(
        tmp_path / "bad.safetensors", by=stated_class_names
    )
    (tmp_path / "vit").mkdir()
    config = tmp_path / "vit" / "config.json"
    config.write_text(json.dumps({"id2label": {"1": "b", "0": "a"}}))
    assert stated_class_names(tmp_path / "vit") == ["a", "b"]
    config.write_text(json.dumps({"id2label": {"1": "b", "2": "a"}}))
    assert "expected id2label that numbers the class names from 0, found {'1': 'b', '2': 'a'}; " in refused(
        tmp_path / "vit", by=stated_class_names
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, None),
        (["oak", "pine_tree", "Ash"], None),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (
            ["oak", "ash", "pine tree"],
            "expected 'pine tree' as class 1, as in the transfer set, found 'ash', class 2 of the transfer set; ",
        ),
        (
            ["oak", "elm", "ash"],
            "expected 'pine tree' as class 1, as in the transfer set, found 'elm'; reorder",
        ),
        (["oak", "pine tree"], "expected 3 classes, as in the transfer set, found 2 classes; "),
        (
            ["LABEL_2", "LABEL_1", "LABEL_0"],
            "expected 'oak' as class 0, as in the transfer set, found 'LABEL_2'",
        ),
    ],
)
def test_the_first_difference_is_named(names: list[str] | None, said: str | None) -> None:
    wanted = ["oak", "pine tree", "ash"]
    check_class_order(names, None, "m")
    if said is None:
        check_class_order(names, wanted, "m")
    else:
        assert said in refused(names, wanted, "m", by=check_class_order)


def test_numbers_are_compared_as_numbers() -> None:
    """Folders by number are sorted as text, so "2" is class 4 of twelve; a model that counts from 0 has it as class 2."""
    folders = sorted(str(number) for number in range(12))
    check_class_order(folders, folders, "m")
    check_class_order([f"{number:02}" for number in range(10)], folders[:2] + folders[4:], "m")
    counted = [str(number) for number in range(12)]
    assert (
        "expected '10' as class 2, as in the transfer set, found '2', class 4 of the transfer set"
        in refused(counted, folders, "m", by=check_class_order)
    )
    check_class_order([f"LABEL_{number}" for number in range(12)], folders, "m")  # these say nothing


def test_a_letter_is_the_same_however_unicode_spells_it() -> None:
    wanted = ["Äpfel", "né"]
    check_class_order([unicodedata.normalize("NFD", name) for name in wanted], wanted, "m")


def test_names_that_case_alone_tells_apart_are_compared_as_they_are() -> None:
    check_class_order(["A", "a"], ["A", "a"], "m")
    assert "found 'a', class 1 of the transfer set" in refused(
        ["a", "A"], ["A", "a"], "m", by=check_class_order
    )


def test_names_that_say_nothing_are_said_not_to_be_compared(caplog: pytest.LogCaptureFixture) -> None:
    assert is_generic(["0", "1"]) and not is_generic(["0", "2"])
    with caplog.at_level(logging.INFO, logger="logitstore.pipeline.models.class_names"):
        check_class_order(["LABEL_0", "LABEL_1"], ["cat", "dog"], "teacher 't'")
    assert "teacher 't': class names not compared: they only number the classes (LABEL_0, …)" in caplog.text


def test_another_order_of_classes_is_refused_before_the_teacher_is_loaded(folder: Path) -> None:
    write_exported(folder / "net.pt2", names=["a", "c", "b"])
    with (
        mock.patch("logitstore.pipeline.cache.stage.load_without_head", side_effect=AssertionError("loaded")),
        pytest.raises(
            BadDataError, match="expected 'b' as class 1, as in the transfer set, found 'c', class 2"
        ),
    ):
        captured(with_file(folder, "net.pt2"), folder / "out")
    assert not (folder / "out" / "store.zarr").exists()
    assert (
        "line"
        in captured(with_file(folder, "net.pt2", "\ncheck_class_names = false"), folder / "out").teachers
    )


# Libraries


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm: expected the package timm, found .*; pip install timm"):
        timm_model("resnet18", input_shape=(3, 4, 4), num_classes=5)


# Folders


def test_a_folder_that_is_no_model_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    assert "found no folder; name a folder" in refused(folder, by=model_files)
    folder.mkdir()
    assert "found no config.json" in refused(folder, by=model_files)
    (folder / "config.json").write_text("{}")
    assert "found no model.safetensors" in refused(folder, by=model_files)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "found pytorch_model.bin, a pickle" in refused(folder, by=model_files)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../out.safetensors"}}))
    assert "a weight_map that names '../out.safetensors'" in refused(folder, by=model_files)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert "found no one.safetensors, a shard in model" in refused(folder, by=model_files)
    (folder / "one.safetensors").write_bytes(b"1")
    assert model_files(folder) == ["config.json", "model.safetensors.index.json", "one.safetensors"]
    (folder / "adapter_config.json").write_text("{}")
    assert "found an adapter (adapter_config.json); merge it" in refused(folder, by=model_files)


def test_every_file_of_a_folder_counts_and_no_other(tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    digest, files = source_digests(tmp_path)
    assert files is not None and list(files) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    (tmp_path / "README.md").write_text("more")
    assert source_digests(tmp_path) == (digest, files)
    for name in files:
        (tmp_path / name).write_text(name.upper())  # of the same size, just now
        assert source_digests(tmp_path)[0] != digest
        (tmp_path / name).write_text(name)
        assert source_digests(tmp_path) == (digest, files)


# Modules


NAMED = """
import faulty


def named(num_classes):
    network = faulty.linear(num_classes)
    network.class_names = ("a", "c", "b")
    return network
"""


def test_class_names_of_a_module_are_compared_as_well(folder: Path) -> None:
    (folder / "ls_named.py").write_text(NAMED)
    path = small.write_experiment(folder, ("faulty:linear", "ls_named:named"))
    with pytest.raises(
        BadDataError, match=r"^teacher 'line': expected 'b' as class 1, .* found 'c', class 2"
    ):
        captured(load_experiment(path), folder / "out")
    assert not (folder / "out" / "store.zarr").exists()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (types.SimpleNamespace(class_names=np.array(["a", "b"])), ["a", "b"]),
        (types.SimpleNamespace(class_names=("a", "b")), ["a", "b"]),
        (types.SimpleNamespace(class_names=[]), None),
        (types.SimpleNamespace(class_names=None), None),
        (types.SimpleNamespace(class_names="ab"), None),
        (types.SimpleNamespace(class_names=lambda: ["a", "b"]), None),
        (types.SimpleNamespace(config=types.SimpleNamespace(id2label={1: "b", 0: "a"})), ["a", "b"]),
        (types.SimpleNamespace(config=types.SimpleNamespace(id2label={1: "b", 0: "a", 2: "c"})), None),
        (types.SimpleNamespace(config=types.SimpleNamespace(id2label={"0": "a", "1": "b"})), None),
        (types.SimpleNamespace(config={"id2label": {}}), None),
        (types.SimpleNamespace(), None),
    ],
)
def test_names_of_a_module(module: Any, names: list[str] | None) -> None:
    """An array of names was no list, and so was not compared."""
    assert module_class_names(module, 2) == names


def test_a_module_that_has_its_places_is_known() -> None:
    assert not is_placed(Net()) and not is_placed(torch.nn.ReLU())
    two = torch.nn.Sequential(Net(), Net().to("meta"))
    assert is_placed(two)
    dispatched = Net()
    dispatched.layer.hf_device_map = {"": "cpu"}  # type: ignore[assignment]
    assert is_placed(dispatched)


def test_a_file_that_stays_as_it_is_is_digested_once(tmp_path: Path) -> None:
    """But for one that was written just now: another writing of it may leave no trace in its times."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    with mock.patch("hashlib.file_digest", side_effect=hashlib.file_digest) as counted:
        source_digests(tmp_path)
        source_digests(tmp_path)
        assert counted.call_count == 4
        for name in ("config.json", "model.safetensors"):
            os.utime(tmp_path / name, (1e9, 1e9))
        first = source_digests(tmp_path)
        assert source_digests(tmp_path) == first and counted.call_count == 6
        (tmp_path / "config.json").write_text("config.JSON")
        assert source_digests(tmp_path) != first
