"""The training loop of teachers and students.

Callers pass what differs between the two: the batches of an epoch, the loss, and a keeper of checkpoints.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...storage.errors import ConfigError, LogitStoreError
from ...storage.progress import Progress, silent
from ..experiment.training import Train
from ..factories.call import describe_exception
from ..runtime import stopping
from ..runtime.inference import device_of, forward, refusing_failures
from ..runtime.ranks import ALONE, Ranks
from .log import Clock, TrainingLog
from .steps import Steps, autocast
from .trial import not_finite, refuses_single_row
from .validation import Validation

_logger = logging.getLogger(__name__)


class HasInputs(Protocol):
    """A batch with the inputs of the network."""

    @property
    def inputs(self) -> Tensor | None:
        """(batch, …)."""

    def __len__(self) -> int: ...

    def head(self, count: int) -> Any:
        """Return the first rows."""


BatchType = TypeVar("BatchType", bound=HasInputs)
REPORT_EVERY = 20
"""Steps between two reports, each of which waits for the device."""
_MOSTLY = 0.5
"""Share of a moving average from which on the weights of the first step are most of it."""
KL_EVERY = 8
"""Steps between two whose KL is computed: that of all steps took 5 to 10 % of a step of a small MLP."""


@runtime_checkable
class Diverges(Protocol):
    """A loss that can tell the KL from the network to its soft targets."""

    def divergence(self) -> Tensor | None:
        """Return the mean KL of the last batch, a mean over rows as the loss is; None where there are no soft targets."""


@dataclass
class Position:
    """The position of a training between two steps."""

    step: int = 0
    """Steps so far."""
    epoch: int = 0
    """Epoch of the last step, from 0."""
    rows: int = 0
    """Rows shown so far, on all ranks."""
    epoch_steps: int = 0
    """Steps of this epoch so far."""


@dataclass
class Training:
    """A training between two steps, as a checkpoint keeps it."""

    position: Position
    """Steps, epoch and rows so far."""
    steps: Steps
    """Weights, moving average, optimiser and scaler."""
    loss_sum: Tensor
    """float64 (): sum over the steps of this epoch, of this rank's part of the loss."""
    clock: Clock
    """Time of training."""
    kl_sum: Tensor
    """float64 (): sum of this rank's part of the KL, over `kl_steps`."""
    kl_steps: int = 0
    """Steps of this epoch whose KL was computed."""
    validation: Validation | None = None
    """Validation after the epochs, with the best one so far."""


@runtime_checkable
class Keeper(Protocol):
    """Keeps checkpoints of a training, and resumes it."""

    def resume(self, training: Training) -> None:
        """Restore the last checkpoint, if there is one; the batches of `position.epoch` are then its rest."""

    def after_step(self, training: Training, *, is_last: bool) -> None:
        """Write a checkpoint, if it is due. is_last: whether the training is stopped now."""


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
    log: TrainingLog | None = None,
    clock: Clock | None = None,
    keeper: Keeper | None = None,
    ranks: Ranks = ALONE,
    loss_is_of_all_ranks: bool = False,
    validation: Validation | None = None,
) -> float:
    """Train `module` in place, on its device; return the mean loss of the last epoch.

    epoch_batches: the batches of an epoch for this rank, on the module's device; equally many on each rank.
    rows_per_epoch: of all ranks. loss: (logits, batch) -> scalar, a mean over rows.
    where: name of the training, for progress and messages. log: for a line every few steps and every epoch.
    clock: for the time of training. keeper: of checkpoints; none by default.
    loss_is_of_all_ranks: whether `loss` is the mean over the rows of all ranks, instead of this rank's.
    validation: after epochs; none by default. It holds the weights of the best one; the module ends with the last.
    Raises BadLogitsError if the module fails or returns no logits, BadDataError if the first loss is not finite,
    ConfigError if a later one is not: the settings let the training diverge. Raises `stopping.Stopped` after a step in which
    a signal came, with a checkpoint of it.
    """
    device = device_of(module)
    module.train()
    nothing = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    run = _Run(
        Training(
            Position(),
            Steps(module, settings, steps_per_epoch, device),
            nothing,
            clock or Clock(),
            nothing.clone(),
            validation=validation,
        ),
        settings,
        where,
        rows_per_epoch * settings.epochs,
        log or TrainingLog(None),
        progress,
        ranks,
    )
    _warn_of_average(settings, steps_per_epoch, where)
    if keeper is not None:
        keeper.resume(run.training)
    at = run.training.position
    run.log.begin(at.step, at.epoch)
    progress(where, at.rows, run.total_rows, "rows")
    network = _Network(module, settings, device, ranks, where)
    mean = math.nan
    for epoch in range(at.epoch, settings.epochs):
        if epoch != at.epoch:
            at.epoch, at.epoch_steps = epoch, 0
            run.begin_epoch()
        for batch in run.training.clock.waiting_for(epoch_batches(epoch)):
            batch = network.without_single_row(batch)
            # A signal to one rank stops all of them, after the same step.
            counts, stops = zip(*ranks.numbers(len(batch), stopping.asked()), strict=True)
            if not any(counts):
                continue
            value = network.loss(batch, loss)
            part, kl = value.detach(), run.divergence(loss)
            run.check_first(part)
            if ranks.size > 1:
                # DistributedDataParallel averages the gradients of the ranks. For the mean over all rows, weight the
                # losses by their rows, or multiply the loss of all ranks by their number.
                share = len(batch) / sum(counts)
                own = 1 / ranks.size if loss_is_of_all_ranks else share
                part, kl = part * own, None if kl is None else kl * own
                value = value * ranks.size if loss_is_of_all_ranks else value * (share * ranks.size)
            run.training.loss_sum += part
            if kl is not None:
                run.training.kl_sum += kl
                run.training.kl_steps += 1
            run.training.steps.take(at.step, value, network.backward)
            at.step, at.epoch_steps, at.rows = at.step + 1, at.epoch_steps + 1, at.rows + sum(counts)
            run.training.clock.count(sum(counts))
            if at.step % REPORT_EVERY == 0:
                run.report("step", part, kl)
            if keeper is not None:
                keeper.after_step(run.training, is_last=any(stops))
            ranks.stop(stops)
        mean = run.end_epoch()
        run.validate()
    run.training.steps.finish()
    progress(where, run.total_rows, run.total_rows, "rows", run.summary(mean))
    module.eval()
    return mean


