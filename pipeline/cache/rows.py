"""Inputs of the next rows and their views, prepared in this process or by the workers of a DataLoader.

A worker makes the transfer set anew from the experiment, so that no object of the user's is pickled. It prepares a few rows
at a time, with all their views; the chunks are put together here.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt64
from numpy.typing import NDArray
from torch import Tensor

from ...storage.digest import digest_rows
from ...storage.errors import BadDataError, BadLogitsError, FactoryError, LogitStoreError, TransientIOError
from ...storage.stream.inputs import Augment
from ..experiment.document import Experiment
from ..factories import describe_exception
from ..transfer import TransferRows
from ..views import experiment_views

CHUNK_BYTES = 4 << 20
"""Bytes of inputs that a worker prepares at a time."""
CHUNKS_AHEAD = 2
"""Chunks that each worker prepares before they are asked for."""
ViewOf = Callable[[int], tuple[NDArray[Any], NDArray[np.uint64]]]
"""Function from a view to its inputs and their digests."""


@dataclass(frozen=True)
class Prepared:
    """Some rows of a block as the transfer set has them."""

    rows: range
    """Rows of the store."""
    inputs: Shaped[np.ndarray, "rows ..."]
    """(rows, …)."""
    labels: Int64[np.ndarray, " rows"]
    """Class of each, -1 if unknown."""
    digests: UInt64[np.ndarray, " rows"]
    """Digests of the inputs."""


def prepared_by_workers(
    experiment: Experiment, rows: TransferRows, pieces: Sequence[tuple[range, tuple[int, ...]]]
) -> Iterator[tuple[Prepared, ViewOf]]:
    """Yield the result of `prepare` for each piece, in order. pieces: rows of the store, and their views.

    Each view may be asked for once. Raises the errors of the transfer set and of the augmentation, TransientIOError if a
    worker dies.
    """
    step = max(1, CHUNK_BYTES // max(1, rows.first.nbytes))
    tasks = [
        (range(start, min(start + step, which.stop)), views)
        for which, views in pieces
        for start in range(which.start, which.stop, step)
    ]
    loader: Any = torch.utils.data.DataLoader(
        _Chunks(experiment, tasks),  # type: ignore[arg-type]  # a data set by its manner
        batch_size=None,
        num_workers=experiment.cache.workers,
        collate_fn=_as_it_is,
        prefetch_factor=CHUNKS_AHEAD,
        multiprocessing_context="forkserver",
    )
    with _naming_workers(experiment.cache.workers):
        chunks = iter(loader)
    for which, _ in pieces:
        yield _assembled(which, chunks, experiment.cache.workers)


_Chunk = dict[tuple[str, int | None], Tensor]
"""Some rows as a worker sends them, by name and view (None for the rows themselves): tensors go through shared memory."""


class _Chunks:
    """A map-style data set of chunks for the workers, each of which makes the transfer set on first use."""

    def __init__(self, experiment: Experiment, tasks: Sequence[tuple[range, tuple[int, ...]]]) -> None:
        self._experiment, self._tasks = experiment, tasks
        self._made: tuple[TransferRows, Augment | None] | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> "_Chunk | LogitStoreError":
        """Return a chunk, or the error for the main process to raise: a DataLoader would change its text."""
        try:
            if self._made is None:
                rows = TransferRows(self._experiment)
                self._made = rows, experiment_views(self._experiment, rows)
            which, views = self._tasks[index]
            prepared, view_of = prepare(self._made[0], which, self._made[1])
            arrays: dict[tuple[str, int | None], NDArray[Any]] = {
                ("inputs", None): prepared.inputs,
                ("labels", None): prepared.labels,
                ("digests", None): prepared.digests,
            }
            for view in views:
                shown, seen = view_of(view)
                if shown is not prepared.inputs:
                    arrays |= {("inputs", view): shown, ("digests", view): seen}
            return {
                key: torch.from_numpy(np.require(array, requirements=["C", "W"]))
                for key, array in arrays.items()
            }
        except LogitStoreError as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item


@contextmanager
def _naming_workers(workers: int) -> Iterator[None]:
    """Turn the death of a worker into an error of one line."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        # The memory that a dead worker shared is gone as well, which may be noticed first. An exception that a worker
        # raised itself is marked by "Caught".
        died = not isinstance(error, RuntimeError) or "exited unexpectedly" in str(error)
        if not died or "Caught " in str(error):
            raise
        raise TransientIOError(
            "transfer_set",
            expected=f"{workers} workers that prepare its inputs ([cache] workers)",
            found=f"DataLoader worker gone ({describe_exception(error)})"[:160],
            remedy="run the same command again, which goes on where it stopped; with fewer workers, where memory was short",
        ) from error


