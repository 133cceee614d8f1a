"""Models built from the factory of an experiment file."""

from collections.abc import Mapping

from torch import nn

from ..experiment.document import Experiment
from ..experiment.training import Factory
from ..factories import build, expect_module


def build_model(
    table: Factory, experiment: Experiment, *, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Build the module that a table of the experiment describes, freshly initialised. Raises FactoryError."""
    offered: Mapping[str, object] = {"input_shape": input_shape, "num_classes": num_classes}
    module = build(table.factory, table.args, offered=offered, base=experiment.base)
    return expect_module(module, table.factory)
