"""What are the teachers shown, block by block, and how is it ready before they ask for it?

1. `Todo` is what is missing of a block; `plan_todo` lists the blocks of which something is.
2. `shown_rows` fetches the inputs of each of them once, digests them, and makes the views that are wanted of it.
3. With workers, that is done by processes that make the transfer set anew, a few rows at a time; they are put
   together here. `run_ahead` of `device_feed` puts either behind a thread.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt64
from numpy.typing import NDArray
from torch import Tensor

from ..storage.digest import digest_rows
from ..storage.errors import BadDataError, LogitStoreError, TransientIOError
from ..storage.grid import Grid
from ..storage.inputs import Augment
from .experiment import Experiment
from .factories import describe_exception
from .transfer import TransferRows
from .views import experiment_views

_CHUNK_BYTES = 4 << 20
"""Bytes of inputs that a worker prepares at a time."""
_CHUNKS_AHEAD = 2
"""Pieces that each worker prepares before they are asked for."""


@dataclass(frozen=True)
class Todo:
    """What is missing of a block."""

    block: int
    """Its number."""
    views: Mapping[int, tuple[str, ...]]
    """By view, the teachers that are still to be shown it; without the views of which nothing is missing."""


@dataclass(frozen=True)
class Prepared:
    """The rows of a block as the transfer set has them."""

    rows: range
    """Which rows of the store."""
    inputs: Shaped[np.ndarray, "rows ..."]
    """(rows, …)."""
    labels: Int64[np.ndarray, " rows"]
    """Class of each, -1 where unknown."""
    digests: UInt64[np.ndarray, " rows"]
    """Of the inputs."""


@dataclass(frozen=True)
class Shown:
    """One view of a block."""

    todo: Todo
    """What it belongs to."""
    view: int | None
    """Which; None for a block of which only the samples are missing."""
    inputs: Shaped[np.ndarray, "rows ..."]
    """What the teachers are given."""
    seen: UInt64[np.ndarray, " rows"]
    """Its digests."""
    prepared: Prepared
    """The block."""
    is_first: bool
    """Whether nothing of the block came before it."""


def plan_todo(
    grid: Grid,
    views: int,
    teachers: Sequence[str],
    has_samples: Callable[[int], bool],
    has_block: Callable[[str, int, int], bool],
) -> list[Todo]:
    """The blocks of which something is missing, in order.

    has_samples: of a block. has_block: of a teacher, a view and a block.

    >>> plan_todo(Grid(10, 4), 2, ["a", "b"], lambda block: True, lambda name, view, block: (name, block) != ("b", 1))
    [Todo(block=1, views={0: ('b',), 1: ('b',)})]
    """
    todo = []
    for block in range(grid.num_blocks):
        wanted = {
            view: tuple(name for name in teachers if not has_block(name, view, block))
            for view in range(views)
        }
        missing = {view: names for view, names in wanted.items() if names}
        if missing or not has_samples(block):
            todo.append(Todo(block, missing))
    return todo


def shown_rows(
    experiment: Experiment,
    rows: TransferRows,
    grid: Grid,
    todo: Sequence[Todo],
    make_view: Augment | None,
    check: Callable[[Prepared], None],
) -> Generator[Shown, None, None]:
    """Every view of every block that is wanted, in order; of each block at least one item.

    check: is given each block before it is shown to anyone. Raises what the transfer set or the augmentation raises.
    """
    blocks = _by_workers if experiment.cache.workers else _in_this_process
    for one, prepared, view_of in blocks(experiment, rows, grid, todo, make_view):
        check(prepared)
        for number, view in enumerate(one.views or [None]):
            if view is None:
                yield Shown(one, None, prepared.inputs, prepared.digests, prepared, True)
                continue
            inputs, seen = view_of(view)
            yield Shown(one, view, inputs, seen, prepared, number == 0)
            del inputs, seen


_ViewOf = Callable[[int], tuple[NDArray[Any], NDArray[np.uint64]]]
_Block = tuple[Todo, Prepared, _ViewOf]


@contextmanager
def _naming_rows(rows: range) -> Iterator[None]:
    """Turn what a user's own data set raises into one line that names the rows."""
    try:
        yield
    except (LogitStoreError, OSError, MemoryError):
        raise
    except Exception as error:
        raise BadDataError(
            f"transfer_set, rows {rows.start} to {rows.stop - 1} of the store",
            expected="their inputs and labels",
            found=describe_exception(error),
            remedy="mend the data set (-vv shows where), and run the same command again",
        ) from error


