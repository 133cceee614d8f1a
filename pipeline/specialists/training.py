"""Stage three: specialists, trained from the generalist's weights and the rows of their classes.

1. A specialist begins with the generalist's weights, and outputs for its set and the dustbin class (`heads`); with
   `variant = "full"` it keeps all classes.
2. Every batch holds a fixed number of rows of its classes, and of others (`strata`, `shares` of the stream). An epoch goes
   once through its own rows, and through as many others, which differ from epoch to epoch.
3. The labels are hard: the class, or the dustbin. With `"full"` the rows of others learn from the generalist's soft
   targets instead (section 6.1).
4. Specialists do not depend on each other: they are trained one after the other, dealt to the ranks, or several at a time:
   in processes of this machine, or on a dask cluster (`parallel`).

The weights are kept as they were trained; `load_specialist` adds the correction for the shares of a batch (`dustbin`).

Source: Hinton et al. 2015, sections 5.2 and 6.1.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.errors import BadDataError, BadLogitsError
from ...storage.stream.stream import Stream
from ..cache.teachers import build_teacher, load_teacher
from ..cache.todo import find_teacher
from ..experiment.tables import Specialists
from ..losses import Distillation, soft_targets
from ..losses.divergence import from_cross_entropy
from ..models.records import Record, check_loaded
from ..models.weights import load_weights
from ..runtime.inference import check_model, device_of, place
from ..same_set import compared_inputs
from ..stream.batch import TorchBatch
from ..stream.torch_stream import TorchStream
from ..trainer.resume import Batches, Epochs, Kept, train_and_keep
from ..trainer.tensorboard import check_tensorboard
from ..trainer.trial import check_training
from ..trainer.validation import Validation, measure
from ..trainer.validation_sets import LabelledBatch, without_teachers
from ..views import check_labels_of_views, recorded_views
from ..workspace import Workspace
from .dustbin import DUSTBIN, dustbin_shift, shifts
from .heads import Corrected, JointDustbin, replace_head
from .parallel import train_in_processes, train_on_cluster
from .todo import (
    KIND,
    SpecialistRun,
    SpecialRows,
    columns_of,
    find_specialists,
    missing_specialists,
    names_of,
    special_rows,
    specialist_identity,
    specialist_runs,
    table_of,
)


def train_specialists(
    work: Workspace, missing: Sequence[SpecialistRun] | None = None, *, scheduler: Any = None
) -> list[str]:
    """Train every missing specialist; their names.

    missing: the specialists, if the caller has found them (`missing_specialists`). All ranks call this and share them.
    scheduler: a `distributed.Client` whose workers see the files of store, models and transfer set under the same names.
    Without it, and with `specialists.workers` above 1, as many processes of this machine train.
    Raises PartNotFound or StoreIncomplete if the generalist's capture or the clustering is not sealed, BadDataError for a
    store without labels and for sets without rows, ConfigError for a batch that is too small, TransientIOError if the
    scheduler is gone.
    """
    ranks, table = work.ranks, table_of(work.experiment)
    if table.train.log == "tensorboard":
        check_tensorboard()
    generalist = check_specialists(work)
    if missing is None:
        missing = missing_specialists(work, find_specialists(work))
    # The first rank decides: one that looks later would miss the specialists that are finished by then.
    names = json.loads(ranks.first_says(json.dumps(names_of(missing))))
    runs = specialist_runs(work.experiment, work.store)
    todo = [run for run in runs if run.name in names]
    if ranks.is_first:
        for run in runs:
            work.models.tidy(KIND, run.name)
    work.agree(specialists={run.name: specialist_identity(work, run, generalist) for run in todo})
    workers = min(table.workers, len(todo))
    if ranks.size == 1 and todo and scheduler is not None:
        train_on_cluster(scheduler, work, todo, train_specialist)
    elif ranks.size == 1 and workers > 1:
        train_in_processes(work, todo, workers, train_specialist)
    else:
        for run in todo[ranks.rank :: ranks.size]:
            train_specialist(work, run, generalist)
    ranks.wait()  # all are trained before a rank returns
    return names_of(todo)


def check_specialists(work: Workspace) -> Record:
    """Check all specialists before the first is trained; the record of their generalist. Raises as `train_specialists`."""
    generalist = work.experiment.generalist
    _ = work.store.teachers[generalist.name], work.store.clustering(work.experiment.clustering_name)
    for run in specialist_runs(work.experiment, work.store):
        special_rows(work, run)
    record = find_teacher(work, generalist)
    if record is None:
        raise BadDataError(
            f"specialists: the generalist {generalist.name!r}",
            expected=f"its weights, {work.models.weights_path('teachers', generalist.name)}",
            found="none that were trained by this experiment",
            remedy="run `logitstore cache` with this experiment, or bring the file back",
        )
    return record


def train_specialist(work: Workspace, run: SpecialistRun, generalist: Record | None = None) -> Record:
    """Train one specialist, or resume it, and keep its weights, its record and a log.

    generalist: the record of its weights, if the caller has it. Raises as `train_specialists`.
    """
    table, special = table_of(work.experiment), special_rows(work, run)
    generalist = generalist or check_specialists(work)
    module = specialist_network(work, run, special, generalist.weights)
    # After the build, which has imported the generalist's code: the identity is that of the code that runs.
    identity = specialist_identity(work, run, generalist)
    batches = specialist_batches(work, run, special)
    loss = SpecialistLoss(table, work.experiment.generalist.name, special, work.store.num_classes)
    return train_and_keep(
        Kept(KIND, run.name, identity, run.seed, table.train.checkpoint_every, work.store, work.models),
        module,
        batches,
        Epochs(batches.steps * table.train.batch_size, batches.steps),
        table.train,
        loss,
        where=f"training specialist {run.name}",
        progress=work.progress,
        validation=_validation(work, run, special, loss),
    )


def _validation(
    work: Workspace, run: SpecialistRun, special: SpecialRows, loss: "SpecialistLoss"
) -> Validation | None:
    """Return the validation of a specialist, by its own columns: the label of a row of other classes is the dustbin."""
    table = table_of(work.experiment)
    if table.train.held_out is None:
        return None
    stream = _stream(work, run, special, validates=True)
    batches = _InColumns(TorchStream(stream, work.choose_device()), loss)
    columns = len(columns_of(table, special.classes, work.store.num_classes))
    measured = partial(measure, batches, without_teachers, columns, f"specialist {run.name!r}")
    return Validation(table.train, "held_out", measured)


@dataclass(frozen=True)
class _InColumns:
    """Batches whose labels are numbers of a specialist's columns."""

    batches: Batches
    """Batches whose labels are classes."""
    loss: "SpecialistLoss"
    """Loss of the specialist, which has the column of each class."""

    def __iter__(self) -> Iterator[LabelledBatch]:
        for batch in self.batches:
            assert batch.inputs is not None  # a training has inputs
            yield LabelledBatch(batch.inputs, self.loss.columns(batch.labels))


