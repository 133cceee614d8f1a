"""Stage one: the teachers' logits, captured once and sealed in the store.

1. Missing teachers are trained or loaded, and tried on a batch, before anything is written; a batch that does not fit
   the device is halved (`preflight`).
2. The missing blocks are dealt to the ranks, whole.
3. Each rank goes over its blocks (`capture`): inputs are fetched once, digested, and written to (or compared with)
   `samples`; each view of them is made once and shown to every teacher that lacks it.
4. When all ranks are through, the first seals `samples` and then the captures, in the order of the experiment.

Batches never straddle a block, and nothing is done twice: a run that is killed and started again, with another number
of ranks as well, ends with the same bytes.
"""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from ...storage.api import begin_store
from ...storage.backends.local import writable
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.feature_logits import LinearHead
from ...storage.encodings.transform import Transform
from ...storage.encodings.widths import expected_bytes, row_widths
from ...storage.errors import ConfigError
from ...storage.format.constants import SAMPLES
from ...storage.parts.writer import CaptureWriter, SamplesWriter
from ...storage.sharing.card_file import refresh_card
from ...storage.stream.inputs import Augment
from ...storage.stream.items import listed_labels
from ..experiment.document import TeacherMember
from ..factories.local_code import SOURCE
from ..runtime.inference import Runner, device_of
from ..runtime.ranks import Ranks
from ..same_set import DECODING, check_repeatable, check_samples, samples_identity
from ..transfer import TransferRows, files_of, input_bytes
from ..views import check_one_form, naming_unlike_views, views_onto
from ..workspace import Workspace
from .calibrate import calibrate_teachers, calibration_logits
from .capture import CapturePass, ReadyTeacher
from .limits import arrays_of_samples, check_limits
from .monitor import Quality, Tally
from .notes import capture_notes
from .preflight import try_out
from .reuse import SOURCES, OldSet, find_old, note_of, old_sets, warn_of_other_versions, with_old_basis
from .rows import naming_indices, set_sample
from .schedule import BlockTodo, plan_blocks
from .set_warnings import warn_of_absent_classes, warn_of_set, warn_of_stored_inputs, warn_of_views
from .teachers import load_without_head, train_teacher
from .todo import (
    HALVED,
    REUSED,
    CacheTodo,
    agreed,
    capture_identity,
    check_begun,
    find_teacher,
    find_todo,
    plan_grid,
)

log = logging.getLogger(__name__)
_SAMPLE_BYTES = 24
"""Bytes of a row in `samples` without its input: source, digest, label."""
_ROW_BYTES = 12
"""Bytes of a row in a capture without its logits: peak and seen."""
_VIEWED_ROWS = 16
"""Rows of which each view is made before anything is written."""


@dataclass(frozen=True)
class CacheReport:
    """The captures of a run of stage one."""

    captured: tuple[str, ...]
    """Captures that were sealed now."""
    kept: tuple[str, ...]
    """Captures that were there already."""
    digest: str
    """Digest of the store."""
    quality: Mapping[str, Tally] = field(default_factory=dict)
    """By teacher that was run now, its tally on the rows that it was shown."""
    compared: str = ""
    """What of the transfer set was compared with the store beforehand, in words."""


