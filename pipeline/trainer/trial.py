"""Trials of a network in training mode, before hours are spent on it.

Networks may behave differently in training mode: they return further outputs or a loss, refuse a single row (batch
normalisation), or give logits that no parameter is trained by. A trial leaves weights, buffers, mode and random numbers as
they were.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, distributed, nn
from torch.nn.parameter import is_lazy

from ...storage.errors import BadDataError, BadLogitsError
from ..runtime.inference import (
    Precision,
    check_classes,
    check_model,
    check_rows,
    device_of,
    forward,
    kept_modes,
    refusing_failures,
)
from .steps import autocast

_SINGLE_ROW = "Expected more than 1 "
"""How torch begins its refusal of a batch whose statistics are those of one value."""


def check_training(
    module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."], num_classes: int, where: str
) -> None:
    """Try a network on a few examples as its training will call it.

    inputs: one or two are enough. where: the network in messages, such as "student 'small'".
    Raises BadLogitsError if it fails, or does not return logits of `num_classes` classes in either mode. Raises
    BadDataError for a network with nothing to train.
    """
    check_model(module, inputs, num_classes, where)
    count = sum(1 for _ in module.parameters())
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise _nothing_to_train(where, f"{count} frozen ones" if count else "a network without any")
    few = inputs if len(inputs) > 1 else np.repeat(inputs, 2, axis=0)
    with _as_it_was(module), torch.enable_grad():
        batch = torch.from_numpy(few.copy()).to(device_of(module))
        logits = forward(module.train(), batch, f"{where} in training mode")
    check_classes(logits, num_classes, f"{where} in training mode")
    if not logits.requires_grad:
        raise _nothing_to_train(where, "logits that do not depend on any (no_grad, or detached)")


def check_backward(
    module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."], precision: Precision, where: str
) -> None:
    """Compute the gradients of a few examples, as the first step of a training would; of the mean log Σ exp of the logits.

    inputs: one or two are enough. precision: of the training. where: the training in messages.
    Raises BadLogitsError if the module fails forward or backward, BadDataError if its loss is not finite.
    """
    few = inputs if len(inputs) > 1 else np.repeat(inputs, 2, axis=0)
    device = device_of(module)
    with _as_it_was(module), _kept_gradients(module), torch.enable_grad():
        step_backward(module, torch.from_numpy(few.copy()).to(device), precision, where)


def step_backward(module: nn.Module, batch: Tensor, precision: Precision, where: str) -> None:
    """Run a batch forward, in training mode, and backward, as `check_backward`, but the module changes."""
    with autocast(batch.device, precision):
        logits = forward(module.train(), batch, where)
    loss = logits.float().logsumexp(dim=1).mean()
    if not math.isfinite(loss.item()):
        raise not_finite(where, loss.item())
    with refusing_failures(where, batch):
        loss.backward()


def not_finite(where: str, loss: float) -> BadDataError:
    """Return the error of a first loss that is no number. where: the training in messages."""
    return BadDataError(
        f"{where}, first step",
        expected="a finite loss",
        found=f"{loss} before the first update",
        remedy="look for NaN or very large numbers in the inputs and the initial weights",
    )


def try_neighbours(module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."], where: str) -> None:
    """Warn if logits of a network in evaluation mode depend on the other rows of a batch: so would its scores.

    inputs: two, which differ. where: the network in messages. Raises BadLogitsError if it fails.
    """

    def run(batch: Shaped[np.ndarray, "rows ..."]) -> Tensor:
        return forward(module, torch.from_numpy(batch.copy()).to(device_of(module)), where).float().cpu()

    with _as_it_was(module), torch.no_grad():
        module.eval()
        check_rows(run, inputs, run(inputs), where)


def refuses_single_row(module: nn.Module, row: Shaped[Tensor, "1 ..."]) -> bool:
    """Return whether a network in training mode cannot normalise a batch of this one row."""
    together = (
        distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    )
    if together and any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        return False  # it normalises over all ranks, which would have to join
    try:
        with _as_it_was(module), torch.no_grad():
            forward(module.train(), row, "a trial")
    except BadLogitsError as error:  # the training meets any other error and names it
        cause = error.__cause__
        return isinstance(cause, ValueError) and str(cause).startswith(_SINGLE_ROW)
    return False


def make_lazy_layers(
    module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."], num_classes: int, where: str
) -> nn.Module:
    """Return a network whose lazy layers have their shapes, which a first call gives them.

    Weights can be loaded and counted afterwards. inputs: one or two examples. Raises BadLogitsError if the call fails.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        check_model(module, inputs, num_classes, where)
    return module


@contextlib.contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Restore buffers, modes and random numbers after the block."""
    device = device_of(module)
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        with kept_modes(module), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextlib.contextmanager
def _kept_gradients(module: nn.Module) -> Iterator[None]:
    """Restore the gradients of a module after the block; it has none inside."""
    kept = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _nothing_to_train(where: str, found: str) -> BadDataError:
    return BadDataError(
        where,
        expected="parameters to train",
        found=f"nothing to train: {found}",
        remedy="let requires_grad be true for the parameters that are to be trained",
    )