def specialist_network(
    work: Workspace, run: SpecialistRun, special: SpecialRows, weights: str | None = None
) -> nn.Module:
    """Build a specialist as its training begins: the generalist with its own head, on its device, in evaluation mode.

    weights: digest of the generalist's. Raises BadDataError for other ones, and as `begin_specialist`.
    """
    experiment, num_classes = work.experiment, work.store.num_classes
    module = load_teacher(work, experiment.generalist, weights)
    torch.manual_seed(run.seed)  # after the generalist, whose network has the generalist's seed
    where = f"specialist {run.name!r} of {experiment.generalist.name!r}"
    table, few, offset = table_of(experiment), work.shown_few, joint_offset(special)
    return begin_specialist(module, table, special.classes, num_classes, few, where, offset=offset)


def begin_specialist(
    module: nn.Module,
    table: Specialists,
    classes: Int64[np.ndarray, " own"],
    num_classes: int,
    few: Shaped[np.ndarray, "few ..."],
    where: str,
    *,
    offset: float,
) -> nn.Module:
    """Give a generalist the outputs of a specialist, and try it.

    classes: those of the specialist, ascending. few: one or two inputs. offset: of `JointDustbin`.
    Raises BadDataError for a network without parameters, such as a frozen TorchScript file, BadDataError or ConfigError if
    no head can be replaced, BadLogitsError if the logits are then not those of the new head.
    """
    columns = len(columns_of(table, classes, num_classes))
    if not any(True for _ in module.parameters()):
        raise BadDataError(
            where,
            expected="a generalist with weights that can be trained on",
            found="a network without any",
            remedy="take one from a factory, or export it without freezing it",
        )
    check_model(module, few, num_classes, where)  # it also makes the layers of a lazy module
    if table.variant == "joint":
        module = JointDustbin(module, classes.tolist(), num_classes, offset)
        module = place(module, device_of(module.network)).eval()
    if table.variant == "dustbin":
        head = replace_head(module, classes.tolist(), num_classes, where=where, name=table.head)
        try:
            check_model(module, few, columns, where)
        except BadLogitsError as error:
            raise BadLogitsError(
                where,
                expected=f"{columns} logits from a new head in the place of the layer '{head}'",
                found=error.found,
                remedy="name the layer that gives the logits in specialists.head",
            ) from error
    module.requires_grad_(True)
    check_training(module, few, columns, where)
    return module


def load_specialist(work: Workspace, run: SpecialistRun, special: SpecialRows, weights: str) -> nn.Module:
    """Build a specialist with its trained weights and its correction, on its device, in evaluation mode.

    weights: digest of its weights (`find_specialists`). Raises FactoryError, or BadDataError if the weights that are there
    are others, or do not fit the module.
    """
    table, num_classes = table_of(work.experiment), work.store.num_classes
    module = build_teacher(work, work.experiment.generalist)
    if table.variant == "dustbin":
        where = f"specialist {run.name!r}"
        replace_head(module, special.classes.tolist(), num_classes, where=where, name=table.head)
    if table.variant == "joint":
        module = JointDustbin(module, special.classes.tolist(), num_classes, joint_offset(special))
    check_loaded(
        f"specialist {run.name!r}", weights, load_weights(module, work.models.weights_path(KIND, run.name))
    )
    columns = columns_of(table, special.classes, num_classes)
    shift = torch.from_numpy(shifts(columns, special.classes, special.prior, special.share))
    return place(Corrected(module, shift), work.choose_device()).eval()


