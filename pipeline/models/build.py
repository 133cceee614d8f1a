"""Models built from the factory of an experiment file, each a network of its own.

A factory that keeps a layer for its next call would give two networks one set of weights: the file of one would be loaded into
the other, and a second training would begin where the first ended.
"""

import random
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...storage.errors import FactoryError
from ..experiment.document import Experiment
from ..experiment.training import Factory
from ..factories.call import expect_module
from ..factories.products import product_of
from ..factories.read_files import unchanged_files

_made: list[weakref.ref[Tensor]] = []
"""Parameters of the networks that factories made in this process, as far as they are alive."""


def build_model(
    table: Factory,
    experiment: Experiment,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    more: Mapping[str, object] = MappingProxyType({}),
) -> nn.Module:
    """Build the freshly initialised module of a table of the experiment, or return the one in hand.

    seed: of the generators of PyTorch, NumPy and Python, which are set: tensors that no file holds, such as fixed random
    projections, are thus those of the training whenever the network is built.
    more: arguments of a factory of ours, beside those that every factory may take.
    Raises FactoryError, also for a network with parameters of one that was made before.
    """
    offered = {"input_shape": input_shape, "num_classes": num_classes, **more}
    torch.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
    with unchanged_files(table, base=experiment.base):
        made = product_of(table, base=experiment.base, offered=offered)
    module = expect_module(made, table.factory)
    if table.in_hand is None:  # one in hand may well be trained twice
        _check_own(module, table.factory)
    return module


def _check_own(module: nn.Module, factory: str) -> None:
    """Refuse a network that has memory of an earlier one. Raises FactoryError."""
    alive = [tensor for ref in _made if (tensor := ref()) is not None]
    memory = {tensor.untyped_storage().data_ptr() for tensor in alive}
    for name, tensor in _parameters(module):
        if tensor.untyped_storage().data_ptr() in memory:
            raise FactoryError(
                f"factory {factory!r}",
                expected="a new network at each call",
                found=f"one with {name} of an earlier network",
                remedy="make all layers inside the factory, and do not cache what it returns",
            )
    _made[:] = [weakref.ref(tensor) for tensor in alive] + [
        weakref.ref(tensor) for _, tensor in _parameters(module)
    ]


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that have memory, by name. A constant buffer may well be one of the module's file."""
    for name, tensor in module.named_parameters():
        if not is_lazy(tensor) and tensor.untyped_storage().data_ptr():
            yield name, tensor
