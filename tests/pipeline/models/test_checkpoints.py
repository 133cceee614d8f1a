"""Files of weights as training scripts leave them: one set of the tensors is read, all else is named in a line."""

import argparse
import logging
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.messages import Sentences
from torch import nn

from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.models.records import weights_digest
from logitstore.pipeline.models.weights import load_weights
from logitstore.storage.errors import BadDataError, ConfigError


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mlp([4], input_shape=(2, 2), num_classes=3)


class Wrapped(nn.Module):
    """A network as the attribute of another, as in a Lightning module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner


STATE = model(1).state_dict()
LOGGER = "logitstore.pipeline.models.checkpoints"


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


def copies(prefix: str) -> dict[str, torch.Tensor]:
    """The same in memory of their own: safetensors keeps no tensor under two names."""
    return {name: tensor.clone() for name, tensor in prefixed(prefix).items()}


def loaded(tensors: dict[str, Any], path: Path) -> nn.Module:
    """A network of other weights, with those of a file."""
    save_file(tensors, path)
    target = model(2)
    load_weights(target, path)
    return target


def refused(content: object, path: Path) -> BadDataError:
    """The error for a torch file; the network keeps its weights, and no colours are shown."""
    torch.save(content, path)
    return refused_file(path)


def refused_file(path: Path) -> BadDataError:
    target = model(2)
    with pytest.raises(BadDataError) as caught:
        load_weights(target, path, allow_pickle=True)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(one, other) for one, other in same(target, model(2).state_dict()))
    return caught.value


def same(module: nn.Module, state: dict[str, torch.Tensor]) -> Any:
    return zip(module.state_dict().values(), state.values(), strict=True)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "a.b.c."]
)
def test_a_prefix_before_all_names_is_taken_off_and_logged(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        target = loaded(prefixed(prefix), tmp_path / "w.safetensors")
    assert all(torch.equal(one, other) for one, other in same(target, STATE))
    read = f"'{prefix}hidden.0.weight' is read as 'hidden.0.weight'"
    assert read.replace("hidden.0.weight", "head.bias") in caplog.text or read in caplog.text


def test_weights_of_the_real_wrappers_are_read(tmp_path: Path) -> None:
    compiled: Any = torch.compile(model(1), backend="eager")
    for number, wrapper in enumerate([nn.DataParallel(model(1)), compiled, Wrapped(compiled)]):
        assert wrapper.state_dict().keys() != STATE.keys()
        target = loaded(dict(wrapper.state_dict()), tmp_path / f"{number}.safetensors")
        assert all(torch.equal(one, other) for one, other in same(target, STATE))


def test_a_compiled_part_inside_a_network_is_read(tmp_path: Path) -> None:
    """The prefix stands in the middle of some names."""
    names = {name.replace("hidden.0.", "hidden.0._orig_mod."): tensor for name, tensor in STATE.items()}
    assert all(
        torch.equal(one, other) for one, other in same(loaded(names, tmp_path / "w.safetensors"), STATE)
    )


def test_names_that_fit_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Negative control of the line in the log."""
    with caplog.at_level(logging.INFO, logger=LOGGER):
        loaded(STATE, tmp_path / "w.safetensors")
    assert caplog.text == ""