def cache(work: Workspace, todo: CacheTodo | None = None, *, stop_below: float | None = None) -> CacheReport:
    """Run the missing teachers over the transfer set and seal their logits.

    todo: the missing captures, if the caller has found them (`find_todo`). stop_below: an accuracy; a teacher that is
    below it after its first rows stops the run.
    Raises SpecMismatch or RowMismatch for a store that was made from something else, BadLogitsError for a teacher whose
    logits cannot be kept, StorageError if the disk fails; the same call again resumes.
    """
    ranks, rows = work.ranks, work.rows
    todo = find_todo(work) if todo is None else todo
    missing = todo.captures
    if todo:
        check_repeatable(rows)
    kept = tuple(m.name for m in work.experiment.teacher_members() if m not in missing)
    sets = old_sets(work) if missing else []
    if missing:
        _check_limits(work)
        _check_reusable(work, missing)
    make_view = views_onto(work.experiment, rows, work.find_store() if missing else None)
    agree_on_set(work)  # all have looked before one of them writes
    if ranks.is_first:
        for member in work.experiment.teacher_members():
            work.models.tidy("teachers", member.name)
        if missing:
            work.check_writable(store=True)
        warn_of_set(rows)
        if missing:
            warn_of_views(work.shown_few, rows.a_few)
        if missing and work.find_store() is None:
            warn_of_stored_inputs(input_bytes(work.experiment, rows), rows)
        _warn_of_space(work, missing)
        with naming_unlike_views(work.experiment, rows):
            for member in missing:
                train_teacher(work, member)
    ranks.wait()
    teachers = [_with_old(work, sets, _prepare(work, member)) for member in missing]
    if sets and work.find_store() is None and not any(teacher.old for teacher in teachers):
        raise _nothing_reused(sets[0])
    try_teachers_out(work, teachers, make_view)
    teachers = calibrate_teachers(work, teachers, make_view)
    if stop_below is not None and ranks.is_first:
        _warn_without_labels(rows)
    if work.find_store() is None and ranks.is_first:
        _begin_store(work)
    ranks.wait()
    names = tuple(teacher.name for teacher in teachers)
    tallies = capture_teachers(work, teachers, make_view, Quality(names, stop_below))
    if ranks.is_first and listed_labels(rows.dataset) is None:
        warn_of_absent_classes(
            work.store.samples.labels, rows.num_classes, rows.class_names, where=rows.where
        )
    if ranks.is_first:
        refresh_card(work.store.root, made=bool(missing))
    return CacheReport(names, kept, work.store.digest, tallies, todo.compared)


def _check_limits(work: Workspace) -> None:
    """Refuse captures that could not be sealed, before hours are spent on teachers. Raises ConfigError, LimitExceeded."""
    experiment, rows, store = work.experiment, work.rows, work.find_store()
    encoding = experiment.cache.chosen_encoding
    grid = plan_grid(experiment, rows, encoding) if store is None else store.grid
    check_limits(experiment, rows, encoding, grid)


def _begin_store(work: Workspace) -> None:
    """Begin the store, or join another process that has just begun one of the same set. Raises NameTaken, SpecMismatch."""
    rows = work.rows
    encoding = work.experiment.cache.chosen_encoding
    store = begin_store(
        work.place,
        num_rows=len(rows),
        num_classes=rows.num_classes,
        row_bytes=max(input_bytes(work.experiment, rows), *row_widths(encoding, rows.num_classes).values()),
        block_rows=plan_grid(work.experiment, rows, encoding).block_rows,
        exist_ok=True,
        arrays=arrays_of_samples(work.experiment, rows),
    )
    check_samples(store, rows)


def capture_teachers(
    work: Workspace, teachers: Sequence[ReadyTeacher], make_view: Augment | None, quality: Quality
) -> dict[str, Tally]:
    """Write and seal the missing blocks of the samples and of some captures; the tally of each.

    make_view: the function that makes views (`views_onto`). quality: tallies of these very teachers. Called by all
    ranks. Raises as `cache`.
    """
    store, ranks = work.store, work.ranks
    captures = {one.name: {**_identity(work, one), SOURCE: one.notes.get(SOURCE)} for one in teachers}
    work.agree(store=store.digest, captures=captures)
    with contextlib.ExitStack() as stack:
        samples = None
        if not store.is_whole(SAMPLES):
            samples = stack.enter_context(contextlib.closing(_samples_writer(work)))
        if not ranks.is_first:
            ranks.wait()
        writers = {
            teacher.name: stack.enter_context(contextlib.closing(_capture_writer(work, teacher, make_view)))
            for teacher in teachers
        }
        if ranks.is_first:
            if ranks.size > 1:
                _share_bases(writers)
            ranks.wait()
        # Nobody writes before all have opened: mending an unfinished part takes a writer that is alone.
        ranks.wait()
        todo = _dealt(ranks, _missing_blocks(work, samples, writers) if ranks.is_first else [])
        if samples is not None or writers:
            by_name = {teacher.name: teacher for teacher in teachers}
            with naming_indices(work.rows.source):
                CapturePass(work, todo, samples, writers, by_name, make_view, quality).run()
        ranks.wait()  # all are through
        tallies = _total(ranks, quality)
        if ranks.is_first:
            for writer in [samples, *writers.values()] if samples is not None else writers.values():
                writer.seal()
    ranks.wait()
    if ranks.is_first:
        store.tidy_up()
    else:
        store.refresh()
    return tallies


