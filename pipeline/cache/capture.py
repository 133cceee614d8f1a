"""How do the teachers go over the rows without waiting for anything but themselves?

    a thread       fetches, digests and augments the inputs of the next view of the next piece of a block
    the caller     runs every teacher that lacks this view of this block
    a thread       encodes, hashes and commits the blocks that are complete, in that order

A piece is a whole block, unless its inputs are not kept and take more than `PIECE_BYTES`.

What waits between them is bounded in bytes, which `CapturePass.most_bytes` says beforehand. Whatever fails, what was
finished before it is committed, and the error is that of the earliest block.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt64

from ...storage.errors import PartSealed
from ...storage.format.grid import Grid
from ...storage.parts.part_reader import PartReader
from ...storage.parts.writer import CaptureWriter, SamplesWriter, check_digests
from ...storage.progress import Progress
from ...storage.stream.inputs import Augment
from ..experiment.document import Experiment
from ..runtime.ahead import run_ahead
from ..transfer import TransferRows
from ..views import mixes_rows
from .commit_queue import QUEUE_BYTES, CommitQueue
from .device_logits import BlockLogits
from .monitor import Quality
from .rows import CHUNK_BYTES, CHUNKS_AHEAD, Prepared
from .schedule import Cut, Shown, Todo, shown_rows

log = logging.getLogger(__name__)


AHEAD = 1
"""Views of a piece that are prepared before the teachers have done with the one before."""


PIECE_BYTES = 16 << 20
"""Bytes of inputs that are held together, unless a batch takes more or they are kept in the store."""


GATHERED_BYTES = 128 << 20
"""Bytes of logits that are gathered of a block whose inputs come in pieces, unless one view takes more."""


@runtime_checkable
class Teachers(Protocol):
    """The teachers of a pass, by name."""

    @property
    def batch_rows(self) -> int:
        """Rows that are whole batches of every teacher."""

    def begin(self, name: str, rows: int) -> BlockLogits:
        """Room for the logits of a block."""

    def run(self, name: str, shown: Shown, logits: BlockLogits) -> None:
        """Have a teacher say its logits of the next rows of a block."""


@dataclass(frozen=True)
class CapturePass:
    """One pass over the blocks that are missing."""

    experiment: Experiment
    """Whose teachers they are."""
    rows: TransferRows
    """What they are shown."""
    grid: Grid
    """How the store is cut."""
    todo: Sequence[Todo]
    """The blocks of this pass."""
    samples: SamplesWriter | None
    """Where the samples are written; None where they are sealed."""
    sealed_samples: PartReader | None
    """Those that are sealed, with which the inputs are compared."""
    writers: Mapping[str, CaptureWriter]
    """By teacher."""
    make_view: Augment | None
    """What makes the views; None where they are the rows as they are."""
    teachers: Teachers
    """Those who are shown it."""
    quality: Quality
    """Where it is noted how good they are."""

    @property
    def block_rows(self) -> int:
        """Rows of the largest block."""
        return min(self.grid.block_rows, self.grid.num_rows)

    @property
    def logit_bytes(self) -> int:
        """Bytes of the logits of a row, as a teacher says them."""
        return self.rows.num_classes * 4

    @property
    def total_rows(self) -> int:
        """Rows of all views of these blocks."""
        return sum(len(self.grid.rows(one.block)) * max(1, len(one.views)) for one in self.todo)

    @property
    def most_bytes(self) -> int:
        """Most bytes of inputs and logits that are held, beside what the transfer set and the teachers hold.

        The inputs of the piece that is shown and of the next one, as they are, and where they are augmented as they
        are shown; what the workers have ready; the logits that are gathered; those that wait to be committed; and a
        block as it is encoded.
        """
        rows = self.block_rows
        piece = min(rows, self.cut.piece_rows) * self.rows.first.nbytes
        workers = self.experiment.cache.workers
        views = 0
        if self.make_view is not None:  # workers make all views of a piece at once
            views = self.experiment.cache.views if workers else 1
        ready = workers * CHUNKS_AHEAD * min(piece, max(CHUNK_BYTES, self.rows.first.nbytes)) * (1 + views)
        logits = rows * self.logit_bytes if self.writers else 0
        gathered = logits
        if piece < rows * self.rows.first.nbytes:
            gathered *= len(self.writers) * min(self.cut.views_a_sweep, self.experiment.cache.views)
        kept = piece if self.samples is not None and self.experiment.transfer_set.store_inputs else 0
        # The memory of logits that are committed is kept for the next ones, while inputs wait in their place; by the
        # order of the queue never more of them than one.
        waiting = max(QUEUE_BYTES, logits, kept) + kept
        widths = [sum(layout.row_bytes for layout in w.layouts.values()) for w in self.writers.values()]
        return (1 + AHEAD) * piece * (1 + views) + ready + gathered + waiting + rows * max(widths, default=0)

    @cached_property
    def cut(self) -> Cut:
        """How the blocks are gone over."""
        rows = self.block_rows
        row_bytes = max(1, self.rows.first.nbytes)
        gathered = rows * self.logit_bytes * max(1, len(self.writers))
        views = max(1, GATHERED_BYTES // gathered)
        if self.samples is not None and self.experiment.transfer_set.store_inputs:
            return Cut(rows, views)  # which are written as a whole
        batch = self.teachers.batch_rows
        return Cut(min(rows, batch * max(1, PIECE_BYTES // (batch * row_bytes))), views)

    def run(self, task: str, progress: Progress) -> None:
        """Write what is missing of these blocks; nothing is sealed.

        Raises BadLogitsError for a teacher whose logits cannot be kept, RowMismatch for inputs that are not those of
        the store, StorageError where the disk fails, and whatever the transfer set raises.
        """
        total, done = self.total_rows, 0
        progress(task, done, total, "rows")
        log.info("inputs and logits of at most %s bytes are held at once", f"{self.most_bytes:,}")
        prepared = shown_rows(
            self.experiment, self.rows, self.grid, self.todo, self.cut, self.make_view, self._check_sealed
        )
        block = _Gathered(-1)
        started, busy = time.perf_counter(), 0.0
        with (
            CommitQueue(QUEUE_BYTES) as queue,
            contextlib.closing(run_ahead(prepared, lambda shown: shown, AHEAD)) as ahead,
        ):
            for shown in ahead:
                if shown.todo.block != block.number:
                    block = _Gathered(shown.todo.block)
                block.add(shown, self.rows.source)
                if shown.is_new and shown.is_last and self.samples is not None:
                    queue.put(self._write_samples(block, shown.prepared), shown.prepared.inputs.nbytes)
                for name in self._names(shown):
                    begun = time.perf_counter()
                    self._run(name, shown, block)
                    busy += time.perf_counter() - begun
                    if shown.is_last:
                        held = block.logits.pop((shown.view, name))
                        queue.put(self._write_logits(name, shown, block, held), held.nbytes)
                        del held  # the queue's alone
                done += len(shown.prepared.rows)
                waiting = 1 - busy / (time.perf_counter() - started)
                queue.put(self._report(progress, task, done, total, waiting), 0)
                del shown
        if self.writers:
            took = time.perf_counter() - started
            log.info(
                "%s: %.1f s, of which the teachers waited for inputs and the disk %.0f %%",
                task,
                took,
                100 * (1 - busy / took),
            )

    def _run(self, name: str, shown: Shown, block: "_Gathered") -> None:
        key = (shown.view, name)
        if key not in block.logits:
            block.logits[key] = self.teachers.begin(name, len(self.grid.rows(block.number)))
        self.teachers.run(name, shown, block.logits[key])

    def _names(self, shown: Shown) -> list[str]:
        """Who is shown it: not those whose capture another writer has sealed meanwhile."""
        if shown.view is None:
            return []
        view, block = shown.view, shown.todo.block
        return [name for name in shown.todo.views[view] if not self.writers[name].has_block(view, block)]

    def _check_sealed(self, prepared: Prepared) -> None:
        """Refuse inputs that are not those of the sealed samples, before a teacher is shown them. Raises RowMismatch."""
        if self.sealed_samples is not None:
            stored = self.sealed_samples.read("digest", prepared.rows)
            source = self.rows.source[prepared.rows.start : prepared.rows.stop]
            check_digests(prepared.rows, prepared.digests, stored, source)

    def _write_samples(self, block: "_Gathered", last: Prepared) -> Callable[[], None]:
        # Inputs that are kept are prepared as a whole.
        rows, labels, digests = self.grid.rows(block.number), block.labels, block.digests
        inputs = last.inputs if len(last.rows) == len(rows) else None

        def write() -> None:
            assert self.samples is not None  # or nobody asks for it
            source = self.rows.source[rows.start : rows.stop]
            self.samples.write(
                rows,
                source=source,
                digest=digests,
                label=labels,
                id=[self.rows.ids[i] for i in source] if self.rows.ids else None,
                input=inputs,
            )

        return write

    def _write_logits(
        self, name: str, shown: Shown, gathered: "_Gathered", held: BlockLogits
    ) -> Callable[[], None]:
        # Not `shown` itself, whose inputs would be held until then.
        rows, labels, seen = self.grid.rows(gathered.number), gathered.labels, gathered.seen(shown.view)
        if mixes_rows(self.make_view) and shown.inputs is not shown.prepared.inputs:
            labels = np.full_like(labels, -1)
        view, block = shown.view, shown.todo.block
        assert view is not None
        last = block == self.todo[-1].block and view == max(shown.todo.views)

        def write() -> None:
            writer = self.writers[name]
            if writer.has_block(view, block):
                return  # sealed by another writer meanwhile
            logits, peak = held.take()
            self.quality.note(name, (view, block), logits, labels)
            self.quality.judge(name, f"teacher {name!r}", last=last)
            try:
                writer.write(rows, logits, view, seen, peak)
            except PartSealed as error:
                log.warning("%s", error)  # it is there, and this teacher is not run any more
            held.release()

        return write

    def _report(
        self, progress: Progress, task: str, done: int, total: int, waiting: float
    ) -> Callable[[], None]:
        """waiting: share of the time in which no teacher ran."""

        def report() -> None:
            parts = (self.quality.detail, f"waiting {100 * waiting:.0f} %" if self.writers else "")
            progress(task, done, total, "rows", ", ".join(filter(None, parts)))

        return report


@dataclass
class _Gathered:
    """What is gathered of a block until all of its rows were shown."""

    number: int
    """Of the block."""
    logits: dict[tuple[int | None, str], BlockLogits] = field(default_factory=dict)
    """By view and teacher."""
    _labels: dict[int, Int64[np.ndarray, " rows"]] = field(default_factory=dict)
    """By the first row of a piece, its labels."""
    _digests: dict[int, UInt64[np.ndarray, " rows"]] = field(default_factory=dict)
    """The same of its digests."""
    _seen: dict[int | None, list[UInt64[np.ndarray, " rows"]]] = field(default_factory=dict)

    def add(self, shown: Shown, source: Int64[np.ndarray, " rows"]) -> None:
        """Note what is shown next. Raises RowMismatch where rows that are fetched again are others.

        source: by row of the store, the index in the transfer set.
        """
        now = shown.prepared
        self._labels.setdefault(now.rows.start, now.labels)
        before = self._digests.setdefault(now.rows.start, now.digests)
        if before is not now.digests:
            check_digests(now.rows, now.digests, before, source[now.rows.start : now.rows.stop])
        self._seen.setdefault(shown.view, []).append(shown.seen)

    @property
    def labels(self) -> Int64[np.ndarray, " rows"]:
        """Class of each row, -1 where unknown."""
        return np.concatenate(list(self._labels.values()))

    @property
    def digests(self) -> UInt64[np.ndarray, " rows"]:
        """Of the inputs as the transfer set has them."""
        return np.concatenate(list(self._digests.values()))

    def seen(self, view: int | None) -> UInt64[np.ndarray, " rows"]:
        """Digests of what was shown of a view."""
        return np.concatenate(self._seen[view])
