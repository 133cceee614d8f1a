"""Resumption of a student's training from its last checkpoint, to the same bytes.

A checkpoint holds all that the next step depends on: weights, moving average, optimiser, scaler, where the stream is,
torch's random numbers of every rank, and the loss of the epoch so far. It also says what it belongs to, down to the
seals of the parts that the student reads: with any other store or setting the training is refused, rather than begun
anew over what took hours or gone on with as something else.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...storage.api import Store
from ...storage.errors import BadDataError
from ...storage.identity import as_json, check_same
from ...storage.progress import Progress, silent
from ..experiment.training import Train
from ..models.loaders import with_stable_names
from ..models.networks import count_parameters
from ..models.records import Models, Record
from ..models.weights import save_weights
from ..runtime.inference import device_of
from ..runtime.ranks import ALONE, Ranks
from ..stream.batch import TorchBatch
from .checkpoints import Checkpoint, Checkpoints
from .log import Clock, TrainingLog
from .loop import Training, fit

log = logging.getLogger(__name__)


@runtime_checkable
class Resumable(Protocol):
    """A source of batches with a state, such as a `TorchStream`."""

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position between two batches."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration the rest of the epoch that `state` was taken in."""


_RANDOM = "random"
_RANK_SEEDS = 0x9E3779B97F4A7C15
"""Odd: seeds of ranks lie far from each other, and from those of students."""


def seed_rank(seed: int, ranks: Ranks, step: int = 0) -> None:
    """Give this rank random numbers of its own, the first those of a training by itself: dropout differs by rank."""
    if ranks.rank or step:
        torch.manual_seed((seed + _RANK_SEEDS * (ranks.rank + (step << 16))) % (1 << 63))


def random_state(device: torch.device) -> Tensor:
    """Return the states of torch's generators as uint8: of the CPU, and of the device if it is a GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Put back what `random_state` gave; what of it is there, where it was given on another kind of device."""
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own].clone())
    if device.type == "cuda" and len(state) > own:
        torch.cuda.set_rng_state(state[own:].clone(), device)


