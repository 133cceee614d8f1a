"""Where do teachers come from: a weights file, a file of the whole network, or a training from labels?

`build_model` makes the module that a table describes, `build_teacher` also one that is a file, `load_teacher` puts
its weights in and moves it to its device, and `train_teacher` trains it from the labels of the transfer set, once,
and keeps the weights and a record. Networks of libraries: `hugging_face`, `named_models`; of files: `exported`.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.errors import BadDataError
from ...storage.progress import Progress, silent
from ...storage.random import philox_permutation
from ..augment import augment_rows
from ..experiment.document import Experiment, TeacherMember
from ..factories import build, build_augmentation, expect_module
from ..models.build import build_model
from ..models.class_names import check_class_order
from ..models.networks import count_parameters
from ..models.records import Models, Record
from ..models.weights import load_weights, save_weights
from ..runtime.device import choose_device
from ..runtime.inference import check_model, place
from ..trainer.loop import fit
from ..transfer import TransferRows
from .todo import find_teacher, teacher_identity


@dataclass(frozen=True)
class LabelledBatch:
    """Inputs and their labels, on a device."""

    inputs: Tensor
    """(batch, …)."""
    labels: Int64[Tensor, " batch"]
    """Class of each, -1 where unknown."""

    def __len__(self) -> int:
        return len(self.labels)


def build_teacher(experiment: Experiment, member: TeacherMember, rows: TransferRows) -> nn.Module:
    """The module of a teacher: with its weights where one file holds both, freshly initialised otherwise.

    Raises FactoryError or ConfigError for what cannot be made, BadDataError for a file that cannot be read.
    """
    teacher = member.teacher
    if not teacher.is_whole:
        return build_model(teacher, experiment, input_shape=rows.first.shape, num_classes=rows.num_classes)
    offered: Mapping[str, object] = {"path": member.weights}
    return expect_module(
        build(teacher.factory, teacher.args, offered=offered, base=experiment.base), teacher.factory
    )


def load_teacher(
    experiment: Experiment,
    member: TeacherMember,
    rows: TransferRows,
    models: Models,
    device: str | None = None,
) -> nn.Module:
    """A teacher with its weights, in evaluation mode. Its weights must be there (`find_teacher`).

    A module that is on several devices already stays where it is.
    Raises FactoryError, or BadDataError where the weights do not fit the module, or where it says that its classes
    (attribute `class_names`) are others than the transfer set's.
    """
    module = build_teacher(experiment, member, rows)
    if not member.teacher.is_whole:
        path = member.weights or models.weights_path("teachers", member.name)
        load_weights(module, path, allow_pickle=member.teacher.allow_pickle)
    if member.teacher.check_class_names:
        names = getattr(module, "class_names", None)
        if isinstance(names, (list, tuple)) and names:
            check_class_order([str(n) for n in names], rows.class_names, f"teacher {member.name!r}")
    return place(module, choose_device(device)).eval()


def train_teacher(
    experiment: Experiment,
    member: TeacherMember,
    rows: TransferRows,
    models: Models,
    *,
    device: str | None = None,
    progress: Progress = silent,
) -> Record:
    """Train a teacher from the labels of the transfer set, unless that was done; its record.

    Raises BadDataError where no example has a label, BadLogitsError, before the training, where the module
    does not give logits of the transfer set's classes.
    """
    found = find_teacher(experiment, member, rows, models)
    if found is not None:
        return found
    settings = member.teacher.train
    assert settings is not None  # without train there are weights, and find_teacher has found them
    target = choose_device(device)
    started = time.monotonic()
    torch.manual_seed(member.seed)
    module = build_teacher(experiment, member, rows).to(target)
    check_model(module, rows.a_few, rows.num_classes, f"teacher {member.name!r}")
    augment = settings.augment
    augmentation = None
    if augment is not None:
        augmentation = build_augmentation(augment.factory, augment.args, base=experiment.base)

    def batches(epoch: int) -> Iterator[LabelledBatch]:
        order = philox_permutation(len(rows), member.seed, stream=epoch, counter=0)
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

    steps = -(-len(rows) // settings.batch_size)
    last = fit(
        module,
        batches,
        len(rows),
        steps,
        settings,
        loss,
        where=f"training teacher {member.name}",
        progress=progress,
    )
    facts: dict[str, Any] = {
        "parameters": count_parameters(module),
        "last_loss": last,
        "seconds": round(time.monotonic() - started, 1),
    }
    path = models.weights_path("teachers", member.name)
    weights = save_weights(module, path)
    return models.put("teachers", member.name, teacher_identity(experiment, member, rows), weights, facts)
