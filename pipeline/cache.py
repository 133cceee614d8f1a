"""Stage one: how do the teachers' logits get into the store?

1. Teachers that are not there yet are trained or loaded, and tried on a few rows, before anything is written.
2. Block by block: the inputs are fetched once, digested, and written to (or compared with) `samples`.
3. For each view, the block's inputs are augmented once and shown to every teacher that lacks the block; its
   logits are committed as a whole.
4. `samples` and then the captures are sealed, in the order of the experiment.

Batches never straddle a block, and what is there is not done again: killed anywhere and started again, the
store ends up with the same bytes.
"""

import contextlib
import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import nn

from ..storage.api import Store, begin_store
from ..storage.digest import digest_rows
from ..storage.errors import PartSealed
from ..storage.files import Folder
from ..storage.format import SAMPLES
from ..storage.inputs import Augment
from ..storage.part_reader import PartReader
from ..storage.progress import Progress, silent
from ..storage.writer import CaptureWriter, SamplesWriter, check_digests
from .agenda import capture_identity, check_samples, missing_captures, open_existing
from .experiment import Experiment, TeacherMember
from .footprint import encoded_widths, input_bytes
from .inference import check_classes, device_of, run_model
from .records import Models
from .teachers import load_teacher, train_teacher
from .transfer import TransferRows
from .views import experiment_views

log = logging.getLogger(__name__)

_SAMPLE_BYTES = 24
"""Of a row in `samples`, but for its input: source, digest, label."""
_ROW_BYTES = 12
"""Of a row in a capture, but for its logits: peak and seen."""


@dataclass(frozen=True)
class CacheReport:
    """What a run of stage one did."""

    captured: tuple[str, ...]
    """Captures that were sealed now."""
    kept: tuple[str, ...]
    """Captures that were there already."""
    digest: str
    """Digest of the store."""


@dataclass(frozen=True)
class _Teacher:
    """A teacher that is ready to run."""

    member: TeacherMember
    module: nn.Module
    weights: str


def cache(
    experiment: Experiment,
    path: Path,
    models: Models,
    *,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> CacheReport:
    """Run the teachers of an experiment over its transfer set and seal their logits in the store at `path`.

    rows: the transfer set, where the caller has it at hand. device: "cpu", "cuda" …; the GPU where there is one.
    Raises SpecMismatch or RowMismatch where the store was made from something else, BadLogitsError for a
    teacher whose logits cannot be kept, StorageError where the disk fails; running it again goes on.
    """
    rows = TransferRows(experiment) if rows is None else rows
    store = open_existing(path)
    if store is not None:
        check_samples(store, rows)
    missing = missing_captures(experiment, rows, models, store)
    kept = tuple(m.name for m in experiment.teacher_members() if m not in missing)
    _warn_of_space(experiment, path, rows, store, missing)
    teachers = [_prepare(experiment, member, rows, models, device, progress) for member in missing]
    for teacher in teachers:
        _try_out(experiment, teacher, rows)
    make_view = experiment_views(experiment)
    _try_out_views(experiment, make_view, rows)
    if store is None:
        store = _begin(experiment, path, rows)
    with contextlib.ExitStack() as stack:
        samples = None
        if not store.root.is_whole(SAMPLES):
            samples = stack.enter_context(contextlib.closing(_samples_writer(experiment, store, rows)))
        writers = {
            t.member.name: stack.enter_context(
                contextlib.closing(_capture_writer(experiment, store, rows, t))
            )
            for t in teachers
        }
        if samples is not None or writers:
            _write_blocks(experiment, store, rows, teachers, samples, writers, make_view, progress)
    store.root.tidy_up()
    return CacheReport(tuple(writers), kept, store.digest)


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
    progress: Progress,
) -> _Teacher:
    record = train_teacher(experiment, member, rows, models, device=device, progress=progress)
    module = load_teacher(experiment, member, rows, models, device)
    log.info("teacher %s has weights %s", member.name, record.weights)
    return _Teacher(member, module, record.weights)


