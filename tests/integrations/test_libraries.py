"""Networks of torchvision and timm by name: what published weights bring along besides tensors is part of the network.

Nothing is downloaded. A network "with published weights" is the library's own, built as its `weights=` builds it, with
other numbers in it.
"""

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from support.messages import Sentences
from torch import Tensor, nn
from torchvision import models

from logitstore.pipeline.experiment.tables import Teacher
from logitstore.pipeline.models.libraries import timm_model, torchvision_model
from logitstore.pipeline.models.rules import loader_rules
from logitstore.storage.errors import ConfigError, LogitStoreError

LOGGER = "logitstore.pipeline.models.libraries"
SIZES = {"inception_v3": 80, "googlenet": 32, "efficientnet_v2_l": 32}


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights of torchvision are what the network was initialised with; they are not fetched."""
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda self, *_, **__: None)
    load = nn.Module.load_state_dict

    def kept(self: nn.Module, state: Any, *more: Any, **options: Any) -> Any:
        return None if state is None else load(self, state, *more, **options)

    monkeypatch.setattr(nn.Module, "load_state_dict", kept)


def pixels(side: int, rows: int = 3, channels: int = 3) -> Tensor:
    """Pictures that differ in their brightness and contrast."""
    bright = torch.rand(rows, channels, 1, 1) * 180 + 30
    return (bright + torch.randn(rows, channels, side, side) * 25).clamp(0, 255).to(torch.uint8)


class Reached(Exception):
    """The inputs of the first layer, where a network is left: later layers hide small differences of these."""


def first_inputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the first convolution of a network is given."""

    def leave(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise Reached(given[0])

    layer = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    handle = layer.register_forward_pre_hook(leave)
    with pytest.raises(Reached) as caught, torch.no_grad():
        network.eval()(inputs)
    handle.remove()
    found: Tensor = caught.value.args[0]
    return found


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images / 255 - mean) / std


def copied(source: nn.Module, target: nn.Module) -> nn.Module:
    """The target with the weights of the source, which must have the same names and shapes."""
    target.load_state_dict(source.state_dict())
    return target.eval()


def published(name: str, tag: str) -> tuple[nn.Module, Any]:
    """A network as `get_model(name, weights=tag)` builds it, and the preset of its weights."""
    weights = models.get_model_weights(name)[tag]
    network = models.get_model(name, weights=weights)
    return network.eval(), weights.transforms()


# torchvision


def unusual() -> Iterator[tuple[str, str]]:
    """Yield the names and tags of classifiers whose weights bring along more than ImageNet's mean and std."""
    for name in models.list_models(models):
        for one in models.get_model_weights(name):
            preset = one.transforms()
            usual = preset.mean == [0.485, 0.456, 0.406] and preset.std == [0.229, 0.224, 0.225]
            if not usual or name in ("inception_v3", "googlenet"):
                yield name, one.name


UNUSUAL = list(unusual())
USUAL = [
    ("resnet18", "IMAGENET1K_V1"),
    ("mobilenet_v3_small", "IMAGENET1K_V1"),
    ("resnet50", "IMAGENET1K_V2"),
]


def test_the_unusual_weights_are_those_that_are_known() -> None:
    assert UNUSUAL == [
        ("efficientnet_v2_l", "IMAGENET1K_V1"),
        ("googlenet", "IMAGENET1K_V1"),
        ("inception_v3", "IMAGENET1K_V1"),
        ("vgg16", "IMAGENET1K_FEATURES"),
    ]


@pytest.mark.parametrize(("name", "tag"), [*UNUSUAL, *USUAL])
def test_a_tag_gives_the_network_of_its_published_weights(name: str, tag: str) -> None:
    theirs, preset = published(name, tag)
    side = SIZES.get(name, 32)
    ours = torchvision_model(f"{name}.{tag}", input_shape=(3, side, side), num_classes=1000)
    copied(theirs, ours)
    images = pixels(side)
    inputs = normalised(images, preset.mean, preset.std)
    expected = first_inputs(theirs, inputs)
    torch.testing.assert_close(first_inputs(ours, images), expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(inputs), rtol=1e-4, atol=1e-4)
    # Negative control: by ImageNet's numbers and without a switch, an unusual network is given other inputs.
    plain = normalised(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert ((plain - expected).abs().max() > 0.1) == ((name, tag) in UNUSUAL)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "efficientnet_v2_l"])