class StudentKeeper:
    """Keeps one student's training: a `fit.Keeper`."""

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        batches: Resumable,
        *,
        every: int | None,
        seed: int,
        store: PurePath,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """Set the folder of checkpoints, the steps between two (None for none), and the store for messages."""
        self.checkpoints = Checkpoints(path)
        """Where it is kept."""
        self._identity = as_json(identity)
        self._batches, self._every, self._seed = batches, every, seed
        self._store, self._device, self._ranks = store, device, ranks
        self._resumed_epoch = -1

    def begin_epoch(self, epoch: int) -> None:
        """Make the next iteration over the batches `epoch`, or the rest of it, where it was interrupted."""
        if epoch != self._resumed_epoch:
            self._batches.set_epoch(epoch)
        self._resumed_epoch = -1

    def find(self) -> Checkpoint | None:
        """Return the checkpoint to resume from, or None for a new training.

        Raises SpecMismatch where it belongs to something else, BadDataError where none of those there is whole.
        """
        found = self.checkpoints.newest() if self._ranks.is_first else None
        step = int(self._ranks.first_says(str(-1 if found is None else found.step)))
        if step < 0:
            return None
        found = found or self.checkpoints.read(step)
        self._check(found.identity)
        return found

    def _check(self, theirs: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another student. Raises SpecMismatch, about the part where a seal differs."""
        remedy = f"use what it was begun with, or delete {self.checkpoints.path} to begin the training anew"
        common: dict[str, str] = {"made": "with which this training was begun", "remedy": remedy}
        ours, begun = with_stable_names(self._identity), with_stable_names(theirs)
        for part, digest in dict(begun.get("seals") or {}).items():
            mine = dict(ours.get("seals") or {}).get(part)
            if mine is not None:
                check_same(f"{self._store}: teachers/{part}", {"seal": mine}, {"seal": digest}, **common)
        mine, digest = ours.pop("samples", None), begun.pop("samples", None)
        check_same(f"{self._store}: samples", {"seal": mine}, {"seal": digest}, **common)
        check_same(str(self.checkpoints.path), ours, begun, **common)

    def resume(self, training: Training) -> None:
        """Put back the last checkpoint, if there is one."""
        found = self.find()
        if self._ranks.is_first:
            self.checkpoints.keep_up_to(0 if found is None else found.step)
        if found is None:
            return
        state, tensors = found.state, dict(found.tensors)
        try:
            at = training.position
            at.step, at.epoch = found.step, int(state["epoch"])
            at.rows, at.epoch_steps = int(state["rows"]), int(state["epoch_steps"])
            training.clock.seconds_before = float(state["seconds"])
            training.loss_sum.copy_(self._own_loss(tensors["loss_sum"]))
            training.steps.restore(tensors, state["scaler"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BadDataError(
                str(self.checkpoints.path),
                expected="a checkpoint of this very model",
                found=" ".join(str(error).split())[:200],
                remedy="bring back the model's code, or delete the folder to begin the training anew",
            ) from error
        log.info("%s: going on from step %d", self.checkpoints.path, at.step)
        self._batches.set_epoch(at.epoch)  # or an epoch that is over would be told by where the next begins
        self._batches.load_state_dict(state["stream"])
        self._resumed_epoch = at.epoch
        # Last: whatever is made before may take random numbers.
        own = tensors.get(f"{_RANDOM}/{self._ranks.rank}")
        if own is None:
            seed_rank(self._seed, self._ranks, found.step)
        else:
            set_random_state(own, self._device)

    def _own_loss(self, total: Tensor) -> Tensor:
        """Return this rank's part of the loss so far: the first rank has all of it."""
        return total if self._ranks.is_first else torch.zeros_like(total)

    def after_step(self, training: Training) -> None:
        """Write a checkpoint, where one is due."""
        if self._every is not None and training.position.step % self._every == 0:
            self.save(training)

    def save(self, training: Training) -> None:
        """Write a checkpoint, between any two steps; called by all ranks, written by the first."""
        states = self._ranks.tensors(random_state(self._device))
        loss_sum = self._ranks.mean(training.loss_sum) * self._ranks.size
        if not self._ranks.is_first:
            return
        at = training.position
        tensors = {**training.steps.tensors(), "loss_sum": loss_sum}
        tensors |= {f"{_RANDOM}/{rank}": state for rank, state in enumerate(states)}
        state = {
            "epoch": at.epoch,
            "rows": at.rows,
            "epoch_steps": at.epoch_steps,
            "seconds": training.clock.seconds,
            "scaler": training.steps.numbers(),
            "stream": self._batches.state_dict(),
            "ranks": self._ranks.size,
        }
        self.checkpoints.save(Checkpoint(at.step, self._identity, state, tensors))


@runtime_checkable
class Batches(Resumable, Protocol):
    """A source of batches: a `TorchStream`, or part of one."""

    def __iter__(self) -> Iterator[TorchBatch]:
        """Yield the batches of an epoch, or the rest of it."""


@dataclass(frozen=True)
class Epochs:
    """The epochs of a training, of all ranks together."""

    rows: int
    """Rows that are shown."""
    steps: int
    """Steps that are taken."""


@dataclass(frozen=True)
class Kept:
    """The destination of a training: the folder and name of its files."""

    kind: str
    """Folder of the models that it goes to: "students", "specialists"."""
    name: str
    """Name of its files."""
    identity: Mapping[str, Any]
    """What it follows from, with the digest of the samples and the seals of what it reads."""
    seed: int
    """Its seed."""
    every: int | None
    """Steps between two checkpoints; None for none."""
    store: Store
    """What it reads."""
    models: Models
    """Where it goes."""


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
) -> Record:
    """Train a network that is ready, or go on with its training, and keep its weights, its record and its log.

    batches: on the module's device, of this rank. loss: (logits, batch) -> scalar. where: who it is, for messages.
    Raises SpecMismatch where there are checkpoints of another training, and as `fit`.
    """
    models, path = kept.models, kept.models.weights_path(kept.kind, kept.name)
    keeper = StudentKeeper(
        path.with_suffix(".checkpoints"),
        kept.identity,
        batches,
        every=kept.every,
        seed=kept.seed,
        store=kept.store.path,
        device=device_of(module),
        ranks=ranks,
    )
    if ranks.is_first and as_json(models.recorded_identity(kept.kind, kept.name) or {}) in (
        keeper.checkpoints.identities()
    ):
        keeper.checkpoints.remove()  # of a training that was finished, and killed before this

    def epoch_batches(epoch: int) -> Iterable[TorchBatch]:
        keeper.begin_epoch(epoch)
        return batches

    clock = Clock()
    with TrainingLog(path.with_suffix(".metrics.jsonl") if ranks.is_first else None) as log:
        last = fit(
            module,
            epoch_batches,
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
        )
    facts = {
        "parameters": count_parameters(module),
        "last_loss": last,
        "seconds": round(clock.seconds, 1),
    }
    digest = ranks.first_says(save_weights(module, path) if ranks.is_first else "")
    if not ranks.is_first:
        return Record(as_json(kept.identity), digest, facts)
    record = models.put(kept.kind, kept.name, kept.identity, digest, facts)
    keeper.checkpoints.remove()
    return record