def test_two_networks_in_a_file_are_not_chosen_between(tmp_path: Path, sentence: Sentences) -> None:
    for number, tensors in enumerate(
        [
            {**prefixed("student."), **copies("ema.")},
            {**prefixed("net."), "loss.weight": torch.zeros(3)},
            {**prefixed("module."), "module.extra": torch.zeros(3)},
            {name: tensor for name, tensor in prefixed("module.").items() if "head.bias" not in name},
            # The same names twice: behind a prefix and without it, and as compiled and as they are.
            {**prefixed("module."), **copies("")},
            {**prefixed("module."), **copies("module._orig_mod.")},
            {**STATE, **copies("_orig_mod.")},
        ]
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        sentence(refused_file(path))


def test_a_shape_is_compared_behind_a_prefix(tmp_path: Path) -> None:
    """Negative control: taking a prefix off is no licence for other tensors."""
    names = prefixed("module.") | {"module.head.bias": torch.zeros(5)}
    save_file(names, tmp_path / "w.safetensors")
    assert refused_file(tmp_path / "w.safetensors").found == "shape (5,)"


@pytest.mark.parametrize(
    ("key", "suffix"),
    [
        ("state_dict", ".pth.tar"),
        ("model", ".pt"),
        ("model_state_dict", ".pth"),
        ("ema", ".bin"),
        ("a.b", ".ckpt"),
    ],
)
def test_the_weights_under_a_key_of_a_checkpoint_are_read_and_logged(
    key: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state: Any = prefixed("module.")
    for name in reversed(key.split(".")):
        state = {name: state}
    checkpoint = {
        "epoch": 3,
        **state,
        "optimizer": {"state": {0: {"step": torch.zeros(())}}, "param_groups": []},
    }
    torch.save({**checkpoint, "best": torch.tensor(71.3)}, tmp_path / f"c{suffix}")
    target = model(2)
    digest = load_weights(target, tmp_path / f"c{suffix}", allow_pickle=True)
    assert all(torch.equal(one, other) for one, other in same(target, STATE))
    assert digest == weights_digest(tmp_path / f"c{suffix}")
    assert f"the weights are those under '{key}'; 'module." in caplog.text
    assert len(caplog.records) == 1


def test_a_key_chooses_between_the_networks_of_a_file(tmp_path: Path, sentence: Sentences) -> None:
    """An average beside the last step, two prefixes in one state dict, a loss with weights of its own."""
    other = model(3).state_dict()
    both = {**prefixed("student."), **{f"teacher.{name}": one for name, one in other.items()}}
    loss = {**prefixed("model."), "loss.weight": torch.zeros(3)}
    for number, (content, key, state) in enumerate(
        [
            ({"state_dict": STATE, "state_dict_ema": other, "arch": "mlp"}, "state_dict_ema", other),
            ({"state_dict": STATE, "state_dict_ema": other, "arch": "mlp"}, "state_dict", STATE),
            (both, "teacher", other),
            ({"epoch": 1, "state_dict": both}, "state_dict.student", STATE),
            ({"epoch": 1, "state_dict": loss}, "state_dict.model", STATE),
            ({"best": {**STATE, "more.weight": torch.zeros(3)}, "last": other}, "last", other),
        ]
    ):
        path = tmp_path / f"{number}.pth"
        error = refused(content, path)
        sentence(error)
        assert f"weights_key = {key!r}" in error.remedy or number == 1
        target = model(2)
        load_weights(target, path, allow_pickle=True, key=key)
        assert all(torch.equal(one, mine) for one, mine in same(target, state)), number


def test_a_key_that_a_file_lacks_is_named(tmp_path: Path, sentence: Sentences) -> None:
    torch.save({"state_dict": STATE, "state_dict_ema": STATE}, tmp_path / "c.pth")
    save_file(STATE, tmp_path / "c.safetensors")
    for name, key in (("c.pth", "state_dict_em"), ("c.pth", "weights"), ("c.safetensors", "ema")):
        with pytest.raises(ConfigError) as caught:
            load_weights(model(2), tmp_path / name, allow_pickle=True, key=key)
        sentence(caught.value)


def test_a_key_with_two_meanings_chooses_nothing(tmp_path: Path) -> None:
    """Dots stand in names and between keys."""
    path, other = tmp_path / "c.pth", model(3).state_dict()
    flat, half = prefixed("a.b."), dict(list(prefixed("a.b.").items())[:2])
    nested = {f"b.{name}": one for name, one in other.items()}
    for content, found in (
        ({**flat, "a": nested}, "2 sets of them, under 'a.b' and 'a.b'"),
        ({"a.b": STATE, "a": {"b": other}}, "2 sets of them, under 'a.b' and 'a.b'"),
        ({**half, "a": dict(list(nested.items())[2:])}, "of them among 2 tensors under 'a.b'"),
    ):
        torch.save(content, path)
        with pytest.raises(BadDataError) as caught:
            load_weights(model(2), path, allow_pickle=True, key="a.b")
        assert found in caught.value.found
        assert "choose one" not in caught.value.remedy
    target = model(2)
    torch.save({"a": {"b": STATE}, "c": other}, path)
    load_weights(target, path, allow_pickle=True, key="a")  # control: what is inside a key
    assert all(torch.equal(one, mine) for one, mine in same(target, STATE))


def test_a_key_is_no_licence_for_other_tensors(tmp_path: Path, sentence: Sentences) -> None:
    """Negative control: names and shapes are compared under a key as well."""
    torch.save({"model": STATE, "ema": {**STATE, "head.bias": torch.zeros(5)}}, tmp_path / "c.pth")
    torch.save({"model": STATE, "ema": {"head.bias": torch.zeros(3)}}, tmp_path / "d.pth")
    for name in ("c.pth", "d.pth"):
        target = model(2)
        with pytest.raises(BadDataError) as caught:
            load_weights(target, tmp_path / name, allow_pickle=True, key="ema")
        sentence(caught.value)
        assert all(torch.equal(one, other) for one, other in same(target, model(2).state_dict()))


def test_an_averaged_model_of_torch_is_read(tmp_path: Path) -> None:
    """Its state dict has a counter beside the network, as `model_ema` of torchvision's training script."""
    average = torch.optim.swa_utils.AveragedModel(model(1))
    content = {"model": model(4).state_dict(), "model_ema": average.state_dict()}
    path = tmp_path / "c.pth"
    assert refused(content, path).remedy.endswith("weights_key = 'model_ema.module'")
    for key in ("model_ema", "model_ema.module"):
        target = model(2)
        load_weights(target, path, allow_pickle=True, key=key)
        assert all(torch.equal(one, other) for one, other in same(target, STATE))
    # Negative control: another number beside the network is refused.
    average.register_buffer("others", torch.zeros(1))
    assert "beside 'n_averaged' and 1 more" in refused({"model_ema": average.state_dict()}, path).found


def test_a_compiled_network_takes_the_weights_of_the_plain_one(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    compiled: Any = torch.compile(model(2), backend="eager")
    load_weights(compiled, tmp_path / "w.safetensors")
    assert all(torch.equal(one, other) for one, other in same(compiled, STATE))


def test_a_checkpoint_of_another_network_says_how_much_fits(tmp_path: Path, sentence: Sentences) -> None:
    some = {"head.weight": STATE["head.weight"], "head.bias": STATE["head.bias"], "fc.bias": torch.zeros(2)}
    contents: list[object] = [
        {"epoch": 3, "state_dict": some, "optimizer": {}},
        {"epoch": 3, "state_dict": {f"module.{name}": one for name, one in some.items()}},
        {
            "epoch": 3,
            "model": {"conv.weight": torch.zeros(3)},
            "ema": some,
            "scheduler": {},
            "args": {},
            "rng": {},
        },
        {"epoch": 3, "lr": 0.1},
    ]
    for number, content in enumerate(contents):
        sentence(refused(content, tmp_path / f"{number}.pth"))


def test_what_else_is_in_a_file_is_named(tmp_path: Path, sentence: Sentences) -> None:
    lightning = {"epoch": 1, "global_step": 9, "pytorch-lightning_version": "2.6.6", "state_dict": STATE}
    contents: list[object] = [
        {**lightning, "hyper_parameters": {"size": Fraction(1, 2)}},
        {"state_dict": STATE, "sizes": {Fraction(1, 2)}, "counts": Counter("ab"), "best": np.float64(0.7)},
        model(),
        [STATE],
        torch.zeros(3),
        {},
        {**STATE, "epoch": 3},
        {"head.bias": torch.zeros(3).to_sparse()},
        {**STATE, "head.bias": torch.zeros(3, device="meta")},
    ]
    for number, content in enumerate(contents):
        sentence(refused(content, tmp_path / f"{number}.pth"))


def test_a_checkpoint_that_holds_itself_is_searched_in_no_time(tmp_path: Path) -> None:
    """Each of 300 keys leads to all of them again."""
    endless: dict[str, Any] = {}
    endless |= {f"key-{number}": endless for number in range(300)}
    start = time.perf_counter()
    assert "without tensors" in refused(endless, tmp_path / "e.pth").found
    endless["model"] = STATE
    assert "sets of them" in refused(endless, tmp_path / "e.pth").found
    assert time.perf_counter() - start < 20  # 300⁴ steps otherwise


def test_a_file_in_the_older_format_names_its_classes_too(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"size": Fraction(1, 2)}, path, _use_new_zipfile_serialization=False)
    assert refused_file(path).found.startswith("objects of fractions.Fraction")


class Touch:
    """An object whose reader makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._path), "w")


def test_settings_beside_the_weights_are_read(tmp_path: Path) -> None:
    """Scripts keep their arguments and the names of files; code among them is still refused, and does not run."""
    args = argparse.Namespace(lr=1, out=Path("runs"), nested=argparse.Namespace(layers=[1, 2]))
    torch.save({"state_dict": STATE, "args": args}, tmp_path / "c.pth")
    target = model(2)
    load_weights(target, tmp_path / "c.pth", allow_pickle=True)
    assert all(torch.equal(one, other) for one, other in same(target, STATE))
    args.nested.more = Touch(tmp_path / "ran")
    found = refused({"state_dict": STATE, "args": args}, tmp_path / "c.pth").found
    assert "open" in found and "Namespace" not in found
    assert not (tmp_path / "ran").exists()
