"""Resumption of a student's training from its last checkpoint, to the same bytes.

A checkpoint holds the state of the next step: weights, moving average, optimiser, scaler, position of the stream, torch's
random numbers of every rank, and the loss of the epoch so far. It also holds the identity of the training, down to the
seals of the parts that the student reads. A training of another store or setting is refused: it neither overwrites hours
of work nor continues from them.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...storage.api import Store
from ...storage.errors import BadDataError
from ...storage.identity import as_json, check_same, difference
from ...storage.progress import Progress, silent
from ..experiment.training import Train
from ..models.alone import alone
from ..models.loaders import with_stable_names
from ..models.networks import count_parameters
from ..models.records import Models, Record, as_kept, warn_of_missing_keys
from ..models.weights import save_weights
from ..runtime.inference import device_of
from ..runtime.ranks import ALONE, Ranks
from ..runtime.stopping import held
from ..stream.batch import TorchBatch
from .checkpoints import Checkpoint, Checkpoints
from .kept import keep_both, training_log
from .log import Clock, Outlet
from .loop import Training, fit
from .validation import Validation

log = logging.getLogger(__name__)
_RANDOM = "random"
_OTHER_BYTES = 64 << 20
"""Of a checkpoint: the header, and the states of all ranks' random numbers."""
_SHOWN = 80
"""Characters of a setting in a warning."""
_RANK_SEEDS = 0x9E3779B97F4A7C15
"""Distance of the seeds of two ranks: odd and large, so that they differ from the seeds of other students."""


@runtime_checkable
class Batches(Protocol):
    """A source of batches with a position: a `TorchStream`, or part of one."""

    def __iter__(self) -> Iterator[TorchBatch]:
        """Yield the batches of an epoch, or the rest of it."""

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position between two batches."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration the rest of the epoch of `state`."""


@dataclass(frozen=True)
class Epochs:
    """The size of an epoch, over all ranks."""

    rows: int
    """Rows that are shown."""
    steps: int
    """Steps that are taken."""


@dataclass(frozen=True)
class Kept:
    """The destination of a training: folder and name of its files, and their identity."""

    kind: str
    """Folder of the models: "students" or "specialists"."""
    name: str
    """Name of the files."""
    identity: Mapping[str, Any]
    """Settings, digest of the samples, and seals of the parts that the training reads."""
    seed: int
    """Seed of the training."""
    every: int | None
    """Steps between two checkpoints; None for no checkpoints."""
    store: Store
    """Store that the training reads."""
    models: Models
    """Folders of the models."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Facts of its record beside those of the training, such as the shape of its inputs."""

    @property
    def weights(self) -> Path:
        """File of the weights; log and checkpoints stand beside it."""
        return self.models.weights_path(self.kind, self.name)


def seed_rank(seed: int, ranks: Ranks, step: int = 0) -> None:
    """Set the seed of torch for this rank, so that dropout differs by rank; the first keeps the seed of a single process."""
    if ranks.rank or step:
        torch.manual_seed((seed + _RANK_SEEDS * (ranks.rank + (step << 16))) % (1 << 63))


def random_state(device: torch.device) -> Tensor:
    """Return the states of torch's generators as uint8: of the CPU, and of the device if it is a GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Restore the result of `random_state`; a state without a GPU restores the CPU only."""
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own].clone())
    if device.type == "cuda" and len(state) > own:
        torch.cuda.set_rng_state(state[own:].clone(), device)


def _most_bytes(training: Training) -> int:
    """Return the most bytes that the tensors of a checkpoint can take: weights, best ones, average, and an optimiser's memory."""
    sizes = (tensor.numel() * max(tensor.element_size(), 4) for tensor in training.steps.tensors().values())
    return 5 * sum(sizes) + _OTHER_BYTES