def agree_on_set(work: Workspace) -> None:
    """Compare the transfer set of all ranks, as each block is made by one of them. Raises SpecMismatch."""
    if work.ranks.size > 1:
        work.agree(transfer_set=set_sample(work.rows))


def _warn_without_labels(rows: TransferRows) -> None:
    """Warn before the teachers are run that no accuracy can be judged, as far as the first rows tell."""
    looked_at = range(min(len(rows), 256))
    if (rows.rows(looked_at)[1] < 0).all():
        log.warning(
            "none of the first %d rows has a label: --stop-below stops nothing before there are rows that have one",
            len(looked_at),
        )


def _warn_of_space(work: Workspace, missing: Sequence[TeacherMember]) -> None:
    """Warn of a disk that is too small before hours are spent on teachers."""
    store, rows, settings = work.find_store(), work.rows, work.experiment.cache
    needed = 0.0
    if store is None or not store.is_sealed(SAMPLES):
        needed += len(rows) * (_SAMPLE_BYTES + input_bytes(work.experiment, rows))
    logits = expected_bytes(row_widths(settings.chosen_encoding, rows.num_classes))
    for member in missing:
        begun = None if store is None else store.begun(f"teachers/{member.name}")
        left = 1.0 if begun is None else 1 - begun.blocks_done / begun.blocks
        needed += left * settings.views * len(rows) * (logits + _ROW_BYTES)
    if needed > (free := writable(work.place).free_bytes()):
        log.warning(
            "%s: this needs about %s bytes and %s are free; what fits will be kept, and the same command goes on "
            "where it stopped when there is more room",
            work.path,
            f"{needed:,.0f}",
            f"{free:,}",
        )


def _prepare(work: Workspace, member: TeacherMember) -> ReadyTeacher:
    record = train_teacher(work, member)  # trained before: its record
    log.info("teacher %s has weights %s", member.name, record.weights)
    where = f"teacher {member.name!r}"
    module, layer, head = load_without_head(work, member, record.weights)
    if head is not None:
        log.info("%s: its head %r is taken off; %d features are captured", where, layer, head.num_features)
    return ready_teacher(
        work,
        member,
        module,
        where=where,
        name=member.name,
        identity=capture_identity(work.experiment, member, work.rows, record.weights, layer),
        encoding=work.experiment.cache.chosen_encoding,
        columns=np.arange(work.rows.num_classes, dtype=np.int64),
        head=head,
    )


def _check_reusable(work: Workspace, missing: Sequence[TeacherMember]) -> None:
    """Refuse `--reuse` where every teacher is still to be trained, before one is. Raises ConfigError."""
    if work.reuse and work.find_store() is None and all(find_teacher(work, one) is None for one in missing):
        raise ConfigError(
            "--reuse",
            expected="a teacher whose weights are there",
            found=f"teacher {missing[0].name}, which is still to be trained: its weights will be others than those of a store",
            remedy="set weights to the file of the teacher that made the old store, or remove --reuse",
        )


