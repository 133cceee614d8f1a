"""Stage one: how do the teachers' logits get into the store?

1. Teachers that are not there yet are trained or loaded, and tried on a batch, before anything is written; a batch
   that does not fit the device is halved then (`trying_out`).
2. The blocks of which something is missing are dealt to the ranks, whole.
3. Each rank goes over its blocks (`capture_pass`): the inputs are fetched once, digested, and written to (or compared
   with) `samples`; each view of them is made once and shown to every teacher that lacks it.
4. When all ranks are through, the first seals `samples` and then the captures, in the order of the experiment.

Batches never straddle a block, and what is there is not done again: killed anywhere and started again, with
another number of ranks as well, the store ends up with the same bytes.
"""

import contextlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from ...storage.api import Store, begin_store, open_store
from ...storage.backends.local import Folder
from ...storage.encodings.encoding import Encoding, encoded_widths
from ...storage.errors import BadLogitsError
from ...storage.format.constants import SAMPLES
from ...storage.parts.part_reader import PartReader
from ...storage.parts.writer import CaptureWriter, SamplesWriter
from ...storage.progress import Progress, silent
from ...storage.stream.inputs import Augment
from ..experiment.document import Experiment, TeacherMember
from ..models.records import Models
from ..runtime.inference import Runner
from ..runtime.ranks import ALONE, Ranks
from ..transfer import TransferRows, input_bytes
from ..views import experiment_views
from .capture import CapturePass
from .device_logits import BlockLogits, Memory, block_logits
from .monitor import Quality, Tally
from .notes import capture_notes
from .preflight import no_room, out_of_memory, try_out
from .rows import naming_indices
from .schedule import Shown, Todo, plan_todo
from .teachers import load_teacher, train_teacher
from .todo import HALVED, capture_identity, check_samples, missing_captures, open_existing

log = logging.getLogger(__name__)


_SAMPLE_BYTES = 24
"""Of a row in `samples`, but for its input: source, digest, label."""


_ROW_BYTES = 12
"""Of a row in a capture, but for its logits: peak and seen."""


_VIEWED_ROWS = 16
"""Rows of which each view is made before anything is written."""


@dataclass(frozen=True)
class CacheReport:
    """What a run of stage one did."""

    captured: tuple[str, ...]
    """Captures that were sealed now."""
    kept: tuple[str, ...]
    """Captures that were there already."""
    digest: str
    """Digest of the store."""
    quality: Mapping[str, Tally] = field(default_factory=dict)
    """By teacher that was run now: how good it was on the rows that it was shown."""


@dataclass(frozen=True)
class ReadyTeacher:
    """A teacher that is ready to run, and what its capture will say of itself."""

    name: str
    """Of its capture."""
    runner: Runner
    """The network."""
    identity: Mapping[str, Any]
    """What the capture follows from, with the batch that was asked for."""
    notes: Mapping[str, Any]
    """What is good to know of it."""
    encoding: Encoding
    """How its logits are stored."""
    columns: Int64[np.ndarray, " columns"]
    """The store's class of each of its logits, -1 the dustbin class."""
    is_begun: bool
    """Whether blocks of its capture are there, so that its batch is settled."""


def cache(
    experiment: Experiment,
    path: Path,
    models: Models,
    *,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    stop_below: float | None = None,
) -> CacheReport:
    """Run the teachers of an experiment over its transfer set and seal their logits in the store at `path`.

    rows: the transfer set, where the caller has it at hand. device: "cpu", "cuda" …; the GPU where there is one.
    ranks: the processes that do it together, each of which calls this. stop_below: an accuracy; a teacher that has less
    after its first rows stops the whole.
    Raises SpecMismatch or RowMismatch where the store was made from something else, BadLogitsError for a
    teacher whose logits cannot be kept, StorageError where the disk fails; running it again goes on.
    """
    rows = TransferRows(experiment) if rows is None else rows
    progress = progress if ranks.is_first else silent
    store = open_existing(path)
    if store is not None:
        check_samples(store, rows)
    missing = missing_captures(experiment, rows, models, store)
    kept = tuple(m.name for m in experiment.teacher_members() if m not in missing)
    ranks.counts(0)  # all have looked before one of them writes
    if ranks.is_first:
        _warn_of_space(experiment, path, rows, store, missing)
        for member in missing:
            train_teacher(experiment, member, rows, models, device=ranks.device(device), progress=progress)
    ranks.counts(0)
    place = ranks.device(device)
    teachers = [_prepare(experiment, member, rows, models, place, store) for member in missing]
    make_view = experiment_views(experiment, rows)
    try_teachers_out(experiment, rows, teachers, make_view, ranks)
    if stop_below is not None and ranks.is_first:
        _warn_without_labels(rows)
    quality = Quality([t.name for t in teachers], stop_below)
    store = _opened_in_turn(experiment, path, rows, store, ranks)
    tallies = capture_teachers(
        experiment, store, rows, teachers, make_view, quality, progress=progress, ranks=ranks
    )
    return CacheReport(tuple(t.name for t in teachers), kept, store.digest, tallies)