class StudentKeeper:
    """The checkpoints of one student's training: a `loop.Keeper`."""

    def __init__(self, kept: Kept, batches: Batches, device: torch.device, ranks: Ranks = ALONE) -> None:
        """Set the destination and the batches of this rank, which a checkpoint resumes."""
        self.checkpoints = Checkpoints(kept.weights.with_suffix(".checkpoints"))
        """The checkpoints in their folder."""
        self._kept, self._identity = kept, as_json(kept.identity)
        self._batches, self._device, self._ranks = batches, device, ranks
        self._resumed_epoch = -1

    def epoch_batches(self, epoch: int) -> Batches:
        """Return the batches of an epoch, or the rest of a resumed one."""
        if epoch != self._resumed_epoch:
            self._batches.set_epoch(epoch)
        self._resumed_epoch = -1
        return self._batches

    def find(self, most: int | None = None) -> Checkpoint | None:
        """Return the checkpoint to resume from, or None for a new training.

        most: bytes that its tensors may have. Raises SpecMismatch if it belongs to another training, BadDataError if there are checkpoints, but none can be
        read.
        """
        checkpoint = self.checkpoints.newest(most) if self._ranks.is_first else None
        step = int(self._ranks.first_says(str(-1 if checkpoint is None else checkpoint.step)))
        if step < 0:
            return None
        checkpoint = checkpoint or self.checkpoints.read(step, most)
        self._check(checkpoint.identity)
        return checkpoint

    def _check(self, theirs: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another training. Raises SpecMismatch, about the part whose seal differs."""
        remedy = f"restore the earlier store, settings and code, or delete {self.checkpoints.path} to restart the training"
        common: dict[str, str] = {"made": "with which this training was begun", "remedy": remedy}
        store = self._kept.store.path
        ours, begun = with_stable_names(self._identity), with_stable_names(theirs)
        warn_of_missing_keys(ours, begun, str(self.checkpoints.path))
        ours = as_kept(ours, begun)
        seals = begun.get("seals")
        for part, digest in seals.items() if isinstance(seals, Mapping) else ():
            mine = dict(ours.get("seals") or {}).get(part)
            if mine is not None:
                check_same(f"{store}: teachers/{part}", {"seal": mine}, {"seal": digest}, **common)
        mine, digest = ours.pop("samples", None), begun.pop("samples", None)
        check_same(f"{store}: samples", {"seal": mine}, {"seal": digest}, **common)
        check_same(str(self.checkpoints.path), ours, begun, **common)

    def resume(self, training: Training) -> None:
        """Restore the last checkpoint, if there is one."""
        checkpoint = self.find(_most_bytes(training))
        if self._ranks.is_first:
            self.checkpoints.keep_up_to(0 if checkpoint is None else checkpoint.step)
        if checkpoint is None:
            return
        try:
            self._restore(training, checkpoint)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise BadDataError(
                str(self.checkpoints.path),
                expected="a checkpoint of this model",
                found=f"a checkpoint of another model: {' '.join(str(error).split())}"[:200],
                remedy="restore the model's code, or delete the folder to restart the training",
            ) from error
        log.info("%s: resuming from step %d", self.checkpoints.path, training.position.step)

    def _restore(self, training: Training, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint. Raises the errors of Python and torch for values that do not fit."""
        state, tensors, at = checkpoint.state, dict(checkpoint.tensors), training.position
        at.step, at.epoch = checkpoint.step, int(state["epoch"])
        at.rows, at.epoch_steps = int(state["rows"]), int(state["epoch_steps"])
        training.clock.seconds_before = float(state["seconds"])
        is_within = 0 <= at.epoch < training.steps.epochs and 1 <= at.epoch_steps <= at.step
        if not is_within or min(at.rows, training.clock.seconds_before) < 0:
            raise ValueError(f"a position of {at.epoch_steps} steps in epoch {at.epoch}, step {at.step}")
        training.loss_sum.copy_(tensors["loss_sum"])
        # Checkpoints of earlier versions have no KL: the mean of this epoch is then not known.
        training.kl_steps = int(state.get("kl_steps", 0))
        training.kl_sum.copy_(tensors.get("kl_sum", torch.tensor(math.nan)))
        if not self._ranks.is_first:
            training.loss_sum.zero_()  # the first rank holds the sum of all
            training.kl_sum.zero_()
        if training.validation is not None and self._ranks.is_first:
            own = training.steps.kept.state_dict()
            training.validation.restore(state.get("validation"), tensors, own)
        training.steps.restore(tensors, state["scaler"])
        self._batches.set_epoch(
            at.epoch
        )  # else the state after its last batch would be the start of the next
        self._batches.load_state_dict(state["stream"])
        self._resumed_epoch = at.epoch
        # Last, because the steps above may draw random numbers.
        numbers = tensors.get(f"{_RANDOM}/{self._ranks.rank}")
        if numbers is None:
            seed_rank(self._kept.seed, self._ranks, checkpoint.step)
        else:
            set_random_state(numbers, self._device)

    def after_step(self, training: Training, *, is_last: bool) -> None:
        """Write a checkpoint, if it is due, or if checkpoints are wanted and the training is stopped."""
        every = self._kept.every
        if every is not None and (is_last or training.position.step % every == 0):
            self.save(training)

    def save(self, training: Training) -> None:
        """Write a checkpoint between two steps; all ranks call this, and the first writes."""
        states = self._ranks.tensors(random_state(self._device))
        loss_sum = self._ranks.mean(training.loss_sum) * self._ranks.size
        kl_sum = self._ranks.mean(training.kl_sum) * self._ranks.size
        if not self._ranks.is_first:
            return
        at = training.position
        tensors = {**training.steps.tensors(), "loss_sum": loss_sum, "kl_sum": kl_sum}
        tensors |= {f"{_RANDOM}/{rank}": state for rank, state in enumerate(states)}
        state = {
            "epoch": at.epoch,
            "rows": at.rows,
            "epoch_steps": at.epoch_steps,
            "seconds": training.clock.seconds,
            "scaler": training.steps.numbers(),
            "stream": self._batches.state_dict(),
            "ranks": self._ranks.size,
            "kl_steps": training.kl_steps,
        }
        if training.validation is not None:
            state["validation"] = training.validation.state()
            tensors |= training.validation.tensors()
        self.checkpoints.save(Checkpoint(at.step, self._identity, state, tensors))


def train_and_keep(
    kept: Kept,
    module: nn.Module,
    batches: Batches,
    epochs: Epochs,
    settings: Train,
    loss: Callable[[Tensor, TorchBatch], Tensor],
    *,
    where: str,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    loss_is_of_all_ranks: bool = False,
    validation: Validation | None = None,
    outlet: Outlet | None = None,
) -> Record:
    """Train a network, or resume its training, and keep its weights, its record and its log.

    batches: of this rank, on the module's device. loss: (logits, batch) -> scalar. where: name of the training, for
    messages. validation: after epochs; the weights of the last epoch or of the best one are then kept beside the others.
    outlet: gets the values of each line of the log. Raises SpecMismatch for checkpoints of another training, and the errors of `fit`. A process that finds
    another one training this network waits for its record; several ranks raise WriterBusy.
    """
    with contextlib.ExitStack() as stack:
        if ranks.is_first:
            waited = stack.enter_context(alone(kept.weights, where, waits=ranks.size == 1))
            if waited and (made := kept.models.find(kept.kind, kept.name, kept.identity)) is not None:
                return made
        return _train_and_keep(
            kept,
            module,
            batches,
            epochs,
            settings,
            loss,
            where=where,
            progress=progress,
            ranks=ranks,
            loss_is_of_all_ranks=loss_is_of_all_ranks,
            validation=validation,
            outlet=outlet,
        )


def _warn_of_replaced(kept: Kept, finished: Mapping[str, Any]) -> None:
    """Warn of the weights of a finished training with another identity, which this training replaces."""
    if not finished or not kept.weights.exists():
        return
    first = difference(as_kept(with_stable_names(as_json(kept.identity)), finished), finished)
    if first is not None:
        key, ours, theirs = first
        log.warning(
            "%s: replaces the finished training with %s = %s by one with %s; choose another folder to keep both",
            kept.weights,
            key,
            theirs[:_SHOWN],
            ours[:_SHOWN],
        )


def _train_and_keep(
    kept: Kept,
    module: nn.Module,
    batches: Batches,
    epochs: Epochs,
    settings: Train,
    loss: Callable[[Tensor, TorchBatch], Tensor],
    *,
    where: str,
    progress: Progress,
    ranks: Ranks,
    loss_is_of_all_ranks: bool,
    validation: Validation | None,
    outlet: Outlet | None,
) -> Record:
    """Train, without a look at other processes; as `train_and_keep`."""
    keeper = StudentKeeper(kept, batches, device_of(module), ranks)
    if ranks.is_first:
        finished = as_json(kept.models.recorded_identity(kept.kind, kept.name) or {})
        if finished in keeper.checkpoints.identities():
            keeper.checkpoints.remove()  # of a finished training that was killed before it removed them
        _warn_of_replaced(kept, finished)
    clock = Clock()
    with (
        training_log(kept.weights, settings, ranks, outlet) as log,
        held() if kept.every is not None or ranks.size > 1 else nullcontext(),
    ):
        last = fit(
            module,
            keeper.epoch_batches,
            epochs.rows,
            epochs.steps,
            settings,
            loss,
            where=where,
            progress=progress if ranks.is_first else silent,
            log=log,
            clock=clock,
            keeper=keeper,
            ranks=ranks,
            loss_is_of_all_ranks=loss_is_of_all_ranks,
            validation=validation,
        )
    facts = {
        **kept.facts,
        "parameters": count_parameters(module),
        "last_loss": last,
        "seconds": round(clock.seconds, 1),
    }
    facts |= keep_both(module, kept.weights, validation, ranks)
    digest = ranks.first_says(save_weights(module, kept.weights) if ranks.is_first else "")
    if not ranks.is_first:
        return Record(as_json(kept.identity), digest, facts)
    record = kept.models.put(kept.kind, kept.name, kept.identity, digest, facts)
    keeper.checkpoints.remove()
    return record