def _assembled(
    rows: range, chunks: Iterator["_Chunk | LogitStoreError"], workers: int
) -> tuple[Prepared, ViewOf]:
    """Put the chunks of a piece together. Each view may be asked for once, and is released."""
    arrays: dict[tuple[str, int | None], NDArray[Any]] = {}
    done = 0
    while done < len(rows):
        with _naming_workers(workers):
            chunk = next(chunks)
        if isinstance(chunk, LogitStoreError):
            raise chunk
        size = len(chunk["labels", None])
        for key, part in chunk.items():
            array = part.numpy()
            if key not in arrays:
                arrays[key] = np.empty((len(rows), *array.shape[1:]), array.dtype)
            whole = arrays[key]
            if (whole.dtype, whole.shape[1:]) != (array.dtype, array.shape[1:]):
                first = rows.start + done
                raise BadDataError(
                    f"transfer_set, rows {first} to {first + size - 1} of the store",
                    expected=f"inputs like the others, {whole.dtype} of shape {whole.shape[1:]}",
                    found=f"{array.dtype} of shape {array.shape[1:]}",
                    remedy="bring all inputs to one shape and dtype",
                )
            whole[done : done + size] = array
        done += size
        del chunk, part, array  # the worker's memory, before the next chunk is waited for
    inputs, labels, digests = (arrays[name, None] for name in ("inputs", "labels", "digests"))

    def view_of(view: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        if ("inputs", view) not in arrays:  # the rows as they are
            return inputs, digests
        return arrays.pop(("inputs", view)), arrays.pop(("digests", view))

    return Prepared(rows, inputs, labels, digests), view_of


def prepare(rows: TransferRows, which: range, make_view: Augment | None) -> tuple[Prepared, ViewOf]:
    """Fetch some rows, and return them with the function of their views. Raises BadDataError if the data set fails."""
    with _naming_rows(which):
        inputs, labels = rows.rows(which)
    digests = digest_rows(inputs)
    numbers = np.arange(which.start, which.stop, dtype=np.int64)

    def view_of(view: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        shown = inputs if make_view is None else make_view(inputs, view, numbers)
        # A view that is the row as it is comes back as the same array.
        return shown, digests if shown is inputs else digest_rows(shown)

    return Prepared(which, inputs, labels, digests), view_of


@contextmanager
def naming_indices(source: Int64[np.ndarray, " rows"]) -> Iterator[None]:
    """Add the index in the transfer set to an error about a row of the store, whose order differs.

    source: index in the transfer set of each row of the store.
    """
    try:
        yield
    except (BadLogitsError, FactoryError) as error:
        row = re.search(r"\brow (\d+)", error.where)
        if row is None or "transfer set" in error.where:
            raise
        where = f"{error.where[: row.end()]} (index {source[int(row[1])]} of the transfer set){error.where[row.end() :]}"
        again = type(error)(where, expected=error.expected, found=error.found, remedy=error.remedy)
        raise again from error.__cause__


@contextmanager
def _naming_rows(rows: range) -> Iterator[None]:
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
