"""Batches of a store, epoch after epoch.

1. `options` holds the arguments, checked; `order` says which rows come when.
2. `intervals` and `batches` say which rows remain, which of them are this rank's, and in which batch each comes.
3. `window` reads whole chunk runs of every array, one window ahead of the one in use.
4. `picker` copies batches out of the window in memory.

Nothing forks, nothing is shared between processes, and the state is a few integers.
"""

import copy
import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.posix import PIECE_BYTES
from ..checks import whole_number
from ..parts.reader import CaptureReader, Samples
from ..parts.root import Root
from .batch import Batch, TopKRows, TransformRows
from .batches import EpochPlan, Stratum, plan_epoch, plan_strata
from .escaped import EscapedField
from .fetch_ahead import FETCH_BYTES, FETCHES, FetchAhead, Plan, holds_all
from .fields import Labels, fields_of, sources_of
from .inputs import Inputs
from .intervals import Interval
from .making import Augment, Makers, made_ahead
from .options import StreamOptions
from .order import WINDOW_RUNS, ChunkRun, Order, RepeatedOrder
from .picker import Picker, rows_together
from .shared_basis import share_basis
from .state import Remaining, remaining_of
from .window import READ_THREADS, REMOTE_THREADS, Arrays, Buffers, Field, ReadAhead, runs_of, windows_of


@dataclass(eq=False)
class Iteration:
    """One pass over an epoch, or over the rest of one."""

    plans: list[EpochPlan]
    """Its batches, of each order."""
    numbers: range
    """Numbers of the batches that this process reads."""
    handed_out: int = 0
    """Number of them that the loop has."""


