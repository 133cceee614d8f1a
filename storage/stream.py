"""How do the rows of an epoch become batches?

1. `order` says which rows come when, and which are this rank's.
2. A window of rows is read, whole runs of chunks of every array, while the window before it is consumed
   (one thread; memory is two windows, `Stream.window_bytes` each).
3. Batches are picked out of the window in memory.

Nothing forks, nothing is shared between processes, and the state is a few integers.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from .digest import digest_rows
from .errors import ConfigError, RowMismatch, SpecMismatch
from .order import Batches, Interval, Order, Run
from .part_reader import check_rows
from .reader import CaptureReader, Samples
from .store import Root

Augment = Callable[[NDArray[Any], int, NDArray[np.int64]], NDArray[Any]]
"""(inputs (rows, …), view, rows) -> the inputs of that view: what the capture showed to its teacher."""


@dataclass(frozen=True)
class TopKRows:
    """Rows of a capture of the k largest logits, as they are stored."""

    index: NDArray[Any]
    """(batch, k): the columns of the k largest, in descending order."""
    logits: NDArray[Any]
    """float16 (batch, k): those logits, minus the row's largest."""
    tail: NDArray[Any]
    """float32 (batch, 3): ln Σ exp, mean and variance of the logits that were left out."""
    num_classes: int
    """Columns of the capture."""


