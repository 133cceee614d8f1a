"""Optimiser steps: schedule, clipping, precision, moving average.

Each step sets the learning rate of the schedule, scales the loss in float16, clips the gradients, and runs an optimiser
of PyTorch. It then applies the network's own constraints and updates the moving average.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..experiment.training import Train

Precision = Literal["float32", "bfloat16", "float16"]


def learning_rate_factor(settings: Train, step: int, steps_per_epoch: int) -> float:
    """Return the factor of `settings.lr` at a step: a linear warm-up, then the schedule, which ends at 0.

    >>> settings = Train(lr=0.1, epochs=4, schedule="linear", warmup_epochs=2)
    >>> [learning_rate_factor(settings, step, 1) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup, total = settings.warmup_epochs * steps_per_epoch, settings.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    return 1 - share if settings.schedule == "linear" else 1.0


def make_optimizer(module: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Build the optimiser of the settings."""
    parameters, decay = module.parameters(), settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, settings.lr, weight_decay=decay)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return a context that computes in `precision`; lower precisions are autocast."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


class Steps:
    """The steps of a training, with the state that they change: weights, optimiser, scaler, average."""

    def __init__(
        self, module: nn.Module, settings: Train, steps_per_epoch: int, device: torch.device
    ) -> None:
        """Set the unwrapped module on `device`, changed in place, and the schedule's steps per epoch."""
        self._module, self._settings, self._per_epoch = module, settings, steps_per_epoch
        self.epochs = settings.epochs
        """Epochs of the whole training."""
        self._constrain: Callable[[], object] | None = getattr(module, "apply_constraints", None)
        self.optimizer = make_optimizer(module, settings)
        """The optimiser of PyTorch."""
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        """Scaler of the loss, against underflow of gradients in float16; off in other precisions."""
        self.averaged = (
            None
            if settings.ema is None
            else AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
        )
        """The moving average of weights and buffers, if `ema` is set."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0."""
        return self._settings.lr * learning_rate_factor(self._settings, step, self._per_epoch)

    def take(self, step: int, loss: Tensor, backward: Callable[[Tensor], object]) -> None:
        """Take a step along the gradient of `loss`, which `backward` computes."""
        backward(self.scaler.scale(loss))
        if self._settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._module.parameters(), self._settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)  # frees their memory for the next forward pass
        if self._constrain is not None:
            self._constrain()
        if self.averaged is not None:
            self.averaged.update_parameters(self._module)

    @property
    def kept(self) -> nn.Module:
        """The module as it would be kept now: with the moving average, if there is one."""
        return self._module if self.averaged is None else self.averaged.module

    def finish(self) -> None:
        """Copy the moving average into the module, if there is one."""
        if self.averaged is not None:
            self._module.load_state_dict(self.averaged.module.state_dict())

    # State in checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, moving average and the optimiser's state, by name."""
        tensors = {f"model/{name}": tensor for name, tensor in self._module.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for index, memory in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": t for key, t in memory.items() if isinstance(t, Tensor)}
        return tensors

    def numbers(self) -> dict[str, Any]:
        """Return the state of the gradient scaler."""
        return dict(self.scaler.state_dict())

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Restore the state that `tensors` and `numbers` returned.

        Raises RuntimeError, LookupError or ValueError if it belongs to another network or optimiser.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if part in parts:
                parts[part][rest] = tensor
        self._module.load_state_dict(parts["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(parts["ema"])
        memory: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition("/")
            if tensor.shape not in (parameters[int(index)].shape, ()):
                raise ValueError(f"optimizer/{name} has shape {tuple(tensor.shape)}")
            memory.setdefault(int(index), {})[key] = tensor
        # Learning rate and other settings come from the experiment, not from the checkpoint.
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": memory})
        self.scaler.load_state_dict(dict(numbers))
