"""Stage three: how is a student trained from a store?

Inputs, labels and the teachers' logits come from one stream; the soft targets of the student's temperature,
weights and mean are made of them batch by batch. With `targets = "hard"` the same student learns from the
labels of the same inputs.
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ..storage.api import Store
from ..storage.errors import BadDataError, SpecMismatch
from ..storage.progress import Progress, silent
from ..storage.inputs import Augment
from ..storage.stream import Stream
from .agenda import StudentSeed, augmentation_identity, missing_students, shown_capture, student_identity
from .experiment import Experiment
from .fit import choose_device, fit
from .losses import Distillation, hard_cross_entropy, soft_targets
from .models import count_parameters
from .records import Models, Record, as_json
from .teachers import build_model
from .torch_stream import TorchBatch, TorchStream
from .transfer import TransferRows
from .views import experiment_views
from .weights import save_weights


def train_students(
    experiment: Experiment,
    store: Store,
    models: Models,
    *,
    device: str | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Train every student that is not trained yet; their names, one a seed.

    Raises StoreIncomplete or PartNotFound where a capture that a student learns from is not sealed.
    """
    missing = missing_students(experiment, models, store)
    for run in missing:
        train_student(experiment, run, store, models, device=device, progress=progress)
    return [run.name for run in missing]


def train_student(
    experiment: Experiment,
    run: StudentSeed,
    store: Store,
    models: Models,
    *,
    device: str | None = None,
    progress: Progress = silent,
) -> Record:
    """Train one student from one seed, and keep its weights and its record."""
    student, settings = run.student, run.student.train
    identity = student_identity(experiment, run, store)
    stream, input_shape = open_stream(experiment, run, store)
    target = choose_device(device)
    started = time.monotonic()
    torch.manual_seed(run.seed)
    module = build_model(student, experiment, input_shape=input_shape, num_classes=store.num_classes).to(
        target
    )
    batches = TorchStream(stream)
    weights = experiment.teacher_weights(student)
    distillation = Distillation(student.temperature, student.hard_weight)

    def epoch_batches(epoch: int) -> Iterator[TorchBatch]:
        batches.set_epoch(epoch)
        return (batch.to(target) for batch in batches)

    def loss(logits: Tensor, batch: TorchBatch) -> Tensor:
        if student.targets == "hard":
            return hard_cross_entropy(logits, batch.labels)
        targets = soft_targets(batch.teacher_logits(), student.temperature, weights, student.mean)
        value: Tensor = distillation(logits, targets, batch.labels)
        return value

    last = fit(
        module,
        epoch_batches,
        stream.epoch_rows,
        len(stream),
        settings,
        loss,
        where=f"training student {run.name}",
        progress=progress,
    )
    facts = {
        "parameters": count_parameters(module),
        "last_loss": last,
        "seconds": round(time.monotonic() - started, 1),
    }
    digest = save_weights(module, models.weights_path("students", run.name))
    return models.put("students", run.name, identity, digest, facts)


def open_stream(experiment: Experiment, run: StudentSeed, store: Store) -> tuple[Stream, tuple[int, ...]]:
    """The stream that a student learns from, and the shape of one of its inputs.

    Raises BadDataError for hard targets without labels, SpecMismatch where the experiment's augmentation is not
    the one that the captures were made with.
    """
    student = run.student
    needed = 'targets = "hard"' if student.targets == "hard" else f"hard_weight = {student.hard_weight:g}"
    if (student.targets == "hard" or student.hard_weight) and not (store.samples.labels >= 0).any():
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
    stream = store.stream(
        student.train.batch_size,
        teachers=names,
        views=student.views,
        seed=run.seed,
        temperature=student.temperature,
        transfer_set=None if transfer_set is None else transfer_set.dataset,
        augment=recorded_views(experiment, store, names[0]) if names and first.augmentation else None,
    )
    return stream, transfer_set.first.shape if transfer_set is not None else stream.input_shape


def recorded_views(experiment: Experiment, store: Store, teacher: str) -> Augment:
    """The function that makes a capture's views again, from the experiment's own table.

    Code is never taken from a store: its spec is only compared. Raises SpecMismatch where the two differ.
    """
    theirs, ours = store.teachers[teacher].augmentation, augmentation_identity(experiment)
    make_view = experiment_views(experiment)
    if make_view is None or ours is None or theirs is None or as_json(ours) != theirs:
        raise SpecMismatch(
            f"{store.path}: teachers/{teacher}",
            expected=f"the augmentation that it was captured with, {theirs}"[:240],
            found=f"{ours}"[:240],
            remedy="set [cache] augment to the one of the capture",
        )
    return make_view
