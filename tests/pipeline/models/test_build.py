"""Networks of a factory: each is one of its own, or it is refused."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from support.experiments import document, parsed, teacher, write_data
from torch import Tensor, nn

from logitstore.pipeline.models.build import build_model
from logitstore.storage.errors import FactoryError

LAYER, OTHER = nn.Linear(16, 4), nn.Linear(16, 4)
SCALE = torch.tensor(255.0)


class Net(nn.Module):
    """A network on images of 4 × 4, of a layer that it is given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("scale", SCALE)

    def forward(self, inputs: Tensor) -> Any:
        return self.layer(inputs.flatten(1).float())


def own() -> Net:
    """Factory of a layer of its own; a constant buffer is shared."""
    return Net(nn.Linear(16, 4))


def shared_layer() -> Net:
    """Factory of a network around a layer of the module."""
    return Net(LAYER)


def shared_memory() -> Net:
    """Factory of a parameter that is a view of one of the module."""
    net = own()
    net.layer.weight = nn.Parameter(OTHER.weight.data[:, :])
    return net


@functools.cache
def kept() -> Net:
    """Factory that keeps its network."""
    return own()


@pytest.mark.parametrize("factory", ["shared_layer", "shared_memory", "kept"])
def test_a_network_of_an_earlier_call_is_refused(tmp_path: Path, factory: str) -> None:
    """Weights of one would be loaded into the other, and a second training go on from the first."""
    write_data(tmp_path)
    networks = []
    for name in ("own", "own", "own"):  # control
        networks.append(built(tmp_path, name))
    first = built(tmp_path, factory)
    with pytest.raises(
        FactoryError, match=r"expected a new network at each call, found one with layer\.weight of"
    ):
        built(tmp_path, factory)
    assert first is not None and len(networks) == 3


def built(folder: Path, factory: str) -> nn.Module:
    """Build the network of a factory of this module."""
    content = document()
    content["teacher"] = [teacher("wide", factory=f"{__name__}:{factory}", args={})]
    content["cluster"]["teacher"] = "wide"
    content["student"] = content["student"][:1]
    experiment = parsed(content, folder)
    return build_model(experiment.teacher_members()[0].teacher, experiment, input_shape=(4, 4), num_classes=4)