def _warn_of_average(settings: Train, steps_per_epoch: int, where: str) -> None:
    """Warn of a moving average that would still be mostly the weights of the first step at the end."""
    steps = settings.epochs * steps_per_epoch
    if settings.ema is not None and steps > 1 and (first := settings.ema ** (steps - 1)) > _MOSTLY:
        _logger.warning(
            "%s: ema = %g: after %d steps %.0f %% of the average are the weights of the first step; lower ema, or train longer",
            where,
            settings.ema,
            steps,
            100 * first,
        )


@dataclass
class _Run:
    """A training, its log and its progress."""

    training: Training
    settings: Train
    where: str
    total_rows: int
    log: TrainingLog
    progress: Progress
    ranks: Ranks
    epoch_kl: float | None = None
    """Mean KL of the last epoch."""

    def begin_epoch(self) -> None:
        """Begin the sums of an epoch."""
        self.training.loss_sum.zero_()
        self.training.kl_sum.zero_()
        self.training.kl_steps = 0

    def divergence(self, loss: object) -> Tensor | None:
        """Return the KL of the batch whose loss was computed last, at some steps: the first of an epoch, and reported ones."""
        at = self.training.position
        is_due = at.epoch_steps % KL_EVERY == 0 or (at.step + 1) % REPORT_EVERY == 0
        return loss.divergence() if is_due and isinstance(loss, Diverges) else None

    def check_first(self, value: Tensor) -> None:
        """Refuse a first loss that is not finite. Raises BadDataError."""
        if not self.training.position.step and not math.isfinite(value.item()):
            raise not_finite(self.where, value.item())

    def report(self, event: str, part: Tensor, kl_part: Tensor | None) -> tuple[float, float | None]:
        """Report a step or an epoch; return its loss and its KL, of which this rank's shares are given."""
        at, kl = self.training.position, None
        if kl_part is None:
            value = float(self.ranks.mean(part)) * self.ranks.size
        else:
            both = torch.stack([part.to(kl_part.dtype), kl_part])
            value, kl = (each * self.ranks.size for each in self.ranks.mean(both).tolist())
        speed, waiting = self.training.clock.lap(event)
        self.log.write(
            event=event,
            step=at.step,
            epoch=at.epoch + 1,
            rows=at.rows,
            loss=value if math.isfinite(value) else None,
            **({} if kl is None else {"kl": kl if math.isfinite(kl) else None}),
            lr=self.training.steps.learning_rate(at.step - 1),
            rows_per_second=round(speed, 1),
            waiting=round(waiting, 4),
            seconds=round(self.training.clock.seconds, 3),
        )
        if event == "step":
            detail = f"{self.summary(value, kl)}, waiting {100 * waiting:.0f} %"
            self.progress(self.where, at.rows, self.total_rows, "rows", detail)
        return value, kl

    def summary(self, loss: float, kl: float | None = None) -> str:
        """Put a loss in words, with the KL and the last validation where there are any."""
        kl = self.epoch_kl if kl is None else kl
        validation = self.training.validation
        parts = [f"loss {loss:.4g}", *([] if kl is None else [f"KL {kl:.4g}"])]
        if validation is not None and validation.last is not None:
            parts.append(f"validation {validation.last.text()}")
        return ", ".join(parts)

    def validate(self) -> None:
        """Validate after an epoch, if it is due: the weights that would be kept now."""
        at, validation = self.training.position, self.training.validation
        if validation is None or not at.epoch_steps or not validation.is_due(at.epoch, self.settings.epochs):
            return
        self.progress(self.where, at.rows, self.total_rows, "rows", "validating")
        figures, is_best = validation.validate(self.training.steps.kept, at.epoch, self.ranks)
        numbers = {key: value for key, value in asdict(figures).items() if value is not None}
        self.log.write(
            event="validation",
            step=at.step,
            epoch=at.epoch + 1,
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            **({"best": is_best} if validation.selects else {}),
            seconds=round(self.training.clock.seconds, 3),
        )

    def end_epoch(self) -> float:
        """Return the mean loss of the epoch. Raises ConfigError if it is not finite."""
        at = self.training.position
        if not at.epoch_steps:
            return math.nan
        steps = self.training.kl_steps
        kl_part = self.training.kl_sum / steps if steps else None
        mean, self.epoch_kl = self.report("epoch", self.training.loss_sum / at.epoch_steps, kl_part)
        if not math.isfinite(mean):
            raise ConfigError(
                f"{self.where}, epoch {at.epoch + 1}",
                expected="a finite loss",
                found=str(mean),
                remedy=f"lower train.lr (now {self.settings.lr:g}), or add warmup_epochs",
            )
        return mean