@dataclass(frozen=True)
class Batch:
    """Some rows, and all that is known of them."""

    rows: Int64[np.ndarray, " batch"]
    """Rows of the store."""
    views: Int64[np.ndarray, " batch"]
    """View of each row."""
    inputs: NDArray[Any] | None
    """(batch, …): the inputs as the teachers saw them; None where there are none to be had."""
    labels: Int64[np.ndarray, " batch"]
    """Class of each row, -1 where unknown."""
    logits: Mapping[str, "NDArray[Any] | TopKRows"]
    """By teacher: float32 (batch, classes), the largest of each row 0; as stored with decode=False."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """By teacher, with decode=False: what stored integers are to be multiplied by; not for floats."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class _Window:
    """A window in memory, in the order in which it was read."""

    first: int
    """Its first position in the epoch."""
    permutation: Int64[np.ndarray, " rows"]
    """Place in memory of each of its positions."""
    arrays: Mapping[str, NDArray[Any]]
    """"rows", "views", "labels", "inputs" where there are any, and "logits/<teacher>" …: rows first."""

    def pick(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Positions start…stop of the epoch, all in this window."""
        places = self.permutation[start - self.first : stop - self.first]
        return {name: array[places] for name, array in self.arrays.items()}


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
        """Plan the stream; reads metadata only. See `Store.stream` for the arguments and the errors."""
        self._root = root
        self._samples = Samples(root)
        self._captures = dict(captures)
        _check_numbers(batch_size=batch_size, world_size=world_size, window=window)
        _check_numbers(minimum=0, seed=seed)
        if seed >= 1 << 64:
            raise ConfigError(
                "seed", expected="less than 2**64", found=str(seed), remedy="choose a smaller one"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(
                "rank",
                expected=f"0 to {world_size - 1} (world_size {world_size})",
                found=str(rank),
                remedy="pass the rank of this process",
            )
        self._batch_size, self._drop_last = batch_size, drop_last
        self._rank, self._world_size = rank, world_size
        self._shuffle, self._seed, self._window = shuffle, seed, window
        if temperature is not None and not 0 < temperature < math.inf:
            raise ConfigError(
                "temperature", expected="a positive number", found=repr(temperature), remedy="pass another"
            )
        self.decode, self.temperature = decode, temperature
        if decode:
            for capture in self._captures.values():
                capture.check_temperature(temperature)
        self._rows = self._check_subset(rows)
        self._num_views = min((c.num_views for c in self._captures.values()), default=1)
        self._views = self._check_views(views)
        self._augmentation = self._common_augmentation()
        self._transfer_set, self._augment = transfer_set, augment
        self._inputs = inputs and (transfer_set is not None or self._samples.inputs is not None)
        self._check_augment()
        self._epoch = 0
        self._pinned = False
        self._intervals: tuple[Interval, ...] | None = None
        self._batches = 0
        self._resumed = False
        self._every = (0, 1)

    # What is asked for, checked

    def _check_subset(self, rows: Any) -> NDArray[np.int64] | None:
        if rows is None:
            return None
        checked = check_rows(rows, self._root.grid.num_rows)
        return np.asarray(checked, dtype=np.int64)

    def _check_views(self, views: "str | int") -> "str | int":
        valid = views in ("all", "cycle") or (isinstance(views, int) and 0 <= views < self._num_views)
        if not valid or isinstance(views, bool):
            raise ConfigError(
                "views",
                expected=f'"all", "cycle" or a view from 0 to {self._num_views - 1}',
                found=repr(views),
                remedy="choose one that every teacher of this stream was captured with",
            )
        return views

    def _common_augmentation(self) -> Mapping[str, Any] | None:
        """The augmentation of all captures. Raises SpecMismatch where they saw different inputs."""
        streamed = self._streamed_views()
        found: dict[str, Any] = {
            name: c.augmentation if any(_is_augmented(c.augmentation, view) for view in streamed) else None
            for name, c in self._captures.items()
        }
        names = list(found)
        for name in names[1:]:
            if found[name] != found[names[0]]:
                raise SpecMismatch(
                    f"{self._root.path}: teachers {names[0]!r} and {name!r}",
                    expected="captures of the same augmented inputs",
                    found=f"{found[names[0]]} and {found[name]}"[:200],
                    remedy="stream them one at a time, or capture one of them again",
                )
        augmentation: Mapping[str, Any] | None = found[names[0]] if names else None
        return augmentation

    def _is_augmented(self, view: int) -> bool:
        return _is_augmented(self._augmentation, view)

    def _streamed_views(self) -> tuple[int, ...]:
        """The views that any epoch may come to."""
        return self._epoch_views(0) if isinstance(self._views, int) else tuple(range(self._num_views))

    def _check_augment(self) -> None:
        views = self._streamed_views()
        if self._inputs and self._augment is None and any(map(self._is_augmented, views)):
            raise ConfigError(
                "augment",
                expected=f"the function that made views {[v for v in views if self._is_augmented(v)]} of the inputs",
                found="none",
                remedy="pass augment=…, or views=0, or inputs=False where you need no inputs",
            )

    # Epochs and positions

    def _epoch_views(self, epoch: int) -> tuple[int, ...]:
        if self._views == "all":
            return tuple(range(self._num_views))
        return (epoch % self._num_views,) if self._views == "cycle" else (int(self._views),)

    def _order(self, epoch: int) -> Order:
        return Order(
            self._root.grid,
            views=self._epoch_views(epoch),
            rows=self._rows,
            window=self._window,
            shuffle=self._shuffle,
            seed=self._seed,
            epoch=epoch,
        )

    def _plan(self, order: Order) -> Batches:
        intervals = ((0, len(order)),) if self._intervals is None else self._intervals
        return Batches(intervals, self._batch_size, self._world_size, self._drop_last)

    def __len__(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        return Batches(((0, len(self._order(0))),), self._batch_size, self._world_size, self._drop_last).count

    @property
    def epoch_rows(self) -> int:
        """Rows in a whole epoch of all ranks together, each view counted."""
        return len(self._order(0))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, where inputs come from the store; () where they do not."""
        stored = self._samples.inputs
        return () if stored is None else stored.shape[1:]

    @property
    def window_bytes(self) -> int:
        """Bytes of the largest window; a stream holds at most two of them."""
        return self._order(0).window_rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a window: logits as stored, inputs, label, row, view, permutation."""
        arrays = [
            c.part.layouts[name].row_bytes
            for c in self._captures.values()
            for name in c.encoding.decoded_from
        ]
        stored = self._samples.inputs
        if self._inputs and self._transfer_set is not None:
            arrays.append(self._fetch(np.zeros(1, dtype=np.int64)).nbytes)
        elif self._inputs and stored is not None:
            arrays.append(stored.dtype.itemsize * int(np.prod(stored.shape[1:])))
        return sum(arrays) + 4 * 8

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
        """Make every iteration from now on this epoch, until it is set again."""
        _check_numbers(minimum=0, epoch=epoch)
        self._pinned = True
        self._go_to(epoch)

    def _go_to(self, epoch: int) -> None:
        self._epoch, self._intervals, self._batches, self._resumed = epoch, None, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, between any two batches; the same on every rank that has taken as many."""
        order = self._order(self._epoch)
        plan = self._plan(order)
        left = [list(interval) for interval in plan.after(self._batches)]
        return {"epoch": self._epoch, "intervals": left, **self._order_state(order)}

    def _order_state(self, order: Order) -> dict[str, Any]:
        """What the order of an epoch follows from: the positions of a state mean nothing in another."""
        return {
            "samples": self._samples.digest,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "views": self._views,
            "window": self._window,
            "rows": None if self._rows is None else f"{int(digest_rows([self._rows])[0]):016x}",
            "positions": len(order),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, with any batch size and any number of ranks.

        Raises ConfigError for a state of another store, seed, window, selection of rows or views.
        """
        for key in ("epoch", "intervals"):
            if key not in state:
                raise _bad_state(key, "what state_dict() gives", "nothing")
        for key, value in self._order_state(self._order(int(state["epoch"]))).items():
            if key not in state or state[key] != value:
                found = repr(state[key]) if key in state else "nothing"
                raise _bad_state(key, repr(value), found)
        self._go_to(int(state["epoch"]))
        self._intervals = tuple((int(start), int(stop)) for start, stop in state["intervals"])
        self._resumed = True

    # Reading

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch, or the rest of it where a state was loaded."""
        return self.batches(self.decode)

    def batches(self, decode: bool) -> Iterator[Batch]:
        """What iterating gives, decoded or as stored: for who decodes elsewhere, as `TorchStream` does."""
        if not self._resumed:
            self._intervals = None
        self._resumed, self._batches = False, 0
        order = self._order(self._epoch)
        plan = self._plan(order)
        with _ReadAhead(lambda window: self._read(order, window), self._windows(order, plan)) as ahead:
            for number, pieces in self._own_batches(order, plan):
                # Each piece is picked before the next window is asked for, so that only two are ever held.
                picked = [ahead.get(window).pick(start, stop) for window, start, stop in pieces]
                self._batches = number + 1
                yield self._batch(picked, decode)
        self._go_to(self._epoch if self._pinned else self._epoch + 1)

    def _own_batches(self, order: Order, plan: Batches) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
        """The batches of this process: their number, and their positions cut at the borders of windows."""
        first, parts = self._every
        for number, intervals in enumerate(plan.of_rank(self._rank)):
            if number % parts == first:
                yield number, [piece for interval in intervals for piece in _cut_at_windows(order, interval)]

    def _windows(self, order: Order, plan: Batches) -> Iterator[int]:
        """The windows that the batches of this process lie in, each once, in order."""
        last = -1
        for _, pieces in self._own_batches(order, plan):
            for window, _, _ in pieces:
                if window != last:
                    yield window
                last = window

    def _read(self, order: Order, window: int) -> _Window:
        """A window, run by run into arrays of its size, so that no row of it is ever held twice."""
        first, stop = order.window_interval(window)
        arrays: dict[str, NDArray[Any]] = {}
        done = 0
        for run in order.runs(window):
            for name, values in self._read_run(run):
                if name not in arrays:
                    arrays[name] = np.empty((stop - first, *values.shape[1:]), values.dtype)
                arrays[name][done : done + len(run.rows)] = values
            done += len(run.rows)
        return _Window(first, order.permutation(window), arrays)

    def _read_run(self, run: Run) -> Iterator[tuple[str, NDArray[Any]]]:
        """The arrays of a run, one at a time, by their names in a window."""
        yield "rows", np.asarray(run.rows, dtype=np.int64)
        yield "views", np.full(len(run.rows), run.view, dtype=np.int64)
        yield "labels", self._samples.labels_of(run.rows)
        if self._inputs:
            yield "inputs", self._read_inputs(run.rows, run.view)
        for name, capture in self._captures.items():
            for array, values in capture.read_stored(run.rows, run.view).items():
                yield f"{array}/{name}", values

    @cached_property
    def _empty(self) -> dict[str, NDArray[Any]]:
        """The arrays of a window without rows: their names, dtypes and row shapes."""
        none = np.zeros(0, dtype=np.int64)
        empty: dict[str, NDArray[Any]] = {"rows": none, "views": none, "labels": none}
        if self._inputs:
            stored = self._samples.inputs
            empty["inputs"] = none if stored is None else np.zeros((0, *stored.shape[1:]), stored.dtype)
        for name, capture in self._captures.items():
            for array in capture.encoding.decoded_from:
                layout = capture.part.layouts[array]
                empty[f"{array}/{name}"] = np.zeros((0, *layout.row_shape), layout.numpy_dtype)
        return empty

    def _batch(self, parts: Sequence[Mapping[str, NDArray[Any]]], decode: bool) -> Batch:
        """A batch from what was picked out of the windows that hold it."""
        arrays = parts[0] if len(parts) == 1 else self._empty
        if len(parts) > 1:
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in self._empty}
        logits = {name: self._logits(name, arrays, decode) for name in self._captures}
        scale = {} if decode else self._scale
        return Batch(arrays["rows"], arrays["views"], arrays.get("inputs"), arrays["labels"], logits, scale)

    def _logits(
        self, name: str, arrays: Mapping[str, NDArray[Any]], decode: bool
    ) -> "NDArray[Any] | TopKRows":
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

    def _read_inputs(self, rows: Any, view: int) -> NDArray[Any]:
        """The inputs of a run of rows, as the teachers saw them, each checked against its digest."""
        numbers = np.asarray(rows, dtype=np.int64)
        if self._transfer_set is None:
            inputs = self._samples.reader.read("input", rows)
        else:
            inputs = self._fetch(self._samples.source[numbers])
            self._check(inputs, self._samples.reader.read("digest", rows), numbers, view=None)
        if self._is_augmented(view) and self._augment is not None:
            inputs = self._augment(inputs, view, numbers)
            first = next(iter(self._captures.values()))
            self._check(inputs, first.seen(rows, view), numbers, view=view)
        return inputs

    def _fetch(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        items = fetch_items(self._transfer_set, indices.tolist())
        return np.stack([np.asarray(item[0] if isinstance(item, tuple) else item) for item in items])

    def _check(
        self,
        inputs: NDArray[Any],
        expected: NDArray[Any],
        rows: NDArray[np.int64],
        view: int | None,
    ) -> None:
        found = digest_rows(inputs)
        bad = np.flatnonzero(found != expected)
        if len(bad):
            row = int(rows[bad[0]])
            what = "the transfer set" if view is None else f"view {view}, as `augment` makes it"
            raise RowMismatch(
                f"row {row} (index {int(self._samples.source[row])} of the transfer set)",
                expected=f"the input that the teacher saw, digest {int(expected[bad[0]]):016x}",
                found=f"{int(found[bad[0]]):016x} from {what}",
                remedy="use the transfer set and the augmentation that the store was made from",
            )


def _cut_at_windows(order: Order, interval: Interval) -> Iterator[tuple[int, int, int]]:
    """Positions cut at the borders of windows: (window, start, stop)."""
    start, stop = interval
    while start < stop:
        window = order.window_at(start)
        end = min(stop, order.window_interval(window)[1])
        yield window, start, end
        start = end


def _is_augmented(augmentation: Mapping[str, Any] | None, view: int) -> bool:
    """Whether a teacher was shown something else than the rows in this view."""
    return augmentation is not None and view >= int(augmentation.get("first_view", 0))


def fetch_items(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Items of a map-style data set, in one call where it has `__getitems__`."""
    if hasattr(dataset, "__getitems__"):
        return list(dataset.__getitems__(list(indices)))
    return [dataset[index] for index in indices]


def _check_numbers(minimum: int = 1, **numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < minimum):
            raise ConfigError(
                name,
                expected=f"an integer of at least {minimum}",
                found=repr(value),
                remedy=f"pass another {name}",
            )


def _bad_state(key: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"state: {key}",
        expected=expected,
        found=found,
        remedy="make the stream with the store and the arguments that the state was taken from",
    )


class _ReadAhead:
    """The windows of an epoch in the order in which they are asked for: one in use, the next on its way."""

    def __init__(self, read: Callable[[int], _Window], windows: Iterator[int]) -> None:
        self._read = read
        self._coming = windows
        self._number = -1
        self._window: _Window | None = None
        self._future: Future[_Window] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="logitstore-read-ahead")

    def __enter__(self) -> "_ReadAhead":
        self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        self._coming_number = next(self._coming, -1)
        if self._coming_number >= 0:
            self._future = self._thread.submit(self._read, self._coming_number)

    def get(self, number: int) -> _Window:
        """A window: the one in use, or the one after it (which lets the former go and begins the next)."""
        if number != self._number or self._window is None:
            assert self._future is not None and number == self._coming_number  # asked for in order
            self._window = None
            self._number, self._window, self._future = number, self._future.result(), None
            self._submit()
        return self._window
