"""How is a network trained, teacher or student?

The loop is one for both: batches of an epoch, a loss of logits and batch, an optimiser, a schedule. What
differs (where batches come from, what the loss is) is passed in.
"""

import math
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..storage.errors import BadDataError, ConfigError
from ..storage.progress import Progress, silent
from .experiment import Train
from .inference import forward, refusing_failures


class HasInputs(Protocol):
    """A batch: whatever else it has, its inputs are what the network is given."""

    @property
    def inputs(self) -> Tensor | None:
        """(batch, …)."""

    def __len__(self) -> int: ...


BatchType = TypeVar("BatchType", bound=HasInputs)

REPORT_EVERY = 20
"""Steps between two reports: reading the loss waits for the device."""


def choose_device(name: str | None = None) -> torch.device:
    """The device that is named, or the GPU where there is one. Raises ConfigError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            "device",
            expected="a device that PyTorch can use here, such as cpu",
            found=f"{name!r} ({str(error).splitlines()[0][:120]})",
            remedy="name another one, or leave it out",
        ) from error
    return device


def learning_rate_factor(settings: Train, step: int, steps_per_epoch: int) -> float:
    """Share of `settings.lr` at a step: a linear warm-up, then the schedule, which comes to 0 after the last.

    >>> settings = Train(lr=0.1, epochs=4, schedule="linear", warmup_epochs=2)
    >>> [learning_rate_factor(settings, step, 1) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup, total = settings.warmup_epochs * steps_per_epoch, settings.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    return 1 - share if settings.schedule == "linear" else 1.0


def make_optimizer(module: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """The optimiser that the settings name."""
    parameters, decay = module.parameters(), settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, settings.lr, weight_decay=decay)


def fit(
    module: nn.Module,
    epoch_batches: Callable[[int], Iterable[BatchType]],
    rows_per_epoch: int,
    steps_per_epoch: int,
    settings: Train,
    loss: Callable[[Tensor, BatchType], Float[Tensor, ""]],
    *,
    where: str,
    progress: Progress = silent,
) -> float:
    """Train `module` in place, on the device it is on; the mean loss of the last epoch.

    epoch_batches: the batches of an epoch, on the module's device. loss: (logits, batch) -> scalar.
    where: who is trained, for progress and messages.
    Raises BadLogitsError where the module fails or gives no logits, BadDataError where the very first loss is
    not finite, ConfigError where a later one is not: the settings make the training diverge.
    """
    module.train()
    optimizer = make_optimizer(module, settings)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(settings, step, steps_per_epoch))
    constrain = getattr(module, "apply_constraints", None)
    progress(where, 0, rows_per_epoch * settings.epochs, "rows")
    total_rows, done, step, mean = rows_per_epoch * settings.epochs, 0, 0, math.nan
    for epoch in range(settings.epochs):
        losses = []
        for batch in epoch_batches(epoch):
            if not len(batch):
                continue
            inputs = batch.inputs
            assert inputs is not None  # whoever trains asks for batches with inputs
            optimizer.zero_grad(set_to_none=True)
            value = loss(forward(module, inputs, where), batch)
            if not step and not math.isfinite(value.item()):
                raise BadDataError(
                    f"{where}, first step",
                    expected="a finite loss",
                    found=f"{value.item()} before anything was learned",
                    remedy="look for NaN or very large numbers in the inputs, and at the model's first weights",
                )
            with refusing_failures(where, inputs):
                value.backward()
            optimizer.step()
            schedule.step()
            if constrain is not None:
                constrain()
            losses.append(value.detach())
            done += len(batch)
            step += 1
            if step % REPORT_EVERY == 0:
                progress(where, done, total_rows, "rows", f"loss {losses[-1].item():.4g}")
        mean = float(torch.stack(losses).mean()) if losses else math.nan
        if losses and not math.isfinite(mean):
            raise ConfigError(
                f"{where}, epoch {epoch}",
                expected="a finite loss",
                found=str(mean),
                remedy=f"lower train.lr (now {settings.lr:g}), or add warmup_epochs",
            )
    progress(where, total_rows, total_rows, "rows", f"loss {mean:.4g}")
    module.eval()
    return mean
