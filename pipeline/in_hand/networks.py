"""Networks in hand: the identity of a module that a caller passes, and the copy that is run.

The logits of a network follow from its numbers and from its code. The state dict holds the parameters and most buffers; a
constant may stand in a buffer that is not saved, or in an attribute. Two networks with equal weights may differ in an
activation, which their layers show. So the identity is

    weights       sha256 over state dict, further buffers, and tensors among the attributes
    layers        sha256 over name, class and printed settings of each layer
    attributes    sha256 over numbers, texts and functions among the attributes of each layer, and its forward hooks
    source        sha256 of the source of each class that is no installed one, and of the code that it uses
    globals       simple values among the globals of that code

The folder that a model was loaded from is none of them (`factories.attributes`).

A capture runs a copy, so that the caller's module keeps its mode, its device and its counters.
"""

import contextlib
import copy
import logging
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...storage.errors import ConfigError
from ...storage.format.documents import json_digest
from ...storage.stream.items import describe
from ..factories.attributes import hooks_of, without_origin
from ..factories.call import describe_exception
from ..factories.in_hand import Description, InHand, name_of, plain_text
from ..models.module_state import state_digest, tensor_digests
from ..runtime.inference import device_of, is_placed, kept_modes

log = logging.getLogger(__name__)


def module_in_hand(module: Any, where: str) -> InHand:
    """Describe a network. where: it in messages. Raises ConfigError for anything else than a module with its weights."""
    if not isinstance(module, nn.Module):
        made = f"the class {module.__name__}" if isinstance(module, type) else describe(module)
        remedy = "pass an object of the class" if isinstance(module, type) else "pass the network itself"
        raise ConfigError(where, expected="a torch.nn.Module", found=made, remedy=remedy)
    plain = unwrapped(module)
    _check_weights(plain, where)
    found, layers, attributes = Description(), list[Any](), dict[str, Any]()
    for name, part in plain.named_modules():
        kind = found.add(type(part))
        layers.append([name, kind, _text(part.extra_repr()), _text(getattr(part, "code", ""))])
        own = {
            key: value
            for key, value in without_origin(part, vars(part)).items()
            if not key.startswith("_") and key != "training"
        }
        hooks = {key: found.value(functions) for key, functions in hooks_of(part).items()}
        if settings := found.settings(own) | hooks:
            attributes[name] = settings
    args = {"layers": json_digest(layers), "attributes": json_digest(attributes), **found.code()}
    weights = weights_of(plain, where)
    return InHand(module, name_of(plain), args, frozenset(found.modules), weights=weights, copied=copy_of)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside a wrapper of torch that changes no logits: compiled, or parallel on several devices."""
    inner = getattr(module, "_orig_mod", None)
    if inner is None and isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = module.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def weights_of(module: nn.Module, where: str = "network") -> str:
    """Return "sha256:…" over all tensors of a network, whether its state dict holds them or not.

    where: the network in messages. Raises BadDataError for a tensor without data, and for a state dict with objects in it.
    """
    return state_digest(tensor_digests(unwrapped(module), where))


def _text(value: Any) -> str:
    return plain_text(value) if isinstance(value, str) else ""


def _check_weights(module: nn.Module, where: str) -> None:
    """Refuse a network whose weights are not there. Raises ConfigError."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ConfigError(
                where,
                expected="a network with weights",
                found=f"{name}, a lazy layer that was never called",
                remedy="call the network once on a batch, and load its weights",
            )
        if tensor.device.type == "meta":
            raise ConfigError(
                where,
                expected="a network with weights in memory",
                found=f"{name} on the device meta",
                remedy="load the weights onto the CPU or a GPU",
            )


def copy_of(module: nn.Module) -> nn.Module:
    """Return a copy of a network to run; one that is spread over devices, or that cannot be copied, itself."""
    plain = unwrapped(module)
    if is_placed(plain):
        return plain
    try:
        return copy.deepcopy(plain)
    except Exception as error:  # noqa: BLE001 - of many kinds: locks, files, tensors with a history
        log.info(
            "%s is run itself, as it cannot be copied: %s", type(plain).__name__, describe_exception(error)
        )
        return plain


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the random numbers of torch, NumPy and Python after the block: a call is no step of the caller's own draws."""
    places = (
        [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    )
    numbers, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(places):
            yield
    finally:
        np.random.set_state(numbers)
        random.setstate(python)


@contextlib.contextmanager
def kept_as_they_are(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore modes and devices of some networks after the block, for those that could not be copied."""
    plain = [unwrapped(module) for module in modules]
    places = [(module, device_of(module)) for module in plain if not is_placed(module)]
    try:
        with kept_modes(*plain):
            yield
    finally:
        for module, device in places:
            if device_of(module) != device:
                module.to(device)