def joint_offset(special: SpecialRows) -> float:
    """Return the offset with which a joint specialist begins where the generalist is, at the shares of its batches."""
    return -dustbin_shift(special.prior, special.share)


class ShortEpochs:
    """The first batches of each epoch of a stream of two strata: as many as go once through the first stratum.

    The rows of the other stratum differ from epoch to epoch, as their order does.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        """Cut epochs to this many batches."""
        self._batches, self.steps = batches, steps
        self._taken = 0

    def __iter__(self) -> Iterator[TorchBatch]:
        """Yield the batches of an epoch, or the rest of it after a state was loaded."""
        # A generator: its threads end when it is closed.
        with closing(cast(Any, iter(self._batches))) as batches:
            while self._taken < self.steps:
                batch = next(batches)
                self._taken += 1
                yield batch

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch."""
        self._batches.set_epoch(epoch)
        self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position, between two batches."""
        return {**self._batches.state_dict(), "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration the rest of the epoch that `state` was taken in."""
        self._batches.load_state_dict(state)
        self._taken = int(state["taken"])


def specialist_batches(work: Workspace, run: SpecialistRun, special: SpecialRows) -> ShortEpochs:
    """Open the batches of a specialist: special rows first in each, then others, in fixed numbers.

    Raises SpecMismatch for an augmentation other than that of the generalist's capture, BadDataError for views that have
    no labels.
    """
    table, store = table_of(work.experiment), work.store
    capture = store.teachers[work.experiment.generalist.name]
    stream = _stream(work, run, special)
    shown = len(special.special) * (capture.num_views if table.views == "all" else 1)
    return ShortEpochs(TorchStream(stream, work.choose_device()), -(-shown // special.batch[0]))


def _stream(work: Workspace, run: SpecialistRun, special: SpecialRows, *, validates: bool = False) -> Stream:
    """Open a stream of a specialist's rows, as `specialist_batches`. validates: those held out, in order, in view 0."""
    table, name = table_of(work.experiment), work.experiment.generalist.name
    store, full = work.store, table.variant == "full"
    capture, augment, views = store.teachers[name], None, 0 if validates else table.views
    chosen: dict[str, Any] = {"strata": [special.special, special.others], "shares": special.batch}
    if validates:
        chosen = {"rows": special.held_out, "shuffle": False}
    transfer_set = compared_inputs(work)
    if capture.augmentation:
        augment = recorded_views(work.experiment, store, name, transfer_set)
        check_labels_of_views(f"specialist {run.name!r}", "its class", views, capture, augment)
    return store.stream(
        table.train.batch_size,
        # Without soft targets the capture is read for its views alone.
        teachers=[name] if full or capture.num_views > 1 or capture.augmentation else [],
        views=views,
        **chosen,
        seed=run.seed,
        rank=0,
        world_size=1,
        decode=full,
        temperature=table.temperature,
        transfer_set=None if transfer_set is None else transfer_set.dataset,
        augment=augment,
    )


class SpecialistLoss:
    """The loss of a specialist's batch, nats, a mean over its rows."""

    def __init__(self, table: Specialists, generalist: str, special: SpecialRows, num_classes: int) -> None:
        """Prepare the loss of one specialist. generalist: name of its capture."""
        columns = columns_of(table, special.classes, num_classes)
        dustbin = len(columns) - 1 if columns[-1] == DUSTBIN else 0
        self.column = torch.full((num_classes,), dustbin, dtype=torch.int64)
        """(classes,): by class, the logit that stands for it: its own, or that of the dustbin."""
        known = torch.from_numpy(columns[columns != DUSTBIN])
        self.column[known] = torch.arange(len(known))
        self._special_rows = special.batch[0]
        self._full, self._teacher = table.variant == "full", generalist
        self._temperature = table.temperature
        self._distillation = Distillation(table.temperature, 0.0)
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, logits: Float[Tensor, "batch columns"], batch: TorchBatch) -> Float[Tensor, ""]:
        """Return the hard cross-entropy; with `variant = "full"` that of the special rows, and the soft one of the others."""
        if not self._full:
            return F.cross_entropy(logits, self.columns(batch.labels))
        first, count = self._special_rows, len(batch.labels)  # special rows come first
        hard = F.cross_entropy(logits[:first], batch.labels[:first])
        given = batch.teacher_logits(self._temperature)[self._teacher][first:]
        targets = soft_targets({self._teacher: given}, self._temperature)
        soft: Tensor = self._distillation(logits[first:], targets, batch.labels[first:])
        self._last = soft.detach(), targets
        return (first * hard + (count - first) * soft) / count

    def divergence(self) -> Tensor | None:
        """Return the mean KL from the specialist to the generalist, of the rows of other classes in the last batch."""
        return None if self._last is None else from_cross_entropy(*self._last, self._temperature)

    def columns(self, labels: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """Return the column of each label."""
        self.column = self.column.to(labels.device)
        return self.column[labels]
