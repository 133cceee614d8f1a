"""One pass of the teachers over the missing blocks, in which a teacher waits for nothing but itself.

    a thread       fetches, digests and augments the inputs of the next view of the next piece of a block
    the caller     runs every teacher that lacks this view of this block
    a thread       encodes, hashes and commits the complete blocks, in that order

A piece is a whole block, unless its inputs are not kept and take more than `PIECE_BYTES`. The bytes that wait between
the threads are bounded (`CapturePass.most_bytes`). If something fails, the blocks that were finished before it are
committed, and the error of the earliest block is raised.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from ...storage.digest import check_digests
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.transform import Transform, working_bytes
from ...storage.errors import BadLogitsError, PartSealed
from ...storage.format.grid import Grid
from ...storage.parts.writer import CaptureWriter, SamplesWriter
from ...storage.stream.inputs import Augment
from ..runtime.ahead import run_ahead
from ..runtime.inference import Runner
from ..same_set import check_labels, check_read_again
from ..transfer import files_of
from ..views import check_one_form, mixes_rows
from ..workspace import Workspace
from .commit_queue import QUEUE_BYTES, CommitQueue
from .device_logits import BlockLogits, Memory, block_logits
from .monitor import Quality
from .preflight import no_room, out_of_memory
from .rest import Rest
from .reuse import OldCapture
from .rows import CHUNK_BYTES, CHUNKS_AHEAD, Prepared
from .schedule import BlockTodo, Cut, Shown, shown_rows

log = logging.getLogger(__name__)
AHEAD = 1
"""Views of a piece that are prepared while the teachers run on the one before."""
PIECE_BYTES = 16 << 20
"""Bytes of inputs that are held together, unless a batch takes more or they are kept in the store."""
GATHERED_BYTES = 128 << 20
"""Bytes of logits that are gathered of a block whose inputs come in pieces, unless one view takes more."""


@dataclass(frozen=True)
class ReadyTeacher:
    """A network that is ready to run, and what its capture records of it."""

    name: str
    """Name of its capture."""
    runner: Runner
    """The network."""
    identity: Mapping[str, Any]
    """Identity of the capture, with the batch that was asked for."""
    notes: Mapping[str, Any]
    """Notes beside the identity."""
    encoding: Encoding
    """How its logits are stored."""
    columns: Int64[np.ndarray, " columns"]
    """The store's class of each of its logits, -1 the dustbin class."""
    is_begun: bool
    """Whether blocks of its capture are there, so that its batch is settled."""
    old: tuple[OldCapture, ...] = ()
    """Captures of this teacher in earlier stores, from which its capture takes rows."""


def teacher_logits(runner: Runner, shown: Shown, logits: BlockLogits) -> None:
    """Run a teacher over a view of some rows: the one place that does so."""
    logits.add(shown.inputs)


