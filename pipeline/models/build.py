"""Models built from the factory of an experiment file."""

from torch import nn

from ..experiment.document import Experiment
from ..experiment.training import Factory
from ..factories.call import build, expect_module
from ..factories.read_files import unchanged_files


def build_model(
    table: Factory, experiment: Experiment, *, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Build the freshly initialised module of a table of the experiment. Raises FactoryError."""
    offered = {"input_shape": input_shape, "num_classes": num_classes}
    with unchanged_files(table, base=experiment.base):
        made = build(table.factory, table.args, offered=offered, base=experiment.base)
    return expect_module(made, table.factory)