def _with_old(work: Workspace, sets: Sequence[OldSet], teacher: ReadyTeacher) -> ReadyTeacher:
    """Return a teacher with the captures in earlier stores that its capture takes rows from."""
    old = find_old(work, sets, teacher.name, teacher.identity, teacher.notes, teacher.encoding)
    if not old:
        return teacher
    if work.ranks.is_first:
        warn_of_other_versions(teacher.name, teacher.notes, old)
    notes = {**teacher.notes, SOURCES: note_of(old)}
    identity = {**teacher.identity, REUSED: [one.capture.digest for one in old]}
    encoding = with_old_basis(teacher.encoding, old)
    return replace(teacher, old=old, identity=identity, notes=notes, encoding=encoding)


def _nothing_reused(old: OldSet) -> ConfigError:
    return ConfigError(
        f"--reuse {old.store.path}",
        expected="a capture of one of these teachers, in this encoding or in float32",
        found=old.reasons[0],
        remedy="correct what differs; or remove --reuse, and the teachers run on every row",
    )


def ready_teacher(
    work: Workspace,
    member: TeacherMember,
    module: nn.Module,
    *,
    where: str,
    name: str,
    identity: Mapping[str, Any],
    encoding: Encoding,
    columns: Int64[np.ndarray, " columns"],
    head: LinearHead | None = None,
) -> ReadyTeacher:
    """Make a network ready to run as the experiment has it.

    where: its name in messages. name: of its capture. head: that was taken off it.
    """
    settings, store = work.experiment.cache, work.find_store()
    there = None if store is None else store.identity_of(f"teachers/{name}")
    runner = Runner(
        module,
        where=where,
        # A batch that did not fit was halved when the capture was begun, and is part of its identity.
        batch_size=there["batch_size"] if there and HALVED in there else settings.batch_size,
        precision=settings.precision,
        compiled=settings.compile,
        channels_last=settings.channels_last,
        threads=_threads(work, module, there),
        head=head,
    )
    notes = capture_notes(work.experiment, member, module, runner.device.type)
    return ReadyTeacher(name, runner, identity, notes, encoding, columns, there is not None)


def _threads(work: Workspace, module: nn.Module, there: Mapping[str, Any] | None) -> int | None:
    """Return the threads that a teacher computes with on the CPU, the same on all ranks; None for those of the process.

    Sums in another number of threads may differ in the last bit. A capture that is there keeps its number, and one of an
    earlier version has none.
    """
    if device_of(module).type != "cpu" or (there is not None and "threads" not in there):
        return None
    here = work.experiment.cache.threads or work.ranks.counts(torch.get_num_threads())[0]
    return here if there is None else int(there["threads"])


def try_teachers_out(work: Workspace, teachers: Sequence[ReadyTeacher], make_view: Augment | None) -> None:
    """Run each teacher, and make each view, before anything is written. The ranks agree on the smallest batch.

    Raises BadLogitsError for a teacher that fails, or whose logits cannot be stored.
    """
    # A capture that is begun shows at its next block whether its teacher fails; its batch is settled.
    new = [teacher for teacher in teachers if not teacher.is_begun]
    needed = [teacher.runner.batch_size for teacher in new] + [_VIEWED_ROWS] * (make_view is not None)
    if not needed:
        return
    rows, settings = work.rows, work.experiment.cache
    with naming_indices(rows.source):
        inputs, _ = rows.rows(range(min(len(rows), max(needed))))
        few = inputs[:_VIEWED_ROWS]
        if make_view is not None and new:
            inputs = make_view(inputs, 0, np.arange(len(inputs), dtype=np.int64))
        for teacher in new:
            runner = teacher.runner
            with naming_unlike_views(work.experiment, rows):
                try_out(work.experiment, inputs, runner, len(teacher.columns), teacher.encoding)
            runner.batch_size = min(work.ranks.counts(runner.batch_size))
            if runner.batch_size != settings.batch_size and work.ranks.is_first:
                log.warning(
                    "%s: batches of %d rows do not fit the device; it is run in batches of %d, which the capture records",
                    runner.where,
                    settings.batch_size,
                    runner.batch_size,
                )
        if make_view is not None:
            for view in range(settings.views):
                shown = make_view(few, view, np.arange(len(few), dtype=np.int64))
                check_one_form(shown, view, work.shown_few)