def _try_out(experiment: Experiment, teacher: _Teacher, rows: TransferRows) -> None:
    """Run a teacher on its first batch: what is wrong with it shows before anything is written."""
    first = range(min(len(rows), experiment.cache.batch_size))
    inputs, _ = rows.rows(first)
    logits = teacher_logits(teacher, inputs, experiment)
    check_classes(logits, rows.num_classes, f"teacher {teacher.member.name!r}")
    experiment.cache.chosen_encoding.encode(logits, 0, f"teacher {teacher.member.name!r}")


def teacher_logits(
    teacher: _Teacher, inputs: Shaped[np.ndarray, "rows ..."], experiment: Experiment
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits of some rows in the experiment's precision and batch size: (rows, classes) float32."""
    settings = experiment.cache
    where = f"teacher {teacher.member.name!r}"
    return run_model(teacher.module, inputs, settings.batch_size, where=where, precision=settings.precision)


def _try_out_views(experiment: Experiment, make_view: Augment | None, rows: TransferRows) -> None:
    """Make every view of a few rows: an augmentation that fails does so before anything is written."""
    if make_view is None:
        return
    first = range(min(len(rows), 16))
    inputs, _ = rows.rows(first)
    for view in range(experiment.cache.views):
        make_view(inputs, view, np.array(first, np.int64))


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


def _capture_writer(
    experiment: Experiment, store: Store, rows: TransferRows, teacher: _Teacher
) -> CaptureWriter:
    return CaptureWriter(
        store.root,
        teacher.member.name,
        identity=capture_identity(experiment, teacher.member, rows, teacher.weights),
        views=experiment.cache.views,
        encoding=experiment.cache.chosen_encoding,
        notes={
            "device": device_of(teacher.module).type,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    )


def _write_blocks(
    experiment: Experiment,
    store: Store,
    rows: TransferRows,
    teachers: list[_Teacher],
    samples: SamplesWriter | None,
    writers: dict[str, CaptureWriter],
    make_view: Augment | None,
    progress: Progress,
) -> None:
    grid = store.root.grid
    views = experiment.cache.views if writers else 1
    stored = None if samples is not None else PartReader(store.root.part(SAMPLES), grid)
    total, done = len(rows) * views, 0
    task = "caching " + ", ".join(writers) if writers else "writing samples"
    progress(task, done, total, "rows")
    for block in range(grid.num_blocks):
        block_rows = grid.rows(block)
        wanted = {
            view: [t for t in teachers if not writers[t.member.name].has_block(view, block)]
            for view in range(views)
        }
        if any(wanted.values()) or (samples is not None and not samples.has_block(0, block)):
            inputs, labels = rows.rows(block_rows)
            source = rows.source[block_rows.start : block_rows.stop]
            digests = digest_rows(inputs)
            if stored is not None:
                check_digests(block_rows, digests, stored.read("digest", block_rows), source)
            elif samples is not None:
                ids = [rows.ids[i] for i in source] if rows.ids else None
                samples.write(block_rows, source=source, digest=digests, label=labels, id=ids, input=inputs)
        for view in range(views):
            if wanted[view]:
                numbers = np.arange(block_rows.start, block_rows.stop, dtype=np.int64)
                shown = inputs if make_view is None else make_view(inputs, view, numbers)
                # A view that is the row as it is comes back as the very array.
                seen = digests if shown is inputs else digest_rows(shown)
                for teacher in wanted[view]:
                    name = teacher.member.name
                    if writers[name].has_block(view, block):
                        continue  # another writer sealed this capture meanwhile
                    logits = teacher_logits(teacher, shown, experiment)
                    try:
                        writers[name].write(block_rows, logits, view, seen)
                    except PartSealed as error:
                        log.warning("%s", error)  # it is there, and this teacher is not run any more
            done += len(block_rows)
            progress(task, done, total, "rows")
    if samples is not None:
        samples.seal()
    for writer in writers.values():
        writer.seal()