def _prepare(
    rows: TransferRows, which: range, make_view: Augment | None
) -> tuple[Prepared, Callable[[int], tuple[NDArray[Any], NDArray[np.uint64]]]]:
    """Some rows, and what makes a view of them."""
    with _naming_rows(which):
        inputs, labels = rows.rows(which)
    digests = digest_rows(inputs)
    numbers = np.arange(which.start, which.stop, dtype=np.int64)

    def view_of(view: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        shown = inputs if make_view is None else make_view(inputs, view, numbers)
        # A view that is the row as it is comes back as the very array.
        return shown, digests if shown is inputs else digest_rows(shown)

    return Prepared(which, inputs, labels, digests), view_of


def _in_this_process(
    experiment: Experiment, rows: TransferRows, grid: Grid, todo: Sequence[Todo], make_view: Augment | None
) -> Iterator[_Block]:
    for one in todo:
        yield (one, *_prepare(rows, grid.rows(one.block), make_view))


# Workers


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a block, as a worker sends them: tensors go through shared memory."""

    inputs: Tensor
    labels: Tensor
    digests: Tensor
    views: Mapping[int, tuple[Tensor, Tensor] | None]
    """By view: what is shown and its digests; None where it is the rows as they are."""


class _Chunks:
    """What the workers do: a map-style data set of chunks. Its transfer set is made where it is first asked."""

    def __init__(self, experiment: Experiment, tasks: Sequence[tuple[range, tuple[int, ...]]]) -> None:
        self._experiment, self._tasks = experiment, tasks
        self._made: tuple[TransferRows, Augment | None] | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> "_Chunk | LogitStoreError":
        """A chunk, or the error that is to be raised where it is waited for: sent, its text would be another."""
        try:
            if self._made is None:
                self._made = TransferRows(self._experiment), experiment_views(self._experiment)
            which, views = self._tasks[index]
            prepared, view_of = _prepare(self._made[0], which, self._made[1])
            made: dict[int, tuple[Tensor, Tensor] | None] = {}
            for view in views:
                shown, seen = view_of(view)
                made[view] = None if shown is prepared.inputs else (_tensor(shown), _tensor(seen))
            return _Chunk(_tensor(prepared.inputs), _tensor(prepared.labels), _tensor(prepared.digests), made)
        except LogitStoreError as error:
            return error


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _as_it_is(item: Any) -> Any:
    return item


def _by_workers(
    experiment: Experiment, rows: TransferRows, grid: Grid, todo: Sequence[Todo], make_view: Augment | None
) -> Iterator[_Block]:
    step = max(1, _CHUNK_BYTES // max(1, rows.first.nbytes))
    tasks, counts = [], []
    for one in todo:
        block = grid.rows(one.block)
        starts = range(block.start, block.stop, step)
        tasks += [(range(start, min(start + step, block.stop)), tuple(one.views)) for start in starts]
        counts.append(len(starts))
    loader: Any = torch.utils.data.DataLoader(
        _Chunks(experiment, tasks),  # type: ignore[arg-type]  # a data set by its manner
        batch_size=None,
        num_workers=experiment.cache.workers,
        collate_fn=_as_it_is,
        prefetch_factor=_CHUNKS_AHEAD,
        multiprocessing_context="forkserver",
    )
    with _naming_workers(experiment.cache.workers):
        chunks = iter(loader)
    for one, count in zip(todo, counts, strict=True):
        whole = _Gathered(grid.rows(one.block))
        for _ in range(count):
            with _naming_workers(experiment.cache.workers):
                chunk = next(chunks)
            if isinstance(chunk, LogitStoreError):
                raise chunk
            whole.add(chunk)
            del chunk
        yield (one, whole.prepared(), whole.view)
        del whole


@contextmanager
def _naming_workers(workers: int) -> Iterator[None]:
    """Turn the end of a worker into one line."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        # What was sent by a worker that is gone cannot be had from it: that is then noticed first. What a worker
        # raised says so, and is none of its end.
        of_its_end = not isinstance(error, RuntimeError) or "exited unexpectedly" in str(error)
        if not of_its_end or "Caught " in str(error):
            raise
        raise TransientIOError(
            "transfer_set",
            expected=f"{workers} workers that prepare its inputs ([cache] workers)",
            found=f"DataLoader worker gone ({describe_exception(error)})"[:160],
            remedy="run the same command again, which goes on where it stopped; with fewer workers, where memory was short",
        ) from error


class _Gathered:
    """The chunks of a block, put together."""

    def __init__(self, rows: range) -> None:
        self._rows = rows
        self._done = 0
        self._arrays: dict[Any, NDArray[Any]] = {}
        self._plain: set[int] = set()

    def add(self, chunk: _Chunk) -> None:
        """Append a chunk."""
        size = len(chunk.labels)
        parts: dict[Any, Tensor] = {
            "inputs": chunk.inputs,
            "labels": chunk.labels,
            "digests": chunk.digests,
        }
        for view, made in chunk.views.items():
            if made is None:
                self._plain.add(view)
            else:
                parts["inputs", view], parts["digests", view] = made
        for key, part in parts.items():
            array = part.numpy()
            if key not in self._arrays:
                self._arrays[key] = np.empty((len(self._rows), *array.shape[1:]), array.dtype)
            whole = self._arrays[key]
            if (whole.dtype, whole.shape[1:]) != (array.dtype, array.shape[1:]):
                first = self._rows.start + self._done
                raise BadDataError(
                    f"transfer_set, rows {first} to {first + size - 1} of the store",
                    expected=f"inputs like the others, {whole.dtype} of shape {whole.shape[1:]}",
                    found=f"{array.dtype} of shape {array.shape[1:]}",
                    remedy="bring all inputs to one shape and dtype",
                )
            whole[self._done : self._done + size] = array
        self._done += size

    def prepared(self) -> Prepared:
        """The block."""
        return Prepared(self._rows, self._arrays["inputs"], self._arrays["labels"], self._arrays["digests"])

    def view(self, view: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """What is shown of a view, and its digests; each may be asked for once."""
        if view in self._plain:
            return self._arrays["inputs"], self._arrays["digests"]
        return self._arrays.pop(("inputs", view)), self._arrays.pop(("digests", view))