def test_without_a_tag_the_default_weights_are_assumed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    side = SIZES[name]
    tag = models.get_model_weights(name).DEFAULT.name
    options = {"aux_logits": False} if name == "googlenet" else {}
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        plain = torchvision_model(name, options=options, input_shape=(3, side, side), num_classes=1000)
    named = torchvision_model(f"{name}.{tag}", input_shape=(3, side, side), num_classes=1000)
    images = pixels(side)
    assert torch.equal(first_inputs(plain, images), first_inputs(copied(plain, named), images))
    assert ("transform_input is on" in caplog.text) == (name != "efficientnet_v2_l")


def test_transform_input_can_be_left_off(caplog: pytest.LogCaptureFixture) -> None:
    """Negative control: the switch makes a difference, and who sets it is told nothing."""
    given = {"transform_input": False, "aux_logits": False, "init_weights": False}
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        off = torchvision_model("googlenet", options=given, input_shape=(3, 32, 32), num_classes=5)
    assert caplog.text == ""
    on = torchvision_model("googlenet.IMAGENET1K_V1", input_shape=(3, 32, 32), num_classes=5)
    images = pixels(32)
    assert (first_inputs(off, images) - first_inputs(on, images)).abs().max() > 0.1


def test_a_network_whose_weights_differ_is_warned_of(
    caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    shape: dict[str, Any] = {"input_shape": (3, 32, 32), "num_classes": 3}
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        torchvision_model("inception_v3", options={"init_weights": False}, **shape)
        torchvision_model("vgg16", **shape)
        timm_model("resnet34", **shape)
        for record in caplog.records:
            sentence(record.getMessage())
        assert len(caplog.records) == 3
        caplog.clear()
        # Named, or with numbers of their own: nothing is ambiguous.
        torchvision_model("vgg16.IMAGENET1K_V1", **shape)
        torchvision_model("vgg16", mean=[0.5], std=[0.5], **shape)
        timm_model("resnet34.bt_in1k", **shape)
        timm_model("resnet34", mean=[0.5], std=[0.5], **shape)
        torchvision_model("resnet18", **shape)
        timm_model("resnet10t", **shape)
    assert caplog.text == ""


# timm


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        "resnet34.bt_in1k",
        "resnet34.ra4_e3600_r224_in1k",
        "efficientnet_b0.ra4_e3600_r224_in1k",
        "mobilenetv3_large_100.miil_in21k",
    ],
)
def test_a_tag_of_timm_gives_its_mean_and_std(model: str) -> None:
    theirs = timm.create_model(model, num_classes=7).eval()
    config = timm.models.get_pretrained_cfg(model)
    ours = copied(theirs, timm_model(model, input_shape=(3, 32, 32), num_classes=7))
    images = pixels(32)
    inputs = normalised(images, config.mean, config.std)
    torch.testing.assert_close(first_inputs(ours, images), first_inputs(theirs, inputs))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(inputs), rtol=1e-4, atol=1e-4)


def test_two_tags_of_one_network_differ() -> None:
    """Negative control."""
    one, other = (
        timm_model(f"resnet34.{tag}", input_shape=(3, 32, 32), num_classes=7)
        for tag in ("bt_in1k", "ra4_e3600_r224_in1k")
    )
    images = pixels(32)
    assert (first_inputs(one, images) - first_inputs(other, images)).abs().max() > 0.1


def test_many_networks_of_timm_take_their_own_numbers() -> None:
    """The hook of each network has the numbers of its default weights; built on no memory, as only they are looked at."""
    tried = 0
    with torch.device("meta"):
        for name in timm.list_models("*_tiny*")[::6]:
            config = timm.models.get_pretrained_cfg(name)
            if config is None:
                continue
            try:
                network = timm_model(name, input_shape=(3, *config.input_size[1:]), num_classes=3)
            except (NotImplementedError, RuntimeError):  # a network that computes while it is built
                continue
            (hook,) = network._forward_pre_hooks.values()
            assert (hook.mean, hook.std) == (tuple(config.mean), tuple(config.std)), name  # type: ignore[attr-defined]
            tried += 1
    assert tried >= 8


# Both


