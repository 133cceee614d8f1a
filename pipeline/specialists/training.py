"""Stage three: how is a specialist trained from the generalist's weights and the rows of its classes?

1. The generalist's weights, and outputs for its set and the dustbin class (`specialist_heads`); for all classes with
   `variant = "full"`.
2. Every batch holds the same number of rows of its classes, and of others (`strata`, `shares` of the stream). An epoch
   goes once through its own rows, and through as many others, which are other ones each time.
3. Hard labels: the class, or the dustbin. With `"full"`, which keeps all classes, the rows of others learn from the
   generalist's soft targets instead (section 6.1).
4. Specialists know nothing of each other: they are trained one after the other, or several at a time on a dask cluster.

What is kept are the weights as they were trained. The correction for the shares of a batch (`dustbin`) comes when a
specialist is run: `load_specialist`.

Source: Hinton et al. 2015, sections 5.2 and 6.1.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.api import Store, open_store
from ...storage.errors import BadDataError, BadLogitsError
from ...storage.progress import Progress, silent
from ..cache.teachers import build_teacher, load_teacher
from ..cache.todo import find_teacher
from ..experiment.document import Experiment
from ..losses import Distillation, soft_targets
from ..models.records import Models, Record
from ..models.weights import load_weights
from ..runtime.dask_tasks import cancel, result_of
from ..runtime.device import choose_device
from ..runtime.inference import check_model, place
from ..runtime.ranks import ALONE, Ranks
from ..stream.batch import TorchBatch
from ..stream.torch_stream import TorchStream
from ..trainer.resume import Batches, Epochs, Kept, train_and_keep
from ..transfer import TransferRows
from ..views import check_labels_of_views, recorded_views
from .dustbin import DUSTBIN, dustbin_shift, shifts
from .heads import Corrected, JointDustbin, replace_head
from .todo import (
    KIND,
    SpecialistRun,
    SpecialRows,
    columns_of,
    missing_specialists,
    special_rows,
    specialist_identity,
    specialist_runs,
    table_of,
)


def train_specialists(
    experiment: Experiment,
    store: Store,
    models: Models,
    *,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    scheduler: Any = None,
) -> list[str]:
    """Train every specialist that is not trained yet; their names.

    rows: the transfer set, where the caller has it at hand. ranks: processes that deal the specialists among them, all
    of which call this. scheduler: a `distributed.Client` on whose workers they are trained; they must see the files of
    store, models and transfer set under the same names. Without it, and with `specialists.workers` above 1, as many
    processes of this machine.
    Raises PartNotFound or StoreIncomplete where the generalist's capture or the clustering is not there, BadDataError
    for a store without labels and for sets without rows, ConfigError for batches that are too small, TransientIOError
    where the scheduler is gone before they are trained.
    """
    rows = TransferRows(experiment) if rows is None else rows
    check_specialists(experiment, store, rows, models)
    missing = missing_specialists(experiment, rows, models, store)
    # What is missing is asked once, of the first: the others might come late, and miss what it has finished.
    names = json.loads(ranks.first_says(json.dumps([run.name for run in missing])))
    todo = [run for run in specialist_runs(experiment, store) if run.name in names]
    workers = min(table_of(experiment).workers, len(todo))
    if ranks.size == 1 and todo and (scheduler is not None or workers > 1):
        with _cluster(workers) if scheduler is None else _as_it_is(scheduler) as client:
            _train_on(client, experiment, store, models, todo, device, progress)
    else:
        for run in todo[ranks.rank :: ranks.size]:
            train_specialist(
                experiment, run, store, models, rows=rows, device=ranks.device(device), progress=progress
            )
    ranks.counts(0)  # all are there before anyone goes on
    return [run.name for run in todo]


def check_specialists(experiment: Experiment, store: Store, rows: TransferRows, models: Models) -> None:
    """Refuse what cannot be trained before hours are spent on the first of them. Raises as `train_specialists`."""
    _ = store.teachers[experiment.generalist.name], store.clustering(experiment.clustering_name)
    for run in specialist_runs(experiment, store):
        special_rows(experiment, run, store)
    if find_teacher(experiment, experiment.generalist, rows, models) is None:
        raise BadDataError(
            f"specialists: the generalist {experiment.generalist.name!r}",
            expected=f"its weights, {models.weights_path('teachers', experiment.generalist.name)}",
            found="none that were trained by this experiment",
            remedy="run `logitstore cache` with this experiment, or bring the file back",
        )


def train_specialist(
    experiment: Experiment,
    run: SpecialistRun,
    store: Store,
    models: Models,
    *,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Record:
    """Train one specialist, or go on with it, and keep its weights, its record and a log. Raises as `train_specialists`."""
    rows = TransferRows(experiment) if rows is None else rows
    table, special = table_of(experiment), special_rows(experiment, run, store)
    generalist = find_teacher(experiment, experiment.generalist, rows, models)
    assert generalist is not None  # check_specialists has looked
    identity = specialist_identity(experiment, run, store, generalist)
    target = choose_device(device)
    torch.manual_seed(run.seed)
    module = specialist_network(experiment, run, store, models, rows=rows, device=device)
    batches = specialist_batches(experiment, run, store, special, rows=rows, device=target)
    return train_and_keep(
        Kept(KIND, run.name, identity, run.seed, table.train.checkpoint_every, store, models),
        module,
        batches,
        Epochs(batches.steps * table.train.batch_size, batches.steps),
        table.train,
        SpecialistLoss(experiment, special, store.num_classes),
        where=f"training specialist {run.name}",
        progress=progress,
    )


def specialist_network(
    experiment: Experiment,
    run: SpecialistRun,
    store: Store,
    models: Models,
    *,
    rows: TransferRows,
    device: str | None = None,
) -> nn.Module:
    """A specialist as its training begins: the generalist, with its own head, on its device, in evaluation mode.

    Raises BadDataError for a network of constants, such as a frozen TorchScript file, BadDataError or ConfigError where no
    head can be replaced, BadLogitsError where the logits are then not those of the new head.
    """
    table, special = table_of(experiment), special_rows(experiment, run, store)
    columns = columns_of(experiment, special.classes, store.num_classes)
    where = f"specialist {run.name!r} of {experiment.generalist.name!r}"
    module = load_teacher(experiment, experiment.generalist, rows, models, device)
    if not any(True for _ in module.parameters()):
        raise BadDataError(
            where,
            expected="a generalist with weights that can be trained on",
            found="a network without any",
            remedy="take one from a factory, or export it without freezing it",
        )
    if table.variant == "full":
        check_model(module, rows.a_few, len(columns), where)
        return module.requires_grad_(True)
    check_model(module, rows.a_few, store.num_classes, where)  # what is lazy has its layers then
    if table.variant == "joint":
        module = joint_dustbin(module, special, store.num_classes)
        return place(module, choose_device(device)).eval().requires_grad_(True)
    head = replace_head(module, special.classes.tolist(), store.num_classes, where=where, name=table.head)
    try:
        check_model(module, rows.a_few, len(columns), where)
    except BadLogitsError as error:
        raise BadLogitsError(
            where,
            expected=f"{len(columns)} logits from a new head in the place of the layer '{head}'",
            found=error.found,
            remedy="name the layer that gives the logits in specialists.head",
        ) from error
    return module.requires_grad_(True)


def load_specialist(
    experiment: Experiment,
    run: SpecialistRun,
    special: SpecialRows,
    num_classes: int,
    models: Models,
    *,
    rows: TransferRows,
    device: str | None = None,
) -> nn.Module:
    """A specialist as it is run: its trained weights and its correction, on its device, in evaluation mode.

    special: its rows in the store that it was trained from, which has so many classes. rows: a transfer set of inputs
    like those. Its weights must be there (`find_specialist`).
    Raises FactoryError, or BadDataError where the weights do not fit the module.
    """
    table, where = table_of(experiment), f"specialist {run.name!r}"
    columns = columns_of(experiment, special.classes, num_classes)
    module = build_teacher(experiment, experiment.generalist, rows)
    if table.variant == "dustbin":
        replace_head(module, special.classes.tolist(), num_classes, where=where, name=table.head)
    if table.variant == "joint":
        module = joint_dustbin(module, special, num_classes)
    load_weights(module, models.weights_path(KIND, run.name))
    shift = torch.from_numpy(shifts(columns, special.classes, special.prior, special.share))
    return place(Corrected(module, shift), choose_device(device)).eval()


def joint_dustbin(module: nn.Module, special: SpecialRows, num_classes: int) -> JointDustbin:
    """A module of all classes as a specialist that begins where the module is, under the shares of its batches."""
    before = -dustbin_shift(special.prior, special.share)
    return JointDustbin(module, special.classes.tolist(), num_classes, before)


class ShortEpochs:
    """The first batches of each epoch of a stream of two strata: as many as go once through the rows of the first.

    Which of the other rows these are differs from epoch to epoch, as their order does.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        """steps: batches of an epoch."""
        self._batches, self.steps = batches, steps
        self._taken = 0

    def __iter__(self) -> Iterator[TorchBatch]:
        """The batches of an epoch, or the rest of it where a state was loaded."""
        # A generator, which must be closed for its threads to end.
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
        """Where it is, between two batches."""
        return {**self._batches.state_dict(), "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration the rest of the epoch that `state` was taken in."""
        self._batches.load_state_dict(state)
        self._taken = int(state["taken"])


def specialist_batches(
    experiment: Experiment,
    run: SpecialistRun,
    store: Store,
    special: SpecialRows,
    *,
    rows: TransferRows,
    device: torch.device,
) -> ShortEpochs:
    """What a specialist learns from: special rows first in each batch, then others, in fixed numbers.

    Raises SpecMismatch where the experiment's augmentation is not the one that the generalist was captured with,
    BadDataError for views that have no labels.
    """
    table, name = table_of(experiment), experiment.generalist.name
    capture, full = store.teachers[name], table.variant == "full"
    transfer_set = rows if store.samples.inputs is None else None
    augment = None
    if capture.augmentation:
        augment = recorded_views(experiment, store, name, transfer_set)
        check_labels_of_views(f"specialist {run.name!r}", "its class", table.views, capture, augment)
    stream = store.stream(
        table.train.batch_size,
        # Without soft targets the capture says what the views are, and nothing else.
        teachers=[name] if full or capture.num_views > 1 or capture.augmentation else [],
        views=table.views,
        strata=[special.special, special.others],
        shares=special.batch,
        seed=run.seed,
        decode=full,
        temperature=table.temperature,
        transfer_set=None if transfer_set is None else transfer_set.dataset,
        augment=augment,
    )
    shown = len(special.special) * (capture.num_views if table.views == "all" else 1)
    return ShortEpochs(TorchStream(stream, device), -(-shown // special.batch[0]))


class SpecialistLoss:
    """The loss of a specialist's batch, nats, a mean over its rows."""

    def __init__(self, experiment: Experiment, special: SpecialRows, num_classes: int) -> None:
        table = table_of(experiment)
        columns = columns_of(experiment, special.classes, num_classes)
        dustbin = len(columns) - 1 if columns[-1] == DUSTBIN else 0
        self.column = torch.full((num_classes,), dustbin, dtype=torch.int64)
        """(classes,): of a class, the logit that stands for it: its own, or that of the dustbin."""
        known = torch.from_numpy(columns[columns != DUSTBIN])
        self.column[known] = torch.arange(len(known))
        self._special_rows = special.batch[0]
        self._full, self._teacher = table.variant == "full", experiment.generalist.name
        self._temperature = table.temperature
        self._distillation = Distillation(table.temperature, 0.0)

    def __call__(self, logits: Float[Tensor, "batch columns"], batch: TorchBatch) -> Float[Tensor, ""]:
        """Hard cross-entropy; with `variant = "full"` of the special rows, which come first, and soft of the others."""
        if not self._full:
            return F.cross_entropy(logits, self.columns(batch.labels))
        first, count = self._special_rows, len(batch.labels)
        hard = F.cross_entropy(logits[:first], batch.labels[:first])
        given = batch.teacher_logits(self._temperature)[self._teacher][first:]
        targets = soft_targets({self._teacher: given}, self._temperature)
        soft: Tensor = self._distillation(logits[first:], targets, batch.labels[first:])
        return (first * hard + (count - first) * soft) / count

    def columns(self, labels: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """The logit that each label asks for."""
        self.column = self.column.to(labels.device)
        return self.column[labels]


# Several at a time


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """A client of as many processes of this machine."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _as_it_is(client: Any) -> Iterator[Any]:
    yield client


def _train_on(
    client: Any,
    experiment: Experiment,
    store: Store,
    models: Models,
    todo: list[SpecialistRun],
    device: str | None,
    progress: Progress,
) -> None:
    """Train specialists on the workers of a dask cluster, each as one task; those that are done stay where one fails."""
    from distributed import as_completed

    task = f"training {len(todo)} specialists"
    progress(task, 0, len(todo), "specialists")
    path, folder = Path(str(store.path)).resolve(), models.folder.resolve()
    futures = [
        client.submit(_train_there, experiment, run, path, folder, device, number, pure=False)
        for number, run in enumerate(todo)
    ]
    try:
        with client.as_current():  # whom as_completed asks
            for done, future in enumerate(as_completed(futures)):
                progress(task, done + 1, len(todo), "specialists", result_of(future, task))
    finally:
        cancel(client, futures)


def _train_there(
    experiment: Experiment, run: SpecialistRun, store: Path, folder: Path, device: str | None, number: int
) -> str:
    """What a worker does: one specialist, on a GPU of its own where there are several; its name."""
    if device is None and torch.cuda.is_available():
        device = f"cuda:{number % torch.cuda.device_count()}"
    train_specialist(experiment, run, open_store(store), Models(folder), device=device)
    return run.name