class _Network:
    """A module in training: compiled, in its precision, on several ranks."""

    def __init__(
        self, module: nn.Module, settings: Train, device: torch.device, ranks: Ranks, where: str
    ) -> None:
        self._plain, self._settings, self._device, self._where = module, settings, device, where
        run: Any = ranks.wrap(module)
        self._module: Any = torch.compile(run) if settings.compile else run
        self._inputs: Tensor | None = None
        self._refuses_single_row: bool | None = None

    def without_single_row(self, batch: Any) -> Any:
        """Return a batch of at least two rows, or of none, for a network that normalises over the rows of a batch."""
        if len(batch) != 1 or batch.inputs is None:
            return batch
        if self._refuses_single_row is None:
            with autocast(self._device, self._settings.precision):
                self._refuses_single_row = refuses_single_row(self._plain, batch.inputs)
            if self._refuses_single_row:
                _logger.warning(
                    "%s: a batch of a single row is left out, as the network normalises over the rows of a batch; "
                    "another batch_size leaves out none",
                    self._where,
                )
        return batch.head(0) if self._refuses_single_row else batch

    def loss(self, batch: Any, loss: Callable[[Tensor, Any], Tensor]) -> Tensor:
        """Compute the loss of a batch."""
        inputs = batch.inputs
        assert inputs is not None  # every training requests batches with inputs
        self._inputs = inputs
        if not len(inputs):
            return self._nothing(inputs, batch, loss)
        with autocast(self._device, self._settings.precision):
            logits = self._forward(inputs)
        return loss(logits if self._settings.precision == "float32" else logits.float(), batch)

    def _nothing(self, inputs: Tensor, batch: Any, loss: Callable[[Tensor, Any], Tensor]) -> Tensor:
        """Return a loss of 0 for a rank without rows in this step, which must join the collectives."""
        self._plain.eval()  # keeps the dummy row out of batch statistics
        with autocast(self._device, self._settings.precision):
            logits = self._forward(inputs.new_zeros((1, *inputs.shape[1:]))).float()
        self._plain.train()
        value = loss(logits[:0], batch)
        return logits.sum() * 0.0 + (value if math.isfinite(value.item()) else 0.0)

    def _forward(self, inputs: Tensor) -> Tensor:
        try:
            return forward(self._module, inputs, self._where)
        except LogitStoreError as error:
            cause = error.__cause__
            if cause is None or not type(cause).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise ConfigError(
                f"{self._where}: train.compile",
                expected="a model that torch.compile can compile here",
                found=f"an error of the compiler: {describe_exception(cause)[:200]}",
                remedy="remove compile",
            ) from cause

    def backward(self, value: Tensor) -> None:
        """Compute the gradients of a loss."""
        assert self._inputs is not None  # set by the forward pass
        with refusing_failures(self._where, self._inputs):
            value.backward()
