"""Teachers: built from a factory or a whole file, loaded with their weights, or trained from labels."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.encodings.feature_logits import LinearHead
from ...storage.errors import BadDataError
from ...storage.random import philox_permutation
from ...storage.stream.items import listed_labels
from ..augment import augment_rows
from ..experiment.document import TeacherMember
from ..experiment.training import TeacherTrain
from ..factories.call import build, expect_module
from ..factories.products import augmentation_of, product_of
from ..held_out import check_shares, held_out_rows, others, warn_of_lost_classes
from ..models.alone import alone
from ..models.class_names import check_class_order, module_class_names
from ..models.networks import count_parameters
from ..models.records import Record, check_loaded
from ..models.sources import source_digests, unchanged
from ..models.weights import load_weights, save_weights
from ..runtime.inference import place
from ..runtime.ranks import ALONE
from ..trainer.kept import keep_both, training_log
from ..trainer.loop import fit
from ..trainer.tensorboard import check_tensorboard
from ..trainer.trial import check_training
from ..trainer.validation import Validation, check_labelled, measure
from ..trainer.validation_sets import LabelledBatch, LabelledBatches, open_set, without_teachers
from ..views import spread_views
from ..workspace import Workspace
from .linear_head import take_head
from .ready import build_by_factory, check_ready
from .todo import find_teacher, teacher_identity


def build_teacher(work: Workspace, member: TeacherMember) -> nn.Module:
    """Build the module of a teacher: with its weights if one file holds both, freshly initialised otherwise.

    Raises FactoryError or ConfigError for a module that cannot be made, BadDataError for a file that cannot be read.
    """
    return _build(work, member)[0]


def _build(work: Workspace, member: TeacherMember) -> tuple[nn.Module, str | None]:
    """Build the module of a teacher; with it the digest of the file or folder that it was loaded from, if any."""
    teacher, path = member.teacher, member.weights
    if (given := teacher.in_hand) is not None:
        return expect_module(product_of(teacher, base=work.experiment.base), teacher.factory), given.weights
    if not teacher.is_whole or path is None:
        return build_by_factory(work, member, member.seed), None
    offered: Mapping[str, object] = {"path": path}
    with unchanged(path):
        made = build(teacher.factory, teacher.args, offered=offered, base=work.experiment.base)
        digest = source_digests(path)[0]
    return expect_module(made, teacher.factory), digest


def load_teacher(work: Workspace, member: TeacherMember, weights: str | None = None) -> nn.Module:
    """Build a teacher and load its weights, in evaluation mode, on the device of the workspace.

    weights: digest of the weights that are meant, which those loaded must have. A module that is spread over several
    devices stays there. Raises FactoryError, or BadDataError if the weights do not fit the module, are others than those
    that are meant, or its classes (attribute `class_names`) are not those of the transfer set.
    """
    teacher = member.teacher
    module, loaded = _build(work, member)
    if teacher.is_ready:
        loaded = check_ready(work, member, module)
    elif loaded is None:
        path = member.weights or work.models.weights_path("teachers", member.name)
        loaded = load_weights(module, path, allow_pickle=teacher.allow_pickle, key=teacher.weights_key)
    check_loaded(f"teacher {member.name!r}", weights, loaded)
    if teacher.check_class_names:
        names = module_class_names(module, work.rows.num_classes)
        check_class_order(names, work.rows.class_names, f"teacher {member.name!r}")
    return place(module, work.choose_device()).eval()


def load_without_head(
    work: Workspace, member: TeacherMember, weights: str | None = None
) -> tuple[nn.Module, str | None, LinearHead | None]:
    """Load a teacher as it is captured: without its head if one is to be taken off, whose name and weight come with it.

    Raises as `load_teacher` and `take_head`.
    """
    module = load_teacher(work, member, weights)
    if (asked := member.teacher.head) is None:
        return module, None, None
    shown, classes = spread_views(work.experiment, work.rows), work.rows.num_classes
    return module, *take_head(module, asked, shown, classes, where=f"teacher {member.name!r}")


def train_teacher(work: Workspace, member: TeacherMember) -> Record:
    """Train a teacher from the labels of the transfer set, unless it has weights already; its record.

    Raises BadDataError if no example has a label. Raises BadLogitsError, before the training, if the module does not
    give logits of the classes of the transfer set.
    """
    record, settings = find_teacher(work, member), member.teacher.train
    if record is not None or settings is None:  # a teacher without settings has weights
        return record or Record({}, "", {})
    path = work.models.weights_path("teachers", member.name)
    with alone(path, f"training teacher {member.name}") as waited:
        if waited and (record := find_teacher(work, member)) is not None:
            return record
        return _train(work, member, settings)


def _train(work: Workspace, member: TeacherMember, settings: TeacherTrain) -> Record:
    """Train a teacher; as `train_teacher`."""
    rows, started = work.rows, time.monotonic()
    check_shares(settings, len(rows), f"teacher {member.name!r}")
    if settings.log == "tensorboard":
        check_tensorboard()
    target = work.choose_device()
    module = build_teacher(work, member).to(target)
    few, augmentation = rows.a_few, None
    if (augment := settings.augment) is not None:
        augmentation = augmentation_of(augment, base=work.experiment.base)
        few = augment_rows(few, augmentation, augment.seed, 0, np.arange(len(few)), first_view=0)
    check_training(module, few, rows.num_classes, f"teacher {member.name!r}")
    # After the build: the identity is that of the code that runs, and of the files that it has read.
    identity = teacher_identity(member, rows)

    held = np.zeros(0, np.int64)
    if settings.held_out is not None:
        # Those of the store, as for a student of the same share: its rows are numbers of the set until they are shuffled.
        held = rows.source[held_out_rows(len(rows), settings.held_out)]
        if (listed := listed_labels(rows.dataset)) is not None:
            learned = np.setdiff1d(np.arange(len(rows)), held)
            warn_of_lost_classes(listed, learned, held, f"teacher {member.name}")

    def batches(epoch: int) -> Iterator[LabelledBatch]:
        order = others(philox_permutation(len(rows), member.seed, stream=epoch, counter=0), held)
        labelled = 0
        for start in range(0, len(order), settings.batch_size):
            indices = order[start : start + settings.batch_size]
            inputs, labels = rows.fetch(indices.tolist())
            labelled += int((labels >= 0).sum())
            if augment is not None and augmentation is not None:
                inputs = augment_rows(inputs, augmentation, augment.seed, epoch, indices, first_view=0)
            yield LabelledBatch(torch.from_numpy(inputs).to(target), torch.from_numpy(labels).to(target))
        if not labelled:
            raise BadDataError(
                f"teacher {member.name!r}",
                expected="labels to train it from",
                found="a transfer set without any",
                remedy="give the teacher weights instead of train",
            )

    def loss(logits: Tensor, batch: LabelledBatch) -> Tensor:
        known = batch.labels >= 0
        if not known.any():
            return logits.sum() * 0.0
        return F.cross_entropy(logits[known], batch.labels[known], label_smoothing=settings.label_smoothing)

    path, shown = work.models.weights_path("teachers", member.name), len(rows) - len(held)
    validation = _validation(work, member, settings, held, target)
    with training_log(path, settings, ALONE) as log:
        last = fit(
            module,
            batches,
            shown,
            -(-shown // settings.batch_size),
            settings,
            loss,
            where=f"training teacher {member.name}",
            progress=work.progress,
            log=log,
            validation=validation,
        )
    facts: dict[str, Any] = {
        "parameters": count_parameters(module),
        "last_loss": last,
        "seconds": round(time.monotonic() - started, 1),
        **keep_both(module, path, validation, ALONE),
    }
    weights = save_weights(module, path)
    return work.models.put("teachers", member.name, identity, weights, facts)


def _validation(
    work: Workspace,
    member: TeacherMember,
    settings: TeacherTrain,
    held: Int64[np.ndarray, " held"],
    device: torch.device,
) -> Validation | None:
    """Return the validation of a teacher; None if it has no examples for it. held: examples that it does not learn from."""
    source, where = work.experiment.validation_source(settings), f"teacher {member.name!r}"
    if source is None:
        return None
    rows, examples = (
        np.sort(held),
        work.rows if len(held) else open_set(work, source, chooses=settings.keep == "best"),
    )
    if len(held) and settings.keep == "best":
        check_labelled(examples.fetch(rows.tolist())[1], settings, where)
    batches = LabelledBatches(examples, settings.batch_size, device, rows if len(held) else None)
    return Validation(
        settings, source, partial(measure, batches, without_teachers, work.rows.num_classes, where)
    )
