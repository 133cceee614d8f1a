"""Stage three: how is a student trained from a store?

Inputs, labels and the teachers' logits come from one stream; the targets of the student's temperature, weights and
mean are made of them batch by batch (`student_loss`). With `targets = "hard"` the same student learns from the
labels of the same inputs. A training that was interrupted goes on from its last checkpoint (`keep`), and several
processes may share one (`ranks`).
"""

import json

import numpy as np
import torch
from jaxtyping import Int64

from ...storage.api import Store
from ...storage.errors import BadDataError
from ...storage.progress import Progress, silent
from ...storage.stream.stream import Stream
from ..experiment.document import Experiment
from ..models.build import build_model
from ..models.records import Models, Record
from ..runtime.device import choose_device
from ..runtime.ranks import ALONE, Ranks
from ..stream.torch_stream import TorchStream
from ..trainer.resume import Epochs, Kept, seed_rank, train_and_keep
from ..transfer import TransferRows
from ..views import check_labels_of_views, recorded_views
from .loss import StudentLoss
from .todo import StudentSeed, missing_students, shown_capture, student_identity, student_rows, student_seeds


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
        labels_are_complete=bool((_labels(run, store) >= 0).all()),
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
    if needed is not None and not (labels := _labels(run, store) >= 0).any():
        found = f"none in its {len(labels):,} rows" if student.rows < 1 else "a store without any"
        raise BadDataError(
            f"student {student.name!r}",
            expected=f"labels, for {needed}",
            found=found,
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
        rows=student_rows(run, store.num_rows),
        seed=run.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        decode=student.targets == "soft",
        temperature=student.temperature,
        transfer_set=None if transfer_set is None else transfer_set.dataset,
        augment=augment,
    )
    return stream, transfer_set.first.shape if transfer_set is not None else stream.input_shape


def _labels(run: StudentSeed, store: Store) -> Int64[np.ndarray, "rows"]:
    """Return the labels of the rows that a student learns from."""
    rows = student_rows(run, store.num_rows)
    return store.samples.labels_of(slice(None) if rows is None else rows)