def _missing_blocks(
    work: Workspace, samples: SamplesWriter | None, writers: Mapping[str, CaptureWriter]
) -> list[BlockTodo]:
    return plan_blocks(
        work.store.grid,
        work.experiment.cache.views if writers else 1,
        list(writers),
        lambda block: samples is None or samples.has_block(0, block),
        lambda name, view, block: writers[name].has_block(view, block),
    )


def _dealt(ranks: Ranks, todo: Sequence[BlockTodo]) -> list[BlockTodo]:
    """Return this rank's blocks of those that the first has found missing."""
    if ranks.size == 1:
        return list(todo)
    said = ranks.first_says(json.dumps([[one.block, list(one.views.items())] for one in todo]))
    every = [
        BlockTodo(block, {view: tuple(names) for view, names in views}) for block, views in json.loads(said)
    ]
    return every[ranks.rank :: ranks.size]


def _total(ranks: Ranks, quality: Quality) -> dict[str, Tally]:
    """Add up the tallies of all ranks, and log them."""
    tallies = {}
    for name, tally in quality.tallies.items():
        mine = torch.tensor(
            [tally.rows, tally.right, tally.nats, tally.shown, tally.reused], dtype=torch.float64
        )
        total = torch.stack(ranks.tensors(mine)).sum(dim=0).tolist()
        tallies[name] = Tally(int(total[0]), int(total[1]), total[2], int(total[3]), int(total[4]))
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


def _samples_writer(work: Workspace) -> SamplesWriter:
    rows, store = work.rows, work.store
    theirs, is_begun = store.identity_of(SAMPLES), store.begun(SAMPLES) is not None
    files = files_of(work.experiment, rows)
    identity = {
        key: value
        for key, value in samples_identity(rows, theirs, is_begun=is_begun).items()
        if key != DECODING  # samples that were begun with files are not resumed without
    }
    return store.samples_writer(
        identity=identity if files is None else identity | {DECODING: files.decoding},
        class_names=rows.class_names,
        example=rows.first if work.experiment.transfer_set.store_inputs is True else None,
        ids=rows.ids,
        card=work.experiment.card.texts,
        file_width=None if files is None else files.width,
    )


def _identity(work: Workspace, teacher: ReadyTeacher) -> dict[str, Any]:
    """Return the identity of a capture, with the batch and the threads that its teacher is run with."""
    identity, asked = dict(teacher.identity), work.experiment.cache.batch_size
    if (batch := teacher.runner.batch_size) != asked:
        identity |= {"batch_size": batch, HALVED: asked}
    if teacher.runner.threads is not None:
        identity["threads"] = teacher.runner.threads
    part = f"teachers/{teacher.name}"
    if (there := work.store.identity_of(part)) is not None:
        identity = agreed(identity, there)
    if (begun := work.store.begun(part)) is not None:
        # Now that the teacher's modules are imported: their files may have changed since the capture was looked for.
        check_begun(work.store, begun, begun.identity, teacher.notes)
    return identity


def _capture_writer(work: Workspace, teacher: ReadyTeacher, make_view: Augment | None) -> CaptureWriter:
    """Open a capture. Ranks but the first find its basis, if it has one, in the store."""
    writer = work.store.capture(
        teacher.name,
        provenance=_identity(work, teacher),
        views=work.experiment.cache.views,
        encoding=teacher.encoding,
        classes=teacher.columns,
        notes=teacher.notes,
        # Called where files of a basis are lost.
        calibration=(lambda: calibration_logits(work, teacher, make_view)) if work.ranks.is_first else None,
    )
    writer.warns_of_probabilities = False  # its trial did
    return writer


def _share_bases(writers: Mapping[str, CaptureWriter]) -> None:
    """Put the bases of captures into the store, where the other ranks read them."""
    for writer in writers.values():
        if isinstance(writer.encoding, Transform):
            writer.begin()
