"""Laws of the shipped networks: shapes, parameters, dropout, the norm bound, determinism."""

import re

import pytest
import torch
from torch import nn

from logitstore.pipeline.models.networks import Pixels, convnet, count_parameters, mlp
from logitstore.storage.errors import BadDataError, ConfigError


def make_all() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        mlp([16, 8], input_shape=(8, 8), num_classes=5),
        mlp([], input_shape=(8, 8), num_classes=5),
        convnet([4, 6], [7], input_shape=(8, 8), num_classes=5),
        convnet([4], [], kernel=5, input_shape=(8, 8), num_classes=5),
    ]


def test_the_papers_networks_have_the_papers_sizes() -> None:
    teacher = mlp([1200, 1200], 0.5, 0.2, 3.87, input_shape=(28, 28), num_classes=10)
    student = mlp([800, 800], input_shape=(28, 28), num_classes=10)
    assert count_parameters(teacher) == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10
    assert count_parameters(student) == 784 * 800 + 800 + 800 * 800 + 800 + 800 * 10 + 10


def test_shared_weights_count_once_and_buffers_not() -> None:
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(3))) == 12 + 6


@pytest.mark.parametrize("place", range(4))
def test_logits_are_plain_and_pixels_are_scaled(place: int) -> None:
    module = make_all()[place].eval()
    pixels = torch.randint(0, 256, (6, 8, 8), dtype=torch.uint8)
    logits = module(pixels)
    assert logits.shape == (6, 5) and logits.dtype == torch.float32
    assert not torch.allclose(logits.exp().sum(1), torch.ones(6))
    torch.testing.assert_close(module(pixels.float() / 255), logits)
    torch.testing.assert_close(module(pixels.double() / 255), logits)
    assert not torch.allclose(module(pixels.float()), logits)  # negative control: floats are not scaled
    assert all("pixels" not in name for name in module.state_dict())


@pytest.mark.parametrize("place", range(4))
def test_rows_do_not_depend_on_each_other(place: int) -> None:
    module = make_all()[place].eval()
    pixels = torch.randint(0, 256, (6, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(torch.cat([module(pixels[i : i + 1]) for i in range(6)]), module(pixels))


@pytest.mark.parametrize("place", range(4))
def test_the_seed_fixes_the_weights(place: int) -> None:
    one, same, other = make_all(), make_all(), make_all()
    torch.manual_seed(1)
    other = [mlp([16, 8], input_shape=(8, 8), num_classes=5)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(one[place].state_dict().values(), same[place].state_dict().values(), strict=True)
    )
    assert not torch.equal(one[0].state_dict()["head.weight"], other[0].state_dict()["head.weight"])


def test_pixels_follow_the_modules_dtype() -> None:
    module = mlp([4], input_shape=(2, 2), num_classes=3).to(torch.bfloat16)
    assert module(torch.zeros(1, 2, 2, dtype=torch.uint8)).dtype == torch.bfloat16
    whole = torch.arange(256, dtype=torch.uint8)
    scaled = Pixels()(whole)
    assert float(scaled[0]) == 0.0 and float(scaled[255]) == 1.0
    assert torch.equal((scaled * 255).round().to(torch.uint8), whole)


def test_channels_come_first() -> None:
    module = convnet([4], [], input_shape=(3, 8, 8), num_classes=5)
    assert module(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 5)


def test_names_of_parameters_do_not_depend_on_dropout() -> None:
    plain = mlp([4, 4], input_shape=(2, 2), num_classes=3)
    dropped = mlp([4, 4], 0.5, 0.2, 1.0, input_shape=(2, 2), num_classes=3)
    assert list(plain.state_dict()) == list(dropped.state_dict())
    assert list(plain.state_dict())[-2:] == ["head.weight", "head.bias"]


def test_dropout_is_there_in_training_alone() -> None:
    inputs = torch.rand(4, 8, 8)
    for module in (
        mlp([64], 0.5, input_shape=(8, 8), num_classes=5),
        mlp([], 0.0, 0.5, input_shape=(8, 8), num_classes=5),
        convnet([4], [8], dropout=0.5, input_shape=(8, 8), num_classes=5),
    ):
        module.train()
        assert not torch.equal(module(inputs), module(inputs))
        module.eval()
        assert torch.equal(module(inputs), module(inputs))


def test_the_bound_holds_for_each_hidden_unit_after_a_step() -> None:
    bounded = mlp([6, 5], max_norm=0.5, input_shape=(2, 2), num_classes=3)
    free = mlp([6, 5], input_shape=(2, 2), num_classes=3)
    for module in (bounded, free):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=2.0)
            module.hidden[0].weight[0] = 0.01  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in bounded.state_dict().items()}
    unbounded = {name: tensor.clone() for name, tensor in free.state_dict().items()}
    bounded.apply_constraints()
    free.apply_constraints()
    for name, tensor in bounded.state_dict().items():
        if name.startswith("hidden") and name.endswith("weight"):
            norms, old = tensor.norm(dim=1), before[name].norm(dim=1)
            assert float(norms.max()) <= 0.5 * (1 + 1e-6)  # renorm_ rounds
            torch.testing.assert_close(norms, old.clamp(max=0.5), rtol=1e-5, atol=0)
            torch.testing.assert_close(tensor / norms[:, None], before[name] / old[:, None])
        else:
            assert torch.equal(tensor, before[name]), "biases and the head have no bound"
    assert torch.equal(bounded.state_dict()["hidden.0.weight"][0], before["hidden.0.weight"][0])
    assert all(torch.equal(tensor, unbounded[name]) for name, tensor in free.state_dict().items())


@pytest.mark.parametrize("place", range(4))
def test_inputs_of_another_shape_are_named(place: int) -> None:
    with pytest.raises(
        BadDataError,
        match=re.escape(
            "expected inputs of shape (batch, 8, 8), found inputs of shape (2, 9, 8); pass inputs of"
        ),
    ):
        make_all()[place](torch.zeros(2, 9, 8))


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (mlp, {"hidden": [0]}, "mlp: expected hidden of 1 or more, found [0]; correct hidden"),
        (mlp, {"hidden": [], "num_classes": 0}, "mlp: expected num_classes of 1 or more, found [0]; "),
        (mlp, {"hidden": [3], "dropout": 1.0}, "mlp: expected dropout from 0 to below 1, found 1.0; "),
        (
            mlp,
            {"hidden": [3], "input_dropout": -0.1},
            "mlp: expected input_dropout from 0 to below 1, found -0.1",
        ),
        (
            mlp,
            {"hidden": [3], "max_norm": 0.0},
            "mlp: expected max_norm above 0, found 0.0; correct max_norm",
        ),
        (mlp, {"hidden": [3], "max_norm": float("nan")}, "mlp: expected max_norm above 0, found nan; "),
        (convnet, {"kernel": 4}, "convnet: expected an odd kernel, found 4; use 3 or 5"),
        (
            convnet,
            {"channels": [4, 4, 4, 4]},
            "convnet: expected 1 to 3 stages for images of 8 x 8, found 4 stages ([4, 4, 4, 4]); ",
        ),
        (
            convnet,
            {"channels": []},
            "convnet: expected 1 to 3 stages for images of 8 x 8, found 0 stages ([])",
        ),
        (
            convnet,
            {"input_shape": (64,)},
            "convnet: expected inputs of shape (height, width) or (channels, height, width), found inputs of shape (64,); ",
        ),
    ],
)
def test_bad_arguments_are_named(make, args: dict[str, object], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        make(**{"input_shape": (8, 8), "num_classes": 5} | args)
    assert str(caught.value).startswith(message)