def cut_of(block_rows: int, logit_bytes: int, batch: int, row_bytes: int, *, keeps_inputs: bool) -> Cut:
    """Return the division of a block into pieces and sweeps.

    logit_bytes: of a row of one view, of all teachers. batch: rows. row_bytes: of an input or of its view, the larger one.
    keeps_inputs: whether they are written.

    >>> cut_of(8192, 4 * 1000, 256, 3 * 224 * 224, keeps_inputs=False)
    Cut(piece_rows=256, views_a_sweep=4)
    """
    views = max(1, GATHERED_BYTES // (block_rows * logit_bytes))
    if keeps_inputs:
        return Cut(block_rows, views)  # a block of inputs is written as a whole
    return Cut(min(block_rows, batch * max(1, PIECE_BYTES // (batch * max(1, row_bytes)))), views)


@dataclass(frozen=True)
class CapturePass:
    """One pass over the blocks that are missing. A view of a block is fetched once and shown to every teacher."""

    work: Workspace
    """Experiment, transfer set and store."""
    todo: Sequence[BlockTodo]
    """The blocks of this pass."""
    samples: SamplesWriter | None
    """Writer of the samples; None if they are sealed."""
    writers: Mapping[str, CaptureWriter]
    """Writers of the captures, by teacher."""
    teachers: Mapping[str, ReadyTeacher]
    """The teachers, by name."""
    make_view: Augment | None
    """Function that makes the views; None if each view is the row itself."""
    quality: Quality
    """Tallies of the teachers."""
    memory: Memory = field(default_factory=Memory)
    """Memory of blocks, used again and again."""
    checked: set[str] = field(default_factory=set)
    """Teachers that were run on some rows of an earlier store, and gave the same."""
    relabelled: list[int] = field(default_factory=list)
    """Rows that have another label in an earlier store."""

    @property
    def grid(self) -> Grid:
        """Division of the rows into blocks."""
        return self.work.store.grid

    @property
    def block_rows(self) -> int:
        """Rows of the largest block."""
        return min(self.grid.block_rows, self.grid.num_rows)

    @property
    def logit_bytes(self) -> int:
        """Bytes of the logits of a row, or of its features, as a teacher returns them."""
        widths = [one.runner.width(len(one.columns)) for one in self.teachers.values()]
        return 4 * max(widths, default=self.work.rows.num_classes)

    @property
    def view_bytes(self) -> int:
        """Bytes of a view of a row."""
        return self.work.shown_few[:1].nbytes

    @property
    def keeps_inputs(self) -> bool:
        """Whether this pass writes the inputs."""
        return self.samples is not None and self.work.experiment.transfer_set.store_inputs is True

    @property
    def most_bytes(self) -> int:
        """Most bytes of inputs and logits that are held, beside those of the transfer set and the teachers themselves.

        The inputs of this piece and of the next, as they are and as they are shown; the chunks that workers have ready;
        the logits that are gathered; the blocks that wait to be committed; and a block in its encoding.
        """
        rows, row_bytes, settings = self.block_rows, self.work.rows.first.nbytes, self.work.experiment.cache
        piece_rows = min(rows, self.cut.piece_rows)
        piece, with_views = piece_rows * row_bytes, row_bytes
        if self.make_view is not None:  # workers make all views of a piece at once
            with_views += self.view_bytes * (settings.views if settings.workers else 1)
        chunk_rows = min(piece_rows, max(1, CHUNK_BYTES // max(1, row_bytes)))
        ready = settings.workers * CHUNKS_AHEAD * chunk_rows * with_views
        logits = rows * self.logit_bytes if self.writers else 0
        gathered = logits
        if piece < rows * row_bytes:
            gathered *= len(self.writers) * min(self.cut.views_a_sweep, settings.views)
        kept = piece if self.keeps_inputs else 0
        # Memory of committed logits is kept for the next ones while inputs wait in the queue in their place. The order of
        # the queue lets that be one block at most.
        waiting = max(QUEUE_BYTES, logits, kept) + kept
        encoding = max((self._encoding_bytes(writer) for writer in self.writers.values()), default=0)
        # Rows that no earlier store holds, before and after they are gathered; a block that is put together of both.
        old = 2 * piece_rows * self.view_bytes + logits + encoding
        rest = old if any(teacher.old for teacher in self.teachers.values()) else 0
        return (1 + AHEAD) * piece_rows * with_views + ready + gathered + waiting + encoding + rest

    def _encoding_bytes(self, writer: CaptureWriter) -> int:
        """Return the bytes of a block in its encoding, and of the rows that are encoded at a time."""
        layouts = [layout for name, layout in writer.layouts.items() if name not in writer.rare]
        at_a_time = working_bytes(len(writer.columns)) if isinstance(writer.encoding, Transform) else 0
        return self.block_rows * sum(layout.row_bytes for layout in layouts) + at_a_time

    @cached_property
    def cut(self) -> Cut:
        """Division of a block into pieces and sweeps."""
        # Whole batches of every teacher.
        batch = math.lcm(*(teacher.runner.batch_size for teacher in self.teachers.values()))
        row_bytes = max(self.work.rows.first.nbytes, self.view_bytes)
        logit_bytes = self.logit_bytes * max(1, len(self.writers))
        return cut_of(self.block_rows, logit_bytes, batch, row_bytes, keeps_inputs=self.keeps_inputs)

    def run(self) -> None:
        """Write the blocks; seal nothing.

        Raises BadLogitsError for a teacher whose logits cannot be kept, RowMismatch for inputs other than those of the
        store, StorageError if the disk fails, and the errors of the transfer set.
        """
        work, done = self.work, 0
        total = sum(len(self.grid.rows(one.block)) * max(1, len(one.views)) for one in self.todo)
        task = "caching " + ", ".join(self.writers) if self.writers else "writing samples"
        if work.ranks.size > 1:
            task += f" (of the first of {work.ranks.size} ranks)"
        work.progress(task, done, total, "rows")
        log.info("inputs and logits of at most %s bytes are held at once", f"{self.most_bytes:,}")
        prepared = shown_rows(
            work.experiment, work.rows, self.grid, self.todo, self.cut, self.make_view, self._check_rows
        )
        block = _Gathered(-1)
        started, busy = time.perf_counter(), 0.0
        with (
            CommitQueue(QUEUE_BYTES) as queue,
            contextlib.closing(run_ahead(prepared, lambda shown: shown, AHEAD)) as ahead,
        ):
            for shown in ahead:
                if shown.view is not None:
                    check_one_form(shown.inputs, shown.view, work.shown_few)
                if shown.todo.block != block.number:
                    block = _Gathered(shown.todo.block)
                block.add(shown, work.rows.source)
                if shown.is_new:
                    self._compare_labels(shown.prepared)
                if shown.is_new and shown.is_last and self.samples is not None:
                    queue.put(
                        self._write_samples(self.samples, block, shown.prepared),
                        shown.prepared.inputs.nbytes,
                    )
                for name in self._names(shown):
                    begun = time.perf_counter()
                    self._run(name, shown, block)
                    busy += time.perf_counter() - begun
                    if shown.is_last and shown.view is not None:
                        held = block.logits.pop((shown.view, name))
                        queue.put(self._write_logits(name, shown, shown.view, block, held), held.nbytes)
                        del held  # the queue's alone
                done += len(shown.prepared.rows)
                waiting = 1 - busy / (time.perf_counter() - started)
                queue.put(self._report(task, done, total, waiting), 0)
                del shown
        if self.relabelled:
            log.warning(
                "%s rows have another label than in an earlier store", f"{len(set(self.relabelled)):,}"
            )
        if self.writers:
            took = time.perf_counter() - started
            log.info(
                "%s: %.1f s, of which the teachers waited for inputs and the disk %.0f %%",
                task,
                took,
                100 * (1 - busy / took),
            )

    def _run(self, name: str, shown: Shown, block: "_Gathered") -> None:
        """Run a teacher. Raises BadLogitsError, with the settings that are left if memory is short."""
        runner, writer, key = self.teachers[name].runner, self.writers[name], (shown.view, name)
        if key not in block.logits:
            block.logits[key] = block_logits(
                runner,
                len(self.grid.rows(block.number)),
                runner.width(len(writer.columns)),
                as_float16=writer.encoding.kind == "float16",
                memory=self.memory,
            )
        if self.teachers[name].old and shown.view is not None:
            rows = shown.prepared.rows
            if key not in block.rests:
                block.rests[key] = Rest(
                    self.teachers[name].old, shown.view, self.grid.rows(block.number), runner.batch_size
                )
            whole, rest = shown, block.rests[key]
            shown = rest.take(whole)
            self.quality.note_reuse(name, len(rows), found := rest.num_found(rows))
            if found and name not in self.checked:
                rest.check(whole, runner, self.work.experiment.cache.precision)
                self.checked.add(name)
            if not len(shown.inputs):
                return
        try:
            teacher_logits(runner, shown, block.logits[key])
        except BadLogitsError as error:
            if out_of_memory(error):
                begun = [
                    str(one.folder.path)
                    for one in self.writers.values()
                    if one.num_missing < one.views * self.grid.num_blocks
                ]
                raise no_room(runner, error, " and ".join(begun) or None) from error
            rows = shown.prepared.rows
            raise BadLogitsError(
                f"{error.where}, view {shown.view}, rows {rows.start} to {rows.stop - 1}",
                expected=error.expected,
                found=error.found,
                remedy=f"{error.remedy}; nothing of this block was kept",
            ) from error

    def _names(self, shown: Shown) -> list[str]:
        """Return the teachers that are shown it; a capture that another writer has sealed meanwhile needs none."""
        if shown.view is None:
            return []
        view, block = shown.view, shown.todo.block
        return [name for name in shown.todo.views[view] if not self.writers[name].has_block(view, block)]

    def _check_rows(self, prepared: Prepared) -> None:
        """Compare inputs and labels with the sealed samples, or with an earlier reading, before a teacher is shown them.

        Raises RowMismatch for other rows than those of the store, BadDataError for a set that is never the same.
        """
        if self.samples is None:
            samples, rows = self.work.store.samples, prepared.rows
            source = self.work.rows.source[rows.start : rows.stop]
            check_digests(rows, prepared.digests, samples.reader.read("digest", rows), source)
            check_labels(rows, prepared.labels, samples.labels_of(rows), source)
        else:
            check_read_again(self.work.rows, prepared.rows, prepared.digests, prepared.labels)

    def _compare_labels(self, prepared: Prepared) -> None:
        """Warn of rows that have another label in an earlier store; logits do not depend on labels."""
        for old in {
            id(one.set): one.set for teacher in self.teachers.values() for one in teacher.old
        }.values():
            changed = old.relabelled(prepared.digests, prepared.labels)
            if len(changed) and not self.relabelled:
                log.warning(
                    "row %d has the label %d here and %d in %s, for the same input: its logits are reused, and the label is "
                    "that of the transfer set",
                    prepared.rows.start + int(changed[0]),
                    prepared.labels[changed[0]],
                    old.labels[old.rows_of(prepared.digests[changed])[0]],
                    old.store.path,
                )
            self.relabelled.extend((prepared.rows.start + changed).tolist())

    def _write_samples(self, writer: SamplesWriter, block: "_Gathered", last: Prepared) -> Callable[[], None]:
        # Inputs that are kept are prepared as a whole.
        rows, labels, digests = self.grid.rows(block.number), block.labels, block.digests
        inputs, ids = last.inputs if len(last.rows) == len(rows) else None, self.work.rows.ids
        source = self.work.rows.source[rows.start : rows.stop]
        files = files_of(self.work.experiment, self.work.rows)
        return lambda: writer.write(
            rows,
            source=source,
            digest=digests,
            label=labels,
            id=[ids[i] for i in source] if ids else None,
            input=inputs,
            file=None if files is None else lambda part: files.of_rows(rows[part], digests[part]),
        )

    def _write_logits(
        self, name: str, shown: Shown, view: int, gathered: "_Gathered", held: BlockLogits
    ) -> Callable[[], None]:
        # The job must not hold `shown`, whose inputs would stay in memory until it is done.
        rows, labels, seen = self.grid.rows(gathered.number), gathered.labels, gathered.seen(view)
        if mixes_rows(self.make_view) and shown.inputs is not shown.prepared.inputs:
            labels = np.full_like(labels, -1)
        block = shown.todo.block
        last = block == self.todo[-1].block and view == max(shown.todo.views)
        rest = gathered.rests.pop((view, name), None)
        if rest is not None:
            labels = np.where(rest.is_run, labels, -1)

        def write() -> None:
            writer = self.writers[name]
            if writer.has_block(view, block):
                return  # sealed by another writer meanwhile
            taken, peak = held.take()
            copied = None
            if rest is not None:
                copied = rest.copied(writer.encoding)
                taken, peak = rest.spread(taken), None if peak is None else rest.spread(peak)
            logits = self.teachers[name].runner.rows(taken)
            self.quality.note(name, (view, block), logits, labels, is_whole=copied is None)
            self.quality.judge(name, f"teacher {name!r}", last=last)
            try:
                writer.write(rows, logits, view, seen, peak, copied=copied)
            except PartSealed as error:
                log.warning("%s", error)  # it is there, and this teacher is not run any more
            held.release()

        return write

    def _report(self, task: str, done: int, total: int, waiting: float) -> Callable[[], None]:
        """Return the job that reports progress. waiting: share of the time in which no teacher ran."""

        def report() -> None:
            parts = (self.quality.detail, f"waiting {100 * waiting:.0f} %" if self.writers else "")
            self.work.progress(task, done, total, "rows", ", ".join(filter(None, parts)))

        return report


@dataclass
class _Gathered:
    """Labels, digests and logits of a block until all of its rows were shown."""

    number: int
    """Number of the block."""
    logits: dict[tuple[int | None, str], BlockLogits] = field(default_factory=dict)
    """Logits by view and teacher."""
    rests: dict[tuple[int | None, str], Rest] = field(default_factory=dict)
    """By view and teacher, the rows that earlier stores hold and those that they do not."""
    _labels: dict[int, Int64[np.ndarray, " rows"]] = field(default_factory=dict)
    """Labels by the first row of their piece."""
    _digests: dict[int, UInt64[np.ndarray, " rows"]] = field(default_factory=dict)
    """Digests of the inputs by the first row of their piece."""
    _seen: dict[int | None, list[UInt64[np.ndarray, " rows"]]] = field(default_factory=dict)

    def add(self, shown: Shown, source: Int64[np.ndarray, " rows"]) -> None:
        """Append the next view. Raises RowMismatch if rows that are fetched again are others.

        source: index in the transfer set of each row of the store.
        """
        now = shown.prepared
        labels = self._labels.setdefault(now.rows.start, now.labels)
        before = self._digests.setdefault(now.rows.start, now.digests)
        if before is not now.digests:
            check_digests(now.rows, now.digests, before, source[now.rows.start : now.rows.stop])
            check_labels(now.rows, now.labels, labels, source[now.rows.start : now.rows.stop])
        self._seen.setdefault(shown.view, []).append(shown.seen)

    @property
    def labels(self) -> Int64[np.ndarray, " rows"]:
        """Class of each row, -1 if unknown."""
        return np.concatenate(list(self._labels.values()))

    @property
    def digests(self) -> UInt64[np.ndarray, " rows"]:
        """Digests of the inputs as the transfer set has them."""
        return np.concatenate(list(self._digests.values()))

    def seen(self, view: int | None) -> UInt64[np.ndarray, " rows"]:
        """Return the digests of a view."""
        return np.concatenate(self._seen[view])