class Stream:
    """Batches of a store. An iteration is one epoch.

    An epoch ends with its last batch, even if a loop that counts its steps never reaches `StopIteration`. `state_dict`
    and `load_state_dict` resume it at any batch, in this process or another. An iteration that is abandoned without them
    begins the epoch anew.
    """

    def __init__(self, root: Root, captures: Mapping[str, CaptureReader], options: StreamOptions) -> None:
        """Plan the stream; reads metadata, and source and label of each row if there is a transfer set.

        Raises StoreIncomplete, ConfigError, SpecMismatch or RowMismatch as `Store.stream` does.
        """
        self._root = root
        self._samples = Samples(root)
        self._captures = dict(captures)
        self._labels = Labels(self._samples, root)
        self._options = options
        self.decode, self.temperature = options.decode, options.temperature
        if options.decode:
            for capture in self._captures.values():
                capture.check_temperature(options.temperature)
        self._inputs = Inputs(self._samples, self._captures, options, str(root.path))
        self._epoch = 0
        self._pinned = False
        self._loaded: Remaining | None = None  # where this epoch resumes, if a state was loaded
        self._plans: tuple[list[EpochPlan], list[int]] | None = None  # of this epoch, from there
        self._batches = 0
        self._resumed = False
        self._every = (0, 1)
        self._is_share = False
        self._iteration: Iteration | None = None  # the latest, which alone moves the position
        self._buffers: list[Buffers] = []
        self._makers: Makers | None = None
        self._share_bases()

    def __repr__(self) -> str:
        return f"<Stream of {str(self._root.path)!r}: batches of {self._options.batch_size}, {list(self._captures)}>"

    def _share_bases(self) -> None:
        """Register the basis of each capture that has one, for the batches of this process and of its workers."""
        shared = {name: share_basis(capture) for name, capture in self._captures.items()}
        self._bases = {name: basis for name, basis in shared.items() if basis is not None}

    @property
    def reads_every_row(self) -> bool:
        """Whether neither ranks nor rows were given: each of several processes would read every row."""
        return self._options.reads_every_row

    def __getstate__(self) -> dict[str, Any]:
        # Another process has windows of its own, and opens parts of its own.
        left_out = ("_fields", "_escaped_fields", "_whole_plans", "_bases")
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return kept | {"_buffers": [], "_plans": None, "_iteration": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._share_bases()

    # Epochs and positions

    def _order(
        self, epoch: int, rows: NDArray[np.int64] | None, window: int | None, repetition: int = 0
    ) -> Order:
        return Order(
            self._root.grid,
            views=self._options.epoch_views(epoch),
            rows=rows,
            window=window,
            shuffle=self._options.shuffle,
            seed=self._options.seed,
            epoch=epoch,
            repetition=repetition,
        )

    def _strata(self, epoch: int) -> list[RepeatedOrder]:
        """Return the order of each stratum; its windows have its share of a window's rows."""
        options = self._options
        whole = options.window or WINDOW_RUNS * self._root.grid.run_rows
        windows = [max(1, round(whole * share / sum(options.shares))) for share in options.shares]
        return [
            RepeatedOrder(partial(self._order, epoch, rows, window))
            for rows, window in zip(options.strata, windows, strict=True)
        ]

    def _plans_of(self, epoch: int, remaining: Remaining | None) -> tuple[list[EpochPlan], list[int]]:
        """Plan an epoch, or what remains of it; return also the positions that each order will have reached."""
        options = self._options
        cut = options.batch_size, options.world_size, options.drop_last
        if not options.strata:
            order = self._order(epoch, options.rows, options.window)
            intervals = (Interval(0, len(order)),) if remaining is None else remaining[0][0]
            return [plan_epoch(order, intervals, *cut)], [len(order)]
        orders = self._strata(epoch)
        if remaining is None:
            remaining = tuple(((Interval(0, order.period),), order.period) for order in orders)
        strata = [
            Stratum(order, share, *state)
            for order, share, state in zip(orders, options.shares, remaining, strict=True)
        ]
        return plan_strata(strata, *cut)

    @cached_property
    def _whole_plans(self) -> list[EpochPlan]:
        return self._plans_of(0, None)[0]

    def __len__(self) -> int:
        """Return the batches of a whole epoch, the same on every rank."""
        return self._whole_plans[0].cut.count

    @property
    def cut(self) -> dict[str, int]:
        """What decides which rows are a batch here: batch_size, rank, world_size and drop_last."""
        options = self._options
        return {
            "batch_size": options.batch_size,
            "rank": options.rank,
            "world_size": options.world_size,
            "drop_last": int(options.drop_last),
        }

    @property
    def epoch_rows(self) -> int:
        """Rows of a whole epoch of all ranks, each view counted."""
        return sum(plan.cut.total for plan in self._whole_plans)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one stored input; () if the store keeps none."""
        stored = self._samples.inputs
        return () if stored is None else stored.shape[1:]

    @property
    def window_bytes(self) -> int:
        """Bytes of the largest window, all strata together; a stream holds at most two.

        Rows of the transform encoding count as codes, and beside them the few escaped rows that a window may hold.
        """
        windows = [plan.order.window_rows for plan in self._whole_plans]
        escaped = sum(
            field.most_rows(rows) * (field.row_bytes + 8)
            for field in self._escaped_fields
            for rows in windows
        )
        return sum(windows) * self.row_bytes + escaped

    @property
    def memory_bytes(self) -> int:
        """Bytes that an iteration holds at most: two windows, the buffers of reading threads, two batches.

        Of a remote store also its labels, and the pieces of the shards that are being fetched.
        A thread holds a piece of the file and a chunk run of one array, twice if not all of its rows are needed.
        Batches whose inputs other processes make (`made_by`) are begun a few ahead.
        A batch is held as stored, narrow rows with those of the next batches, and, if the stream decodes, as float32
        logits. Batches that the caller keeps are not counted.
        """
        classes = sum(capture.shape[2] for capture in self._captures.values()) if self.decode else 0
        whole_rows = [field.row_bytes for field in self._escaped_fields]
        widest = max(
            [self._inputs.made_from_bytes, *whole_rows, *(field.row_bytes for field in self._fields)]
        )
        is_remote = self._root.folder.is_remote
        reading = REMOTE_THREADS if is_remote else READ_THREADS
        reading *= 2 * self._root.grid.run_rows * widest + PIECE_BYTES
        reading += (FETCHES * FETCH_BYTES if is_remote else 0) + self._labels.held_bytes
        batch_rows = min(self._options.batch_size, self.epoch_rows)
        picked_rows = min(rows_together(batch_rows, self.row_bytes), self.epoch_rows)
        batch = picked_rows * self.row_bytes + batch_rows * (sum(whole_rows) + 4 * classes)
        made = 0
        if self._makers is not None:  # of the batches ahead: the inputs, twice if they are of several views
            made = (self._batches_ahead + 2) * batch_rows * (self.row_bytes + 2 * self._inputs.form.nbytes)
        return 2 * (self.window_bytes + batch) + reading + made

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a window: logits as stored, inputs, label, row, view, and its index by draw."""
        return sum(field.row_bytes for field in self._fields) + 8

    def every(self, parts: int, first: int) -> "Stream":
        """Return a stream of batches `first`, `first + parts` … of each epoch, for one of several processes.

        The batches of all processes, taken in turn, are those of this stream, in its order. The epoch of such a share
        ends with its iteration, as its last batch is not the last of all.
        """
        other = copy.copy(self)
        other._every, other._is_share = (first, parts), True
        return other

    @property
    def makes_inputs(self) -> bool:
        """Whether inputs come from a transfer set or are augmented, so that other processes could make them."""
        return self._inputs.are_made

    @property
    def augment(self) -> Augment | None:
        """The function of its views."""
        return self._inputs.augment

    def made_by(self, makers: Makers) -> "Stream":
        """Return this stream with inputs that other processes make: the same batches, bit for bit.

        They are made batch by batch, a few ahead of the loop. Windows then hold no inputs that are made.
        """
        other = copy.copy(self)
        if self.makes_inputs:
            other._makers, other._buffers = makers, []
            vars(other).pop("_fields", None)
        return other

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make every iteration from now on this epoch, until it is set again.

        If a state of this epoch was loaded and not yet resumed, the next iteration is the rest of it.
        """
        epoch = whole_number("epoch", epoch, 0)
        if self._resumed and epoch == self._epoch:
            self._pinned = True
        else:
            self.begin_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch and discard a loaded state."""
        self._pinned = True
        unchanged = self._iteration if epoch == self._epoch else None
        self._go_to(epoch)
        self._iteration = unchanged

    def _go_to(self, epoch: int) -> None:
        self._epoch, self._batches, self._resumed = epoch, 0, False
        self._iteration = None
        self._loaded = self._plans = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two batches; the same on every rank that has taken equally many.

        After the last batch of an epoch that was not set, it is the beginning of the next epoch.
        """
        plans, reached = self._plans_from_here()
        left = [[[i.start, i.stop, i.first_draw] for i in plan.after(self._batches)] for plan in plans]
        return {"epoch": self._epoch, "left": left, "reached": reached, **self._order_state()}

    def _plans_from_here(self) -> tuple[list[EpochPlan], list[int]]:
        if self._plans is None:
            self._plans = self._plans_of(self._epoch, self._loaded)
        return self._plans

    def _order_state(self) -> dict[str, Any]:
        """Return everything that determines the order: positions of one order mean nothing in another."""
        return {"samples": self._samples.digest, **self._options.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at a state, with any batch size and any number of ranks.

        Raises ConfigError for a state of another store, seed, window, selection of rows or views.
        """
        options = self._options
        epoch, remaining = remaining_of(
            state,
            self._order_state(),
            len(options.strata),
            lambda epoch: len(self._order(epoch, options.rows, options.window)),
        )
        self._go_to(epoch)
        self._loaded, self._resumed = remaining, True

    # Reading

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, or the rest of it if a state was loaded."""
        return self.batches(self.decode)

    def batches(self, decode: bool) -> Iterator[Batch]:
        """Iterate, decoding or not whatever the stream's own option."""
        iteration = self.begin()
        with self.going_on(iteration), closing(self.read(iteration, decode)) as batches:
            for batch in batches:
                self.hand_out(iteration)
                yield batch
        self.end(iteration)

    @contextmanager
    def going_on(self, iteration: Iteration) -> Iterator[None]:
        """Resume there with the next iteration, if this one ends with an error of reading or making a batch."""
        try:
            yield
        except Exception:
            if self._iteration is iteration and self._batches > 0:
                pinned = self._pinned
                self.load_state_dict(self.state_dict())
                self._pinned = pinned
            raise

    def begin(self) -> Iteration:
        """Begin an iteration, of which `hand_out` and `end` move the position until another begins.

        `TorchStream` reads it in a thread, ahead of the loop: the position is that of the loop.
        """
        if not self._resumed:
            self._loaded = self._plans = None
        self._resumed, self._batches = False, 0
        plans = self._plans_from_here()[0]
        first, parts = self._every
        self._iteration = Iteration(plans, range(first, plans[0].cut.count, parts))
        return self._iteration

    def hand_out(self, iteration: Iteration) -> None:
        """Move the position behind the next batch of an iteration: after the last, to the next epoch."""
        iteration.handed_out += 1
        if self._iteration is iteration:
            self._batches = iteration.numbers[iteration.handed_out - 1] + 1
            is_last = iteration.handed_out == len(iteration.numbers)
            if is_last and not self._pinned and not self._is_share:
                self._go_to(self._epoch + 1)

    def end(self, iteration: Iteration) -> None:
        """Set the next epoch, or the one that was set, unless `hand_out` has."""
        if self._iteration is iteration:
            self._go_to(self._epoch if self._pinned else self._epoch + 1)

    def read(self, iteration: Iteration, decode: bool) -> Generator[Batch, None, None]:
        """Read the batches of an iteration; the position stays. The threads have ended when the last batch is yielded."""
        plans, numbers = iteration.plans, iteration.numbers
        ranks = [plan.rank(self._options.rank) for plan in plans]
        while len(self._buffers) < len(plans):  # kept from epoch to epoch
            self._buffers.append(Buffers(self._fields))
        process = os.getpid()
        fetched: list[Plan | None] = [None] * len(plans)
        if self._root.folder.keeps:
            self._labels.hold()
            sources = sources_of(self._fields, self._escaped_fields)
            fetched = [Plan(plan.order, sources, self._root.grid.block_rows) for plan in plans]

        def runs() -> list[Iterator[ChunkRun]]:
            pairs = zip(plans, ranks, strict=True)
            return [runs_of(plan.order, rank.remainder, windows_of(rank, numbers)) for plan, rank in pairs]

        is_near = not self._root.folder.is_remote or holds_all(fetched, runs())
        count = READ_THREADS if is_near else REMOTE_THREADS
        threads = ThreadPoolExecutor(count, thread_name_prefix="logitstore-read-ahead")
        readers: list[ReadAhead] = []
        ahead = None if is_near else FetchAhead.of(fetched, runs())
        last: Batch | None = None
        try:
            for plan, rank, buffers, each in zip(plans, ranks, self._buffers, fetched, strict=True):
                reader = ReadAhead(
                    plan.order,
                    rank.remainder,
                    windows_of(rank, numbers),
                    self._fields,
                    buffers,
                    threads,
                    self._escaped_fields,
                    count,
                    each,
                )
                readers.append(reader)
            most = rows_together(self._options.batch_size, self.row_bytes)
            picker = Picker(ranks, readers, self._fields, self._escaped_fields, most)
            for number, arrays in zip(numbers, self._with_inputs(picker.batches(numbers)), strict=True):
                batch = self._batch(arrays, decode)
                if number == numbers[-1]:
                    last = batch
                else:
                    yield batch
        finally:
            if ahead is not None:
                ahead.close()
            if os.getpid() == process:  # A fork has no threads to wait for.
                threads.shutdown(wait=True, cancel_futures=True)
                for reader in readers:
                    reader.close()
        if last is not None:
            yield last

    def _with_inputs(self, batches: Iterator[Arrays]) -> Iterator[Arrays]:
        """Yield the arrays of batches, with the inputs that other processes make."""
        if self._makers is None:
            return batches
        inputs = self._inputs
        return made_ahead(batches, inputs.wanted, inputs.form, self._makers, self._batches_ahead)

    @property
    def _batches_ahead(self) -> int:
        """Batches whose inputs are made before they are needed."""
        if self._makers is None:
            return 0
        return self._makers.batches_ahead(self._options.batch_size * self._inputs.form.nbytes)

    @cached_property
    def _fields(self) -> list[Field]:
        """The arrays of a window."""
        inputs: list[Field] = []
        if self._makers is not None:
            inputs = self._inputs.fields_to_make
        elif self._inputs.available:
            inputs = [self._inputs.field]
        return fields_of(self._labels, inputs, self._captures)

    @cached_property
    def _escaped_fields(self) -> list[EscapedField]:
        """The arrays of a window that hold few rows."""
        return [EscapedField.of(name, self._captures[name]) for name in self._bases]

    def _batch(self, arrays: Arrays, decode: bool) -> Batch:
        logits = {name: self._logits(name, arrays, decode) for name in self._captures}
        scale = {} if decode else self._scale
        return Batch(
            arrays["rows"],
            arrays["views"],
            arrays.get("inputs"),
            arrays["labels"],
            logits,
            scale,
            self._decoded_for if decode else {},
        )

    def _logits(self, name: str, arrays: Arrays, decode: bool) -> "NDArray[Any] | TopKRows | TransformRows":
        """Return the logits of a batch of one teacher, decoded or as stored."""
        capture = self._captures[name]
        stored = {array: arrays[f"{array}/{name}"] for array in capture.encoding.decoded_from}
        if name in self._bases:
            codes, refine, escape = (arrays[f"{array}/{name}"] for array in ("codes", "refine", "escape"))
            rows = TransformRows(codes, refine, escape, self._bases[name], capture.shape[2])
            return rows.decode() if decode else rows
        if decode:
            return capture.encoding.decode(stored, capture.shape[2], self.temperature)
        if capture.encoding.is_dense:
            return stored["logits"]
        return TopKRows(**stored, num_classes=capture.shape[2])

    @cached_property
    def _scale(self) -> dict[str, float]:
        """The factor of each teacher's stored integers."""
        scales = {name: capture.encoding.scale for name, capture in self._captures.items()}
        return {name: scale for name, scale in scales.items() if scale is not None}

    @cached_property
    def _decoded_for(self) -> dict[str, float]:
        """Return the temperature of the softmax by teacher, of those whose rows are decoded for one."""
        names = [name for name, capture in self._captures.items() if not capture.encoding.is_dense]
        return {} if self.temperature is None else dict.fromkeys(names, self.temperature)