def test_pixels_are_normalised_and_floats_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Tensor] = []
    for make, model in ((timm_model, "resnet18"), (torchvision_model, "resnet18")):
        network = make(model, input_shape=(3, 32, 32), num_classes=5, mean=[0.1] * 3, std=[0.2] * 3).eval()
        next(network.children()).register_forward_pre_hook(lambda _, given: shown.append(given[0]))
        images = pixels(32)
        assert network(images).shape == (3, 5)
        torch.testing.assert_close(shown[-1], (images / 255 - 0.1) / 0.2)
        floats = torch.randn(3, 3, 32, 32)
        network(floats)
        assert shown[-1] is floats


def test_grey_images_take_the_mean_of_the_colours_or_are_repeated() -> None:
    grey = pixels(32, channels=1)[:, 0]
    single = timm_model("resnet18", input_shape=(32, 32), num_classes=5, options={"drop_rate": 0.1}).eval()
    assert single(grey).shape == (3, 5) and next(single.parameters()).shape[1] == 1
    repeated = torchvision_model("resnet18", input_shape=(32, 32), num_classes=5).eval()
    with torch.no_grad():
        assert torch.equal(repeated(grey), repeated(grey[:, None].expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("resnet19", {}, "found 'resnet19'; did you mean 'resnet18'?"),
        ("hf_hub:timm/x", {}, "found 'hf_hub:timm/x'; name a network of the library; nothing is downloaded"),
        ("resnet18", {"options": {"pretrained": True}}, "args.options.pretrained: expected no weights from"),
        ("resnet18", {"options": {"weights": "DEFAULT"}}, "args.options.weights: expected no weights from"),
        (
            "resnet18",
            {"options": {"num_classes": 7}},
            "args.options.num_classes: expected options without it",
        ),
        (
            "resnet18",
            {"mean": [0.1, 0.2]},
            "args.mean: expected 3 numbers, found 2 numbers; give one number per",
        ),
        ("resnet18", {"input_shape": (4,)}, "found inputs of shape (4,)"),
        (
            "resnet18.nonsense",
            {},
            "expected a tag of the published weights of resnet18, found 'resnet18.nonsense'; ",
        ),
    ],
)
@pytest.mark.parametrize("make", [timm_model, torchvision_model])
def test_what_would_fetch_or_cannot_be_is_refused(
    make: Any, model: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(LogitStoreError) as caught:
        make(model, **{"input_shape": (3, 4, 4), "num_classes": 5, **more})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_misspelt_tag_is_corrected() -> None:
    for make, model, better in (
        (torchvision_model, "resnet50.IMAGENET1K_V3", "IMAGENET1K_V"),
        (timm_model, "resnet18.a1_in1", "a1_in1k"),
    ):
        with pytest.raises(ConfigError) as caught:
            make(model, input_shape=(3, 32, 32), num_classes=5)
        assert f"did you mean '{better}" in str(caught.value)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import fails as it does where the package is missing."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        ConfigError, match=r"torchvision: expected the package torchvision, found .*; pip install"
    ):
        torchvision_model("resnet18", input_shape=(3, 32, 32), num_classes=5)


# Identities


def teacher(name: str, **args: Any) -> Teacher:
    return Teacher.model_validate(
        {"name": "t", "torchvision": name, "weights": "w.safetensors", "args": args}
    )


def test_the_networks_with_other_numbers_than_before_have_them_in_their_identity() -> None:
    """Those that the first version of the rules built otherwise: all whose default weights are unusual."""
    unusual = {one for one, tag in UNUSUAL if tag == models.get_model_weights(one).DEFAULT.name}
    for name in [*models.list_models(models), *models.list_models(models.quantization)]:
        changed = name.removeprefix("quantized_") in unusual
        assert loader_rules(teacher(name), None) == ({"rules": 2} if changed else {}), name


def test_numbers_that_were_given_are_those_of_before() -> None:
    assert loader_rules(teacher("inception_v3", options={"transform_input": False}), None) == {}
    assert loader_rules(teacher("efficientnet_v2_l", mean=[0.5], std=[0.5]), None) == {}
    # A tag was refused before, so no older capture has one.
    assert loader_rules(teacher("inception_v3.IMAGENET1K_V1"), None) == {}
    # Both operators of torchvision's compiled part are declared here, or there.
    assert torchvision.__version__ and hasattr(torch.ops.torchvision, "nms")
