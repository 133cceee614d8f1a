"""How do the teachers go over the rows without waiting for anything but themselves?

    a thread       fetches, digests and augments the inputs of the next view of a block
    the caller     runs every teacher that lacks this view of this block
    a thread       encodes, hashes and commits what they gave, in that order

What waits between them is bounded in bytes, which `CapturePass.most_bytes` says beforehand. Whatever fails, what was
finished before it is committed, and the error is that of the earliest block.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..storage.errors import PartSealed
from ..storage.grid import Grid
from ..storage.inputs import Augment
from ..storage.part_reader import PartReader
from ..storage.progress import Progress
from ..storage.writer import CaptureWriter, SamplesWriter, check_digests
from .commit_queue import QUEUE_BYTES, CommitQueue
from .device_feed import run_ahead
from .device_logits import Held
from .experiment import Experiment
from .quality import Quality
from .shown_rows import Prepared, Shown, Todo, shown_rows
from .transfer import TransferRows
from .views import mixes_rows

log = logging.getLogger(__name__)

AHEAD = 1
"""Views of a block that are prepared before the teachers have done with the one before."""


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
    teacher_logits: Callable[[str, Shown], Held]
    """Runs a teacher over a view of a block."""
    quality: Quality
    """Where it is noted how good they are."""

    @property
    def total_rows(self) -> int:
        """Rows of all views of these blocks."""
        return sum(len(self.grid.rows(one.block)) * max(1, len(one.views)) for one in self.todo)

    @property
    def most_bytes(self) -> int:
        """Most bytes of inputs and logits that are held, beside what the transfer set and the teachers hold.

        The inputs of the block that is shown and of the next one, as they are, and where they are augmented as they
        are shown; what the workers have ready; the logits that are being made; and those that wait to be committed.
        """
        rows = min(self.grid.block_rows, self.grid.num_rows)
        inputs = rows * self.rows.first.nbytes
        logits = rows * self.rows.num_classes * 4 if self.writers else 0
        views = 0
        if self.make_view is not None:  # workers make all views of a piece at once
            views = self.experiment.cache.views if self.experiment.cache.workers else 1
        return (1 + AHEAD) * inputs * (1 + views) + logits + max(QUEUE_BYTES, inputs, logits)

    def run(self, task: str, progress: Progress) -> None:
        """Write what is missing of these blocks; nothing is sealed.

        Raises BadLogitsError for a teacher whose logits cannot be kept, RowMismatch for inputs that are not those of
        the store, StorageError where the disk fails, and whatever the transfer set raises.
        """
        total, done = self.total_rows, 0
        progress(task, done, total, "rows")
        log.info("inputs and logits of at most %s bytes are held at once", f"{self.most_bytes:,}")
        prepared = shown_rows(
            self.experiment, self.rows, self.grid, self.todo, self.make_view, self._check_sealed
        )
        with (
            CommitQueue(QUEUE_BYTES) as queue,
            contextlib.closing(run_ahead(prepared, lambda shown: shown, AHEAD)) as ahead,
        ):
            for shown in ahead:
                if shown.is_first and self.samples is not None:
                    queue.put(self._write_samples(shown.prepared), shown.prepared.inputs.nbytes)
                for name in self._names(shown):
                    held = self.teacher_logits(name, shown)
                    queue.put(self._write_logits(name, shown, held), held.nbytes)
                    del held  # the queue's alone
                done += len(shown.prepared.rows)
                queue.put(self._report(progress, task, done, total), 0)
                del shown

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

    def _write_samples(self, prepared: Prepared) -> Callable[[], None]:
        def write() -> None:
            assert self.samples is not None  # or nobody asks for it
            source = self.rows.source[prepared.rows.start : prepared.rows.stop]
            self.samples.write(
                prepared.rows,
                source=source,
                digest=prepared.digests,
                label=prepared.labels,
                id=[self.rows.ids[i] for i in source] if self.rows.ids else None,
                input=prepared.inputs,
            )

        return write

    def _write_logits(self, name: str, shown: Shown, held: Held) -> Callable[[], None]:
        # Not `shown` itself, whose inputs would be held until then.
        rows, labels, seen = shown.prepared.rows, shown.prepared.labels, shown.seen
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

        return write

    def _report(self, progress: Progress, task: str, done: int, total: int) -> Callable[[], None]:
        return lambda: progress(task, done, total, "rows", self.quality.detail)