def capture_teachers(
    experiment: Experiment,
    store: Store,
    rows: TransferRows,
    teachers: Sequence[ReadyTeacher],
    make_view: Augment | None,
    quality: Quality,
    *,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> dict[str, Tally]:
    """Write what is missing of the samples and of the captures of some teachers, and seal them; how good each was.

    make_view: what makes the views (`experiment_views`). quality: of these very teachers. Called by all ranks.
    Raises as `cache`.
    """
    with contextlib.ExitStack() as stack:
        samples, writers = _writers(experiment, store, rows, teachers, stack)
        if ranks.is_first:
            todo = _missing_blocks(experiment, store, samples, writers)
        todo = _dealt(ranks, todo if ranks.is_first else [])
        # Nobody writes before all have opened: what one of them mends, it must be alone with.
        ranks.counts(0)
        capture_pass = CapturePass(
            experiment,
            rows,
            store.root.grid,
            todo,
            samples,
            PartReader(store.root.part(SAMPLES), store.root.grid) if samples is None else None,
            writers,
            make_view,
            _Teachers({t.name: t for t in teachers}, writers),
            quality,
        )
        if samples is not None or writers:
            with naming_indices(rows.source):
                capture_pass.run(_task(writers, ranks), progress)
        tallies = _of_all(ranks, quality)  # so that all are through
        if ranks.is_first:
            if samples is not None:
                samples.seal()
            for writer in writers.values():
                writer.seal()
    ranks.counts(0)
    if ranks.is_first:
        store.root.tidy_up()
    else:
        store.root.refresh()
    return tallies


def _warn_without_labels(rows: TransferRows) -> None:
    """Say that an accuracy cannot be judged where it seems so, before the night and not after."""
    looked_at = range(min(len(rows), 256))
    if (rows.rows(looked_at)[1] < 0).all():
        log.warning(
            "none of the first %d rows has a label: --stop-below stops nothing before there are rows that have one",
            len(looked_at),
        )


def _warn_of_space(
    experiment: Experiment, path: Path, rows: TransferRows, store: Store | None, missing: list[TeacherMember]
) -> None:
    """Say that the disk is too small before hours are spent on teachers, and not after."""
    needed = 0.0
    if store is None or not store.root.has(SAMPLES):
        needed += len(rows) * (_SAMPLE_BYTES + input_bytes(experiment, rows))
    logits = sum(encoded_widths(experiment.cache.chosen_encoding, rows.num_classes))
    for member in missing:
        begun = None if store is None else store.root.begun(f"teachers/{member.name}")
        left = 1.0 if begun is None else 1 - begun.blocks_done / begun.blocks
        needed += left * experiment.cache.views * len(rows) * (logits + _ROW_BYTES)
    if needed > (free := Folder(path).free_bytes()):
        log.warning(
            "%s: this needs about %s bytes and %s are free; what fits will be kept, and the same command goes on "
            "where it stopped when there is more room",
            path,
            f"{needed:,.0f}",
            f"{free:,}",
        )


def _prepare(
    experiment: Experiment,
    member: TeacherMember,
    rows: TransferRows,
    models: Models,
    device: str | None,
    store: Store | None,
) -> ReadyTeacher:
    record = train_teacher(experiment, member, rows, models, device=device)  # it is trained: its record
    module = load_teacher(experiment, member, rows, models, device)
    log.info("teacher %s has weights %s", member.name, record.weights)
    runner, is_begun = runner_of(experiment, module, f"teacher {member.name!r}", store, member.name)
    return ReadyTeacher(
        member.name,
        runner,
        capture_identity(experiment, member, rows, record.weights),
        capture_notes(experiment, member, runner.device.type),
        experiment.cache.chosen_encoding,
        np.arange(rows.num_classes, dtype=np.int64),
        is_begun,
    )


def runner_of(
    experiment: Experiment, module: nn.Module, where: str, store: Store | None, name: str
) -> tuple[Runner, bool]:
    """A network as the experiment says that it is run, and whether blocks of its capture are there.

    where: who it is, for messages. name: of its capture.
    """
    settings = experiment.cache
    identity = None if store is None else _identity_there(store, name)
    runner = Runner(
        module,
        where=where,
        # A batch that did not fit was halved when the capture was begun: it is part of what the capture is.
        batch_size=identity["batch_size"] if identity and HALVED in identity else settings.batch_size,
        precision=settings.precision,
        compiled=settings.compile,
        channels_last=settings.channels_last,
    )
    return runner, identity is not None


def _identity_there(store: Store, name: str) -> Mapping[str, Any] | None:
    """What a capture that is there, or was begun, follows from."""
    if name in store.teachers:
        return store.root.spec(f"teachers/{name}").identity
    begun = store.root.begun(f"teachers/{name}")
    return None if begun is None else begun.identity


def teacher_logits(runner: Runner, shown: Shown, logits: BlockLogits) -> None:
    """Run a teacher over a view of some rows: the one place where that is done."""
    logits.add(shown.inputs)


def try_teachers_out(
    experiment: Experiment,
    rows: TransferRows,
    teachers: Sequence[ReadyTeacher],
    make_view: Augment | None,
    ranks: Ranks,
) -> None:
    """Run each teacher, and make each view, before anything is written. The ranks agree on the smallest batch.

    Raises BadLogitsError for one that fails, or whose logits cannot be stored.
    """
    # What is wrong with one that is begun shows at its next block, and it is shown none that is there.
    new = [teacher for teacher in teachers if not teacher.is_begun]
    needed = [teacher.runner.batch_size for teacher in new] + [_VIEWED_ROWS] * (make_view is not None)
    if not needed:
        return
    with naming_indices(rows.source):
        inputs, _ = rows.rows(range(min(len(rows), max(needed))))
        for teacher in new:
            try_out(experiment, inputs, teacher.runner, len(teacher.columns), teacher.encoding)
            teacher.runner.batch_size = least = min(ranks.counts(teacher.runner.batch_size))
            if least != experiment.cache.batch_size and ranks.is_first:
                log.warning(
                    "%s: batches of %d rows do not fit the device; it is run in batches of %d, which the capture records",
                    teacher.runner.where,
                    experiment.cache.batch_size,
                    least,
                )
        if make_view is not None:
            few = inputs[:_VIEWED_ROWS]
            for view in range(experiment.cache.views):
                make_view(few, view, np.arange(len(few), dtype=np.int64))


def _opened_in_turn(
    experiment: Experiment, path: Path, rows: TransferRows, store: Store | None, ranks: Ranks
) -> Store:
    """The store, begun by the first rank where it is not there."""
    if store is None and ranks.is_first:
        store = _begin(experiment, path, rows)
    ranks.counts(0)
    return open_store(path) if store is None else store


def _writers(
    experiment: Experiment,
    store: Store,
    rows: TransferRows,
    teachers: Sequence[ReadyTeacher],
    stack: contextlib.ExitStack,
) -> tuple[SamplesWriter | None, dict[str, CaptureWriter]]:
    """Writers of what is not there, closed with the stack."""
    samples = None
    if not store.root.is_whole(SAMPLES):
        samples = stack.enter_context(contextlib.closing(_samples_writer(experiment, store, rows)))
    writers = {
        t.name: stack.enter_context(contextlib.closing(_capture_writer(experiment, store, t)))
        for t in teachers
    }
    return samples, writers


def _missing_blocks(
    experiment: Experiment,
    store: Store,
    samples: SamplesWriter | None,
    writers: Mapping[str, CaptureWriter],
) -> list[Todo]:
    return plan_todo(
        store.root.grid,
        experiment.cache.views if writers else 1,
        list(writers),
        lambda block: samples is None or samples.has_block(0, block),
        lambda name, view, block: writers[name].has_block(view, block),
    )


def _dealt(ranks: Ranks, todo: Sequence[Todo]) -> list[Todo]:
    """The blocks of this rank, of those that the first has found missing."""
    if ranks.size == 1:
        return list(todo)
    said = ranks.first_says(json.dumps([[one.block, list(one.views.items())] for one in todo]))
    every = [Todo(block, {view: tuple(names) for view, names in views}) for block, views in json.loads(said)]
    return every[ranks.rank :: ranks.size]


@dataclass(frozen=True)
class _Teachers:
    """The teachers by their names, as they are run over the rows."""

    by_name: Mapping[str, ReadyTeacher]
    writers: Mapping[str, CaptureWriter]
    memory: Memory = field(default_factory=Memory)

    @property
    def batch_rows(self) -> int:
        """Rows that are whole batches of every teacher."""
        return math.lcm(*(teacher.runner.batch_size for teacher in self.by_name.values()))

    def begin(self, name: str, rows: int) -> BlockLogits:
        """Room for the logits of a block."""
        writer = self.writers[name]
        return block_logits(
            self.by_name[name].runner,
            rows,
            len(writer.columns),
            as_float16=writer.encoding.kind == "float16",
            memory=self.memory,
        )

    def run(self, name: str, shown: Shown, logits: BlockLogits) -> None:
        """Have a teacher say its logits. Raises BadLogitsError, which says what can still be set where memory is short."""
        runner = self.by_name[name].runner
        try:
            teacher_logits(runner, shown, logits)
        except BadLogitsError as error:
            if not out_of_memory(error):
                rows = shown.prepared.rows
                raise BadLogitsError(
                    f"{error.where}, view {shown.view}, rows {rows.start} to {rows.stop - 1}",
                    expected=error.expected,
                    found=error.found,
                    remedy=f"{error.remedy}; nothing of this block was kept",
                ) from error
            begun = [
                str(writer.folder.path)
                for writer in self.writers.values()
                if writer.num_missing < writer.views * writer.root.grid.num_blocks
            ]
            raise no_room(runner, error, " and ".join(begun) or None) from error


def _task(writers: Mapping[str, CaptureWriter], ranks: Ranks) -> str:
    task = "caching " + ", ".join(writers) if writers else "writing samples"
    return task if ranks.size == 1 else f"{task} (of the first of {ranks.size} ranks)"


def _of_all(ranks: Ranks, quality: Quality) -> dict[str, Tally]:
    """The tallies of all ranks together, which are said in the log. Returns when all have come as far as this."""
    tallies = {}
    for name, tally in quality.tallies.items():
        mine = torch.tensor([tally.rows, tally.right, tally.nats], dtype=torch.float64)
        total = torch.stack(ranks.tensors(mine)).sum(dim=0).tolist()
        tallies[name] = Tally(int(total[0]), int(total[1]), total[2])
    compared, disagreed = sum(ranks.counts(quality.compared)), sum(ranks.counts(quality.disagreed))
    if ranks.is_first:
        for name, tally in tallies.items():
            if tally.rows:
                log.info(
                    "teacher %s: accuracy %.4f, %.4g nats a row, on %s labelled rows of this run",
                    name,
                    tally.accuracy,
                    tally.nll,
                    f"{tally.rows:,}",
                )
        if compared:
            log.info("the teachers disagree on %.4f of %s rows", disagreed / compared, f"{compared:,}")
    return tallies


def _begin(experiment: Experiment, path: Path, rows: TransferRows) -> Store:
    widths = encoded_widths(experiment.cache.chosen_encoding, rows.num_classes)
    return begin_store(
        path,
        num_rows=len(rows),
        num_classes=rows.num_classes,
        row_bytes=max(input_bytes(experiment, rows), *widths),
        block_rows=experiment.cache.block_rows,
    )


def _samples_writer(experiment: Experiment, store: Store, rows: TransferRows) -> SamplesWriter:
    keep = experiment.transfer_set.store_inputs
    return SamplesWriter(
        store.root,
        identity=rows.identity,
        class_names=rows.class_names,
        input_shape=rows.first.shape if keep else None,
        input_dtype=rows.first.dtype.name if keep else None,
        id_width=max((len(i.encode()) for i in rows.ids), default=0) if rows.ids else None,
    )


def _capture_writer(experiment: Experiment, store: Store, teacher: ReadyTeacher) -> CaptureWriter:
    identity = dict(teacher.identity)
    if (batch := teacher.runner.batch_size) != (asked := experiment.cache.batch_size):
        identity |= {"batch_size": batch, HALVED: asked}
    return CaptureWriter(
        store.root,
        teacher.name,
        identity=identity,
        views=experiment.cache.views,
        encoding=teacher.encoding,
        classes=teacher.columns,
        notes=teacher.notes,
    )
