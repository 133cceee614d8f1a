"""How does a network give logits for many rows, and nothing else?

Batch by batch, without gradients, in the precision that is asked for. `forward` is the one place where a
network is called, in training as well: what fails in it, or is not a tensor of logits, is refused by name, as
networks are a user's own code. `check_model` tries a network before time is spent on it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor, nn

from ..storage.errors import BadLogitsError, LogitStoreError
from .factories import describe_exception


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters; the CPU for a module without any."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def refusing_failures(where: str, batch: Tensor) -> Iterator[None]:
    """Turn what a model raises into a BadLogitsError. where: who is run. batch: what it was given."""
    try:
        yield
    except LogitStoreError:
        raise
    except Exception as error:
        dtype = str(batch.dtype).removeprefix("torch.")
        remedy = (
            f"mend the model (-vv shows where), which was given {dtype} inputs of shape {tuple(batch.shape)}"
        )
        if isinstance(error, torch.OutOfMemoryError):
            remedy = "lower batch_size, or take another device"
        raise BadLogitsError(
            where,
            expected="logits of shape (batch, classes)",
            found=describe_exception(error),
            remedy=remedy,
        ) from error


def forward(
    module: nn.Module, batch: Shaped[Tensor, "batch ..."], where: str
) -> Shaped[Tensor, "batch classes"]:
    """Logits of one batch, in whatever mode module and PyTorch are.

    where: who is run, for messages. Raises BadLogitsError where the module fails, or does not return a tensor
    (batch, classes).
    """
    shape = tuple(batch.shape)
    with refusing_failures(where, batch):
        logits = module(batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != shape[0]:
        raise BadLogitsError(
            where,
            expected=f"a tensor of logits of shape ({shape[0]}, classes)",
            found=_described(logits),
            remedy="wrap the model so that it returns its logits alone",
        )
    return logits


def check_classes(logits: Shaped[Any, "rows classes"], num_classes: int, where: str) -> None:
    """Raise BadLogitsError where logits are of another number of classes than the transfer set."""
    if logits.shape[1] != num_classes:
        raise BadLogitsError(
            where,
            expected=f"logits of {num_classes} classes, as the transfer set has them",
            found=f"{logits.shape[1]}",
            remedy=f"give the {where.split()[0]} the classes of the transfer set",
        )


def check_model(
    module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."], num_classes: int, where: str
) -> None:
    """Try a model on a few examples, in evaluation mode, and leave no trace in it or in the random numbers.

    inputs: one or two are enough. where: who is tried, such as "teacher 'wide'".
    Raises BadLogitsError where it fails, or gives something else than logits of `num_classes` classes.
    """
    device = device_of(module)
    modes = [(part, part.training) for part in module.modules()]
    try:
        # no_grad, not inference_mode: what a lazy module makes at its first call is trained later
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            logits = forward(module.eval(), torch.from_numpy(inputs.copy()).to(device), where)
    finally:
        for part, training in modes:
            part.training = training
    check_classes(logits, num_classes, where)


def run_model(
    module: nn.Module,
    inputs: Shaped[np.ndarray, "rows ..."],
    batch_size: int,
    *,
    where: str,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
) -> Float32[np.ndarray, "rows classes"]:
    """Logits of `inputs`, which stay as they are.

    precision: that the module computes in; the lower ones are autocast. where: who is run, for messages.
    Raises BadLogitsError where the module fails, or does not return a tensor (batch, classes).
    """
    device = device_of(module)
    autocast: Any = contextlib.nullcontext()
    if precision != "float32":
        autocast = torch.autocast(device.type, dtype=getattr(torch, precision))
    parts = []
    with torch.inference_mode(), autocast:
        for start in range(0, len(inputs), batch_size):
            # A copy: a model that works in place spoils neither another view nor another model's input.
            batch = torch.from_numpy(inputs[start : start + batch_size].copy()).to(device)
            parts.append(forward(module, batch, where).float().cpu())
    return torch.cat(parts).numpy()


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(repr(key) for key in output) or 'nothing'}"
    return f"a {type(output).__name__}"
