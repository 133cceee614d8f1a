"""Stage three: students trained from the store.

Inputs, labels and the teachers' logits come from one stream; the loss makes the targets of each batch from them (`loss`).
With `targets = "hard"` the same student learns from the labels of the same inputs. An interrupted training resumes from
its last checkpoint, and several processes may share one.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped

from ...storage.api import Store
from ...storage.encodings.transform import Transform
from ...storage.errors import BadDataError
from ...storage.stream.inputs import Augment
from ...storage.stream.stream import Stream
from ..experiment.tables import Student
from ..held_out import check_shares, held_out_rows, warn_of_lost_classes
from ..models.records import Record, check_loaded
from ..runtime.ranks import ALONE
from ..same_set import compared_inputs
from ..stream.torch_stream import TorchStream
from ..trainer.resume import Epochs, Kept, seed_rank, train_and_keep
from ..trainer.tensorboard import check_tensorboard
from ..trainer.trial import check_training, try_neighbours
from ..trainer.validation import Divergences, Labelled, Validation, check_labelled, measure
from ..trainer.validation_sets import LabelledBatches, open_set, without_teachers
from ..transfer import TransferRows
from ..views import check_labels_of_views, recorded_views, rows_of_store
from ..workspace import Workspace
from .inputs import with_workers
from .loss import StudentLoss
from .network import begun_network
from .todo import StudentSeed, missing_students, shown_captures, student_identity, student_rows, student_seeds

log = logging.getLogger(__name__)


def train_students(work: Workspace, missing: Sequence[StudentSeed] | None = None) -> list[str]:
    """Train every missing student; their names, one a seed.

    missing: the students, if the caller has found them (`missing_students`). All ranks call this and train each
    together. Raises StoreIncomplete or PartNotFound for a capture that is not sealed.
    """
    missing = missing_students(work) if missing is None else missing
    # The first rank decides: one that looks later would miss the students that are finished by then.
    names = json.loads(work.ranks.first_says(json.dumps([run.name for run in missing])))
    runs = list(student_seeds(work.experiment))
    todo = [run for run in runs if run.name in names]
    if work.ranks.is_first:
        for run in runs:
            work.models.tidy("students", run.name)
        if todo:
            work.check_writable(store=False)
    for run in todo:
        check_shares(
            run.student.train, work.store.num_rows, f"student {run.student.name!r}", rows=run.student.rows
        )
    work.agree(students={run.name: student_identity(work.experiment, run, work.store) for run in todo})
    for run in todo:
        train_student(work, run)
    return list(names)


def train_student(work: Workspace, run: StudentSeed) -> Record:
    """Train one student from one seed, or resume it, and keep its weights and its record.

    Beside the weights stand a log, `<name>.metrics.jsonl`, and until the end the checkpoints, `<name>.checkpoints`.
    Raises SpecMismatch for checkpoints of another store or setting.
    """
    student, settings, store, ranks = run.student, run.student.train, work.store, work.ranks
    before = student_identity(work.experiment, run, store)  # raises for a part that is not sealed
    check_shares(settings, store.num_rows, f"student {student.name!r}", rows=student.rows)
    if settings.log == "tensorboard" and ranks.is_first:
        check_tensorboard()
    stream, few = open_stream(work, run)
    target = work.choose_device()
    module, begun = begun_network(work.experiment, run, few, store.num_classes, store.class_names)
    module.to(target)
    check_training(module, few, store.num_classes, f"student {student.name!r}")
    if ranks.is_first:
        try_neighbours(module, few, f"student {student.name!r}")
    # After the build, which has imported the student's code: the identity is that of the code that runs.
    identity = student_identity(work.experiment, run, store)
    check_loaded(f"student {student.name!r}", identity.get("initial", {}).get("weights"), begun or "none")
    if (files := identity.get("files")) != before.get("files"):
        raise BadDataError(
            f"student {student.name!r}",
            expected=f"the files {before.get('files')}, as before it was built",
            found=f"{files}",
            remedy="run the same command again when nothing writes them any more",
        )
    if ranks.is_first:
        _warn_of_shares(run, store)
    seed_rank(run.seed, ranks)
    loss = StudentLoss(
        student,
        work.experiment.teacher_weights(student),
        labels_are_complete=bool((_labels(run, store) >= 0).all()),
        ranks=ranks,
    )
    where = f"training student {run.name}"
    facts = input_facts(few, store, with_names=student.hugging_face is not None)
    with with_workers(stream, settings.workers, work.experiment, store, where) as stream:
        return train_and_keep(
            Kept(
                "students", run.name, identity, run.seed, settings.checkpoint_every, store, work.models, facts
            ),
            module,
            TorchStream(stream, target),
            Epochs(stream.epoch_rows, len(stream)),
            settings,
            loss,
            where=where,
            progress=work.progress,
            ranks=ranks,
            loss_is_of_all_ranks=loss.is_of_all_ranks,
            validation=student_validation(work, run, loss, target),
            outlet=work.outlet,
        )


def _warn_of_shares(run: StudentSeed, store: Store) -> None:
    """Warn of classes that the shares of a student leave out."""
    if (learned := student_rows(run, store.num_rows)) is not None:
        share = run.student.train.held_out
        held = None if share is None else held_out_rows(store.num_rows, share)
        labels = store.samples.labels_of(slice(None))
        warn_of_lost_classes(labels, learned, held, f"student {run.name}")


def input_facts(few: Shaped[np.ndarray, "few ..."], store: Store, *, with_names: bool) -> dict[str, Any]:
    """Return the facts by which the network of a student is built again without the store."""
    names = {"class_names": store.class_names} if with_names and store.class_names else {}
    return {
        "input_shape": list(few.shape[1:]),
        "input_dtype": str(few.dtype),
        "num_classes": store.num_classes,
        **names,
    }


def student_validation(
    work: Workspace, run: StudentSeed, loss: StudentLoss, device: torch.device
) -> Validation | None:
    """Return the validation of a student; None if it has no examples for it.

    Raises ConfigError or BadDataError for a set that cannot be used.
    """
    student, settings, experiment = run.student, run.student.train, work.experiment
    source, where = experiment.validation_source(settings), f"student {student.name!r}"
    if source is None:
        return None
    if settings.held_out is not None:
        held = held_out_rows(work.store.num_rows, settings.held_out)
        if settings.keep == "best" and settings.best_by != "kl":
            check_labelled(work.store.samples.labels_of(held), settings, where)
        # Each validation passes over view 0 of the rows: the row itself, unless every view is augmented.
        batches: Iterable[Labelled] = TorchStream(_stream(work, run, rows=held, validates=True)[0], device)
        divergences: Divergences = loss.divergences
    else:
        size = work.ranks.rows_each(settings.batch_size)
        batches = LabelledBatches(open_set(work, source, chooses=settings.keep == "best"), size, device)
        divergences = without_teachers
    classes = work.store.num_classes
    return Validation(settings, source, partial(measure, batches, divergences, classes, where))


def open_stream(work: Workspace, run: StudentSeed) -> tuple[Stream, Shaped[np.ndarray, "few ..."]]:
    """Open the stream that a student learns from, on this rank; with it one or two inputs.

    Raises ConfigError for a batch that is no multiple of the ranks, BadDataError for labels that are needed and missing,
    SpecMismatch for an augmentation other than that of the captures.
    """
    student, store = run.student, work.store
    needed = student.labels_needed_for
    if needed is not None and not (labels := _labels(run, store) >= 0).any():
        some = student_rows(run, store.num_rows) is not None
        found = f"none in its {len(labels):,} rows" if some else "a store without any"
        raise BadDataError(
            f"student {student.name!r}",
            expected=f"labels, for {needed}",
            found=found,
            remedy="train it on soft targets alone, or label the transfer set",
        )
    if student.targets == "soft" and work.ranks.is_first:
        _warn_of_temperature(student, store, shown_captures(work.experiment, student))
    return _stream(work, run, rows=student_rows(run, store.num_rows))


def _stream(
    work: Workspace,
    run: StudentSeed,
    *,
    rows: Int64[np.ndarray, " rows"] | None,
    validates: bool = False,
) -> tuple[Stream, Shaped[np.ndarray, "few ..."]]:
    """Open a stream of some rows, as `open_stream`. validates: in order, in view 0, and whole in this process."""
    student, store, ranks = run.student, work.store, ALONE if validates else work.ranks
    rows_each = work.ranks.rows_each(student.train.batch_size)
    needed, views = student.labels_needed_for, 0 if validates else student.views
    names = shown_captures(work.experiment, student)
    first = store.teachers[names[0]]
    if student.targets == "hard" and first.num_views == 1:
        names = []
    transfer_set = compared_inputs(work)
    augment = None
    if names and first.augmentation:
        augment = recorded_views(work.experiment, store, names[0], transfer_set)
        check_labels_of_views(f"student {student.name!r}", needed, views, first, augment)
    stream = store.stream(
        rows_each,
        teachers=names,
        views=views,
        rows=rows,
        shuffle=not validates,
        seed=run.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        decode=student.targets == "soft",
        temperature=student.temperature,
        transfer_set=None if transfer_set is None else transfer_set.dataset,
        augment=augment,
    )
    return stream, _a_few(store, transfer_set, augment, views)


def _a_few(
    store: Store, transfer_set: TransferRows | None, augment: Augment | None, views: str | int
) -> Shaped[np.ndarray, "few ..."]:
    """Return one or two inputs as a student gets them."""
    numbers = np.arange(min(2, store.num_rows), dtype=np.int64)
    if augment is None and transfer_set is not None:
        return transfer_set.a_few
    dataset = None if transfer_set is None else transfer_set.dataset
    inputs = rows_of_store(store, dataset).inputs_of(numbers)
    return inputs if augment is None else augment(inputs, 0 if isinstance(views, str) else views, numbers)


def _warn_of_temperature(student: Student, store: Store, names: Sequence[str]) -> None:
    """Warn of captures whose guarantee does not name the temperature of a student."""
    for name in names:
        encoding = store.teachers[name].encoding
        if isinstance(encoding, Transform) and student.temperature not in encoding.temperatures:
            log.warning(
                "student %r: teachers/%s keeps its budget at T = %s; at T = %g its error was not bounded, and may be many "
                "times the budget: name that temperature in the encoding of a new capture",
                student.name,
                name,
                ", ".join(f"{t:g}" for t in encoding.temperatures),
                student.temperature,
            )


def _labels(run: StudentSeed, store: Store) -> Int64[np.ndarray, "rows"]:
    """Return the labels of the rows that a student learns from."""
    rows = student_rows(run, store.num_rows)
    return store.samples.labels_of(slice(None) if rows is None else rows)
