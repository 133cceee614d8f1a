"""How do the rows of an epoch become batches?

1. `order` says which rows come when, `pieces` and `batches` which are left, which are this rank's, and in which batch.
2. `window` reads whole runs of chunks of every array, a window ahead of the one in use.
3. Batches are picked out of the window in memory.

Nothing forks, nothing is shared between processes, and the state is a few integers.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.posix import PIECE_BYTES
from ..checks import check_flags, check_rank, check_temperature, whole_number
from ..digest import digest_rows
from ..errors import ConfigError
from ..parts.reader import CaptureReader, Samples
from ..parts.root import Root
from .batch import Batch, TopKRows
from .batches import Course, Slice, Stratum, Way, mixed_courses, whole_course
from .inputs import Augment, Inputs, common_augmentation, is_augmented
from .order import WINDOW_RUNS, Laps, Order, Run, Windows
from .pieces import Piece
from .selection import check_strata, check_view, selected_rows
from .window import READ_THREADS, Arrays, Buffers, Field, ReadAhead

Places = tuple[tuple[tuple[Piece, ...], int], ...]
"""Of each stratum what is left, and how many of its places belong to the epoch so far."""


class Stream:
    """Batches of a store, epoch after epoch. Iterating it is one epoch.

    It goes on at any batch, in this process or another, by `state_dict` and `load_state_dict`; an iteration that
    was broken off without them begins the epoch anew.
    """

    def __init__(
        self,
        root: Root,
        captures: Mapping[str, CaptureReader],
        *,
        batch_size: int,
        views: "str | int" = "cycle",
        rows: Any = None,
        strata: Sequence[Any] | None = None,
        shares: Sequence[int | float] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        window: int | None = None,
        decode: bool = True,
        temperature: float | None = None,
        inputs: bool = True,
        transfer_set: Any = None,
        augment: Augment | None = None,
    ) -> None:
        """Plan the stream; reads metadata, and for a transfer set which of its examples each row is.

        See `Store.stream` for the arguments and the errors.
        """
        self._root = root
        self._samples = Samples(root)
        self._captures = dict(captures)
        check_flags(shuffle=shuffle, drop_last=drop_last, decode=decode, inputs=inputs)
        self._batch_size = whole_number("batch_size", batch_size, 1)
        self._world_size = whole_number("world_size", world_size, 1)
        self._rank = check_rank(rank, self._world_size)
        self._seed = whole_number("seed", seed, 0, below=1 << 64)
        self._window = None if window is None else whole_number("window", window, 1)
        self._shuffle, self._drop_last = shuffle, drop_last
        temperature = None if temperature is None else check_temperature(temperature)
        self.decode, self.temperature = decode, temperature
        if decode:
            for capture in self._captures.values():
                capture.check_temperature(temperature)
        num_rows = root.grid.num_rows
        self._strata, self._shares = check_strata(strata, shares, rows, num_rows, self._batch_size)
        self._rows = None if rows is None else selected_rows(rows, num_rows)
        self._num_views = min((c.num_views for c in self._captures.values()), default=1)
        self._views = check_view(views, self._num_views)
        self._augmentation = common_augmentation(self._captures, self._streamed_views(), str(root.path))
        self._has_inputs = inputs and (transfer_set is not None or self._samples.inputs is not None)
        self._check_augment(augment)
        self._inputs = Inputs(
            self._samples,
            next(iter(self._captures.values()), None),
            augmentation=self._augmentation,
            transfer_set=transfer_set,
            augment=augment,
            view=self._streamed_views()[0],
        )
        self._epoch = 0
        self._pinned = False
        self._places: Places | None = None  # where this epoch begins, where a state was loaded
        self._here: tuple[list[Course], list[int]] | None = None  # the way through it from there
        self._batches = 0
        self._resumed = False
        self._every = (0, 1)
        self._buffers: list[Buffers] = []

    def __getstate__(self) -> dict[str, Any]:
        # Another process has windows of its own; what is derived from open parts is derived again.
        left_out = ("_buffers", "_fields", "_here", "_first_courses")
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return kept | {"_buffers": [], "_here": None}

    # What is asked for, checked

    def _check_augment(self, augment: Augment | None) -> None:
        if augment is not None and not callable(augment):
            raise ConfigError(
                "augment", expected="a function", found=repr(augment)[:80], remedy="pass replay(…), or none"
            )
        augmented = [view for view in self._streamed_views() if is_augmented(self._augmentation, view)]
        if self._has_inputs and augment is None and augmented:
            raise ConfigError(
                "augment",
                expected=f"the function that made views {augmented} of the inputs",
                found="none",
                remedy="pass augment=…, or views=0, or inputs=False where you need no inputs",
            )

    def _streamed_views(self) -> tuple[int, ...]:
        """The views that any epoch may come to."""
        return self._epoch_views(0) if isinstance(self._views, int) else tuple(range(self._num_views))

    # Epochs and positions

    def _epoch_views(self, epoch: int) -> tuple[int, ...]:
        if self._views == "all":
            return tuple(range(self._num_views))
        return (epoch % self._num_views,) if self._views == "cycle" else (int(self._views),)

    def _order(
        self, epoch: int, rows: NDArray[np.int64] | None = None, window: int | None = None, lap: int = 0
    ) -> Order:
        return Order(
            self._root.grid,
            views=self._epoch_views(epoch),
            rows=rows,
            window=window,
            shuffle=self._shuffle,
            seed=self._seed,
            epoch=epoch,
            lap=lap,
        )

    def _laps(self, epoch: int) -> list[Laps]:
        """Each stratum's rows, again and again; its windows have its share of the rows of a window."""
        whole = self._window or WINDOW_RUNS * self._root.grid.run_rows
        laps = []
        for rows, share in zip(self._strata, self._shares, strict=True):
            window = max(1, round(whole * share / sum(self._shares)))

            def order_of(lap: int, rows: NDArray[np.int64] = rows, window: int = window) -> Order:
                return self._order(epoch, rows, window, lap)

            laps.append(Laps(order_of))
        return laps

    def _courses(self, epoch: int, places: Places | None) -> tuple[list[Course], list[int]]:
        """The ways through an epoch, from its beginning or from `places`; and how far each stratum will have come."""
        if not self._strata:
            order = self._order(epoch, self._rows, self._window)
            pieces = (Piece(0, len(order)),) if places is None else places[0][0]
            course = whole_course(order, pieces, self._batch_size, self._world_size, self._drop_last)
            return [course], [len(order)]
        strata = []
        for number, laps in enumerate(self._laps(epoch)):
            begun = (((Piece(0, laps.lap_rows),), laps.lap_rows)) if places is None else places[number]
            strata.append(Stratum(laps, self._shares[number], *begun))
        return mixed_courses(strata, self._batch_size, self._world_size, self._drop_last)

    @cached_property
    def _first_courses(self) -> list[Course]:
        return self._courses(0, None)[0]

    def __len__(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        return self._first_courses[0].batches.count

    @property
    def epoch_rows(self) -> int:
        """Rows in a whole epoch of all ranks together, each view counted."""
        return sum(course.batches.total for course in self._first_courses)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, where inputs come from the store; () where they do not."""
        stored = self._samples.inputs
        return () if stored is None else stored.shape[1:]

    @property
    def window_bytes(self) -> int:
        """Bytes of the largest window (of all strata together); a stream holds at most two of them."""
        return sum(course.order.window_rows for course in self._first_courses) * self.row_bytes

    @property
    def memory_bytes(self) -> int:
        """Most bytes that an iteration holds: two windows, what reading threads decode from, and two batches.

        A thread has a piece of the file, and a run of chunks of one array as bytes of the store and once more where
        not all of its rows are wanted. Batches are as stored and, where the stream decodes, float32 logits beside
        it; what the caller keeps beyond the last one is the caller's.
        """
        classes = sum(capture.shape[2] for capture in self._captures.values()) if self.decode else 0
        widest = max(field.row_bytes for field in self._fields)
        reading = READ_THREADS * (2 * self._root.grid.run_rows * widest + PIECE_BYTES)
        batch_rows = min(self._batch_size, self.epoch_rows)
        return 2 * (self.window_bytes + batch_rows * (self.row_bytes + 4 * classes)) + reading

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a window: logits as stored, inputs, label, row, view, and its place among the turns."""
        return sum(field.row_bytes for field in self._fields) + 8

    def every(self, parts: int, first: int) -> "Stream":
        """The batches `first`, `first + parts`, … of each epoch of this stream, for one of several processes.

        Taken in turn, the batches of all of them are those of this stream, in its order.
        """
        other = copy.copy(self)
        other._every = (first, parts)
        return other

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make every iteration from now on this epoch, until it is set again.

        Where a state of this very epoch was loaded, and not gone on from yet, the next iteration is the rest of it.
        """
        epoch = whole_number("epoch", epoch, 0)
        if self._resumed and epoch == self._epoch:
            self._pinned = True
        else:
            self.begin_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        """`set_epoch`, and the whole of that epoch whatever was loaded."""
        self._pinned = True
        self._go_to(epoch)

    def _go_to(self, epoch: int) -> None:
        self._epoch, self._places, self._batches, self._resumed = epoch, None, 0, False
        self._here = None

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, between any two batches; the same on every rank that has taken as many."""
        courses, reached = self._way_from_here()
        left = [
            [[piece.start, piece.stop, piece.after] for piece in course.after(self._batches)]
            for course in courses
        ]
        return {"epoch": self._epoch, "left": left, "reached": reached, **self._order_state()}

    def _way_from_here(self) -> tuple[list[Course], list[int]]:
        """The ways through what is left of this epoch, from where the iteration under way began."""
        if self._here is None:
            self._here = self._courses(self._epoch, self._places)
        return self._here

    def _order_state(self) -> dict[str, Any]:
        """What the order of an epoch follows from: the places of a state mean nothing in another."""
        return {
            "samples": self._samples.digest,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "views": self._views,
            "num_views": self._num_views,
            "window": self._window,
            "rows": None if self._rows is None else self._selected[0],
            "strata": list(self._selected) if self._strata else [],
            "shares": list(self._shares),
        }

    @cached_property
    def _selected(self) -> list[str]:
        """What the selections of rows are known by: states are taken between batches, and there may be many rows."""
        selections = self._strata if self._rows is None else [self._rows]
        return [f"{int(digest_rows([rows])[0]):016x}" for rows in selections]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, with any batch size and any number of ranks.

        Raises ConfigError for a state of another store, seed, window, selection of rows or views.
        """
        if not isinstance(state, Mapping):
            raise _bad_state("state", "what state_dict() gives", repr(state)[:80])
        for key, value in self._order_state().items():
            if key not in state or state[key] != value:
                found = repr(state[key])[:80] if key in state else "nothing"
                raise _bad_state(key, repr(value)[:80], found)
        epoch = state.get("epoch")
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 1 << 63:
            raise _bad_state("epoch", "an epoch", repr(epoch)[:80])
        places = self._places_of(epoch, state)
        self._go_to(epoch)
        self._places = places
        self._resumed = True

    def _places_of(self, epoch: int, state: Mapping[str, Any]) -> Places:
        """What a state says is left, checked."""
        try:
            left = [[Piece(*map(int, piece)) for piece in pieces] for pieces in state["left"]]
            reached = [int(place) for place in state["reached"]]
        except (KeyError, TypeError, ValueError):
            raise _bad_state("left", "what state_dict() gives", "something else") from None
        whole = self._order(epoch, self._rows, self._window)
        orders: Sequence[Windows] = self._laps(epoch) if self._strata else [whole]
        if not len(left) == len(reached) == len(orders):
            raise _bad_state("left", f"pieces of {len(orders)} orders", f"of {len(left)}")
        for pieces, end in zip(left, reached, strict=True):
            borders = [0, *(place for piece in pieces for place in (piece.start, piece.stop)), end]
            ascending = all(a <= b for a, b in pairwise(borders))
            if not ascending or any(piece.start == piece.stop or piece.after < 0 for piece in pieces):
                raise _bad_state("left", f"pieces that go up, to {end}", repr(borders)[:80])
        if not self._strata and reached[0] != len(whole):
            raise _bad_state("reached", str(len(whole)), str(reached[0]))
        return tuple((tuple(pieces), end) for pieces, end in zip(left, reached, strict=True))

    # Reading

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch, or the rest of it where a state was loaded."""
        return self.batches(self.decode)

    def batches(self, decode: bool) -> Iterator[Batch]:
        """What iterating gives, decoded or as stored: for who decodes elsewhere, as `TorchStream` does."""
        if not self._resumed:
            self._places = self._here = None
        self._resumed, self._batches = False, 0
        courses, _ = self._way_from_here()
        ways = [course.way(self._rank) for course in courses]
        first, parts = self._every
        numbers = range(first, courses[0].batches.count, parts)
        process = os.getpid()
        threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="logitstore-read-ahead")
        readers: list[ReadAhead] = []
        try:
            for course, way, buffers in zip(courses, ways, self._memory(len(courses)), strict=True):
                portions = _portions(way, numbers)
                readers.append(ReadAhead(course.order, way.left, portions, self._fields, buffers, threads))
            for number in numbers:
                picked = self._pick([way.batch(number) for way in ways], readers)
                self._batches = number + 1
                yield self._batch(picked, decode)
        finally:
            if os.getpid() == process:  # In a fork there are no threads to wait for.
                threads.shutdown(wait=True, cancel_futures=True)
                for reader in readers:
                    reader.close()
        self._go_to(self._epoch if self._pinned else self._epoch + 1)

    def _memory(self, strata: int) -> list[Buffers]:
        """The memory of each stratum's windows, which is kept from epoch to epoch."""
        while len(self._buffers) < strata:
            self._buffers.append(Buffers(self._fields))
        return self._buffers

    @cached_property
    def _fields(self) -> list[Field]:
        """The arrays of a window."""
        int64 = np.dtype(np.int64)

        def read_rows(run: Run, out: NDArray[Any]) -> None:
            out[...] = run.rows

        def read_views(run: Run, out: NDArray[Any]) -> None:
            out[...] = run.view

        def read_labels(run: Run, out: NDArray[Any]) -> None:
            self._samples.read_labels(run.rows, out)

        fields = [
            Field("rows", int64, (), read_rows),
            Field("views", int64, (), read_views),
            Field("labels", int64, (), read_labels),
        ]
        if self._has_inputs:
            fields.append(self._inputs.field)
        for name, capture in self._captures.items():
            for array in capture.encoding.decoded_from:
                layout = capture.part.layouts[array]

                def read(
                    run: Run, out: NDArray[Any], array: str = array, capture: CaptureReader = capture
                ) -> None:
                    capture.read_stored_into(array, run.rows, run.view, out)

                fields.append(Field(f"{array}/{name}", layout.numpy_dtype, layout.row_shape, read))
        return fields

    def _pick(self, slices: Sequence[Sequence[Slice]], readers: Sequence[ReadAhead]) -> Arrays:
        """The rows of a batch: of each stratum those that its slices name."""
        count = sum(piece.stop - piece.start for pieces in slices for piece in pieces)
        picked = {field.name: field.empty(count) for field in self._fields}
        done = 0
        for reader, pieces in zip(readers, slices, strict=True):
            for piece in pieces:
                # Each piece is picked before the next window is asked for, so that only two are ever held.
                end = done + piece.stop - piece.start
                window = reader.get(piece.portion)
                window.pick(
                    piece.start, piece.stop, {name: array[done:end] for name, array in picked.items()}
                )
                done = end
        return picked

    def _batch(self, arrays: Arrays, decode: bool) -> Batch:
        """A batch from what was picked out of the windows that hold it."""
        logits = {name: self._logits(name, arrays, decode) for name in self._captures}
        scale = {} if decode else self._scale
        return Batch(arrays["rows"], arrays["views"], arrays.get("inputs"), arrays["labels"], logits, scale)

    def _logits(self, name: str, arrays: Arrays, decode: bool) -> "NDArray[Any] | TopKRows":
        """What a batch holds of a teacher."""
        capture = self._captures[name]
        stored = {array: arrays[f"{array}/{name}"] for array in capture.encoding.decoded_from}
        if decode:
            return capture.encoding.decode(stored, capture.shape[2], self.temperature)
        if capture.encoding.is_dense:
            return stored["logits"]
        return TopKRows(**stored, num_classes=capture.shape[2])

    @cached_property
    def _scale(self) -> dict[str, float]:
        """By teacher, what its stored integers are multiplied by."""
        scales = {name: capture.encoding.scale for name, capture in self._captures.items()}
        return {name: scale for name, scale in scales.items() if scale is not None}


def _portions(way: Way, numbers: Iterable[int]) -> Iterator[int]:
    """The portions that some batches of a way need, each once, in order."""
    last = -1
    for number in numbers:
        for piece in way.batch(number):
            if piece.portion != last:
                yield piece.portion
            last = piece.portion


def _bad_state(key: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"state: {key}",
        expected=expected,
        found=found,
        remedy="make the stream with the store and the arguments that the state was taken from",
    )
