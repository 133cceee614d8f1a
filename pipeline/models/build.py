"""Models built from the factory of an experiment file."""

from torch import nn

from ..experiment.document import Experiment
from ..experiment.training import Factory
from ..factories import build, expect_module


def build_model(
    table: Factory, experiment: Experiment, *, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Build the freshly initialised module of a table of the experiment. Raises FactoryError."""
    offered = {"input_shape": input_shape, "num_classes": num_classes}
    return expect_module(
        build(table.factory, table.args, offered=offered, base=experiment.base), table.factory
    )
