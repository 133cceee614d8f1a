"""Stage three: how is a student trained from a store?

Inputs, labels and the teachers' logits come from one stream; the targets of the student's temperature, weights and
mean are made of them batch by batch (`student_loss`). With `targets = "hard"` the same student learns from the
labels of the same inputs. A training that was interrupted goes on from its last checkpoint (`keep`), and several
processes may share one (`ranks`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..storage.api import Store
from ..storage.errors import BadDataError, SpecMismatch
from ..storage.inputs import Augment, is_augmented
from ..storage.progress import Progress, silent
from ..storage.reader import CaptureReader
from ..storage.stream import Stream
from .agenda import (
    StudentSeed,
    augmentation_identity,
    missing_students,
    shown_capture,
    student_identity,
    student_seeds,
)
from .device import choose_device
from .experiment import Experiment, Train
from .fit import fit
from .inference import device_of
from .keep import Resumable, StudentKeeper, seed_rank
from .models import count_parameters
from .ranks import ALONE, Ranks
from .records import Models, Record, as_json
from .student_loss import StudentLoss
from .teachers import build_model
from .torch_stream import TorchBatch, TorchStream
from .training_log import Clock, TrainingLog
from .transfer import TransferRows
from .views import experiment_views, mixes_rows, rows_of_store
from .weights import save_weights


def train_students(
    experiment: Experiment,
    store: Store,
    models: Models,
    *,
    device: str | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> list[str]:
    """Train every student that is not trained yet; their names, one a seed.

    ranks: the processes that train each of them together, all of which call this.
    Raises StoreIncomplete or PartNotFound where a capture that a student learns from is not sealed.
    """
    missing = missing_students(experiment, models, store)
    # What is missing is asked once, of the first: the others might come late, and miss what it has finished.
    names = json.loads(ranks.first_says(json.dumps([run.name for run in missing])))
    todo = [run for run in student_seeds(experiment) if run.name in names]
    for run in todo:
        train_student(experiment, run, store, models, device=device, progress=progress, ranks=ranks)
    return [run.name for run in todo]


def train_student(
    experiment: Experiment,
    run: StudentSeed,
    store: Store,
    models: Models,
    *,
    device: str | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> Record:
    """Train one student from one seed, or go on with it, and keep its weights and its record.

    Beside the weights stands a log of the training, `<name>.metrics.jsonl`, and, until it is done, the folder of
    its checkpoints, `<name>.checkpoints`. Raises SpecMismatch where those belong to another store or setting.
    """
    student, settings = run.student, run.student.train
    identity = student_identity(experiment, run, store)
    stream, input_shape = open_stream(experiment, run, store, ranks)
    target = choose_device(ranks.device(device))
    torch.manual_seed(run.seed)
    module = build_model(student, experiment, input_shape=input_shape, num_classes=store.num_classes).to(
        target
    )
    seed_rank(run.seed, ranks)
    loss = StudentLoss(
        student,
        experiment.teacher_weights(student),
        labels_are_complete=bool((store.samples.labels >= 0).all()),
        ranks=ranks,
    )
    return train_and_keep(
        Kept("students", run.name, identity, run.seed, settings.checkpoint_every, store, models),
        module,
        TorchStream(stream, target),
        Epochs(stream.epoch_rows, len(stream)),
        settings,
        loss,
        where=f"training student {run.name}",
        progress=progress,
        ranks=ranks,
        loss_is_of_all_ranks=loss.is_of_all_ranks,
    )


@runtime_checkable
class Batches(Resumable, Protocol):
    """Where batches come from: a `TorchStream`, or some of one."""

    def __iter__(self) -> Iterator[TorchBatch]:
        """The batches of an epoch, or the rest of it."""


@dataclass(frozen=True)
class Epochs:
    """What an epoch is, of all ranks together."""

    rows: int
    """Rows that are shown."""
    steps: int
    """Steps that are taken."""


@dataclass(frozen=True)
class Kept:
    """Where a training is kept, and as what."""

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


def open_stream(
    experiment: Experiment, run: StudentSeed, store: Store, ranks: Ranks = ALONE
) -> tuple[Stream, tuple[int, ...]]:
    """The stream that a student learns from, on this rank, and the shape of one of its inputs.

    Raises ConfigError where the rows of a step are no multiple of the ranks, BadDataError for labels that are needed
    and not there, or not there for what it would be shown, SpecMismatch where the experiment's augmentation is not the
    one that the captures were made with.
    """
    student = run.student
    needed = student.labels_needed_for
    if needed is not None and not (store.samples.labels >= 0).any():
        raise BadDataError(
            f"student {student.name!r}",
            expected=f"labels, for {needed}",
            found="a store without any",
            remedy="train it on soft targets alone, or label the transfer set",
        )
    names = shown_capture(experiment, student)
    first = store.teachers[names[0]]
    if student.targets == "hard" and first.num_views == 1:
        names = []
    transfer_set = TransferRows(experiment) if store.samples.inputs is None else None
    augment = None
    if names and first.augmentation:
        augment = recorded_views(experiment, store, names[0], transfer_set)
        check_labels_of_views(f"student {student.name!r}", needed, student.views, first, augment)
    stream = store.stream(
        ranks.rows_each(student.train.batch_size),
        teachers=names,
        views=student.views,
        seed=run.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        decode=student.targets == "soft",
        temperature=student.temperature,
        transfer_set=None if transfer_set is None else transfer_set.dataset,
        augment=augment,
    )
    return stream, transfer_set.first.shape if transfer_set is not None else stream.input_shape


def check_labels_of_views(
    where: str, needed: str | None, asked: str | int, shown: CaptureReader, augment: Augment
) -> None:
    """Refuse to learn from the labels of mixtures, which have none. Raises BadDataError.

    needed: what the labels are needed for; None where they are not. asked: the views that are shown.
    """
    views = range(shown.num_views) if isinstance(asked, str) else [asked]
    mixed = [view for view in views if is_augmented(shown.augmentation, view)]
    if needed is not None and mixed and mixes_rows(augment):
        raise BadDataError(
            where,
            expected=f"inputs that have a label, for {needed}",
            found=f"views {mixed}, whose inputs are mixtures of two rows",
            remedy="train it on soft targets alone, or on a view that is not augmented (views = 0)",
        )


def recorded_views(
    experiment: Experiment, store: Store, teacher: str, transfer_set: TransferRows | None = None
) -> Augment:
    """The function that makes a capture's views again, from the experiment's own table.

    transfer_set: where the store keeps no inputs, what has them.
    Code is never taken from a store: its spec is only compared. Raises SpecMismatch where the two differ.
    """
    theirs, ours = store.teachers[teacher].augmentation, augmentation_identity(experiment)
    others = (
        rows_of_store(store) if transfer_set is None and store.samples.inputs is not None else transfer_set
    )
    make_view = experiment_views(experiment, others, made_twice=False)
    if make_view is None or ours is None or theirs is None or as_json(ours) != theirs:
        raise SpecMismatch(
            f"{store.path}: teachers/{teacher}",
            expected=f"the augmentation that it was captured with, {theirs}"[:240],
            found=f"{ours}"[:240],
            remedy="set [cache] augment to the one of the capture",
        )
    return make_view
