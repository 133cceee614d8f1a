"""Inputs of the next rows and their views, prepared in this process or by workers.

A worker makes the transfer set anew from the experiment, so that no object of the user's is pickled; only a set in hand is. It
prepares a few rows at a time, with all their views; the chunks are put together here.
"""

import itertools
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt64
from numpy.typing import NDArray

from ...storage.digest import digest_rows
from ...storage.errors import BadDataError, BadLogitsError, FactoryError, LogitStoreError
from ...storage.format.documents import canonical_json, sha256_hex
from ...storage.stream.inputs import Augment
from ...storage.stream.row_numbers import numbered_from, starts_of
from ..datasets.bad_files import known_files, take_known
from ..experiment.document import Experiment
from ..factories.call import describe_exception
from ..runtime.ahead import run_ahead
from ..runtime.workers import Worker, end_all, refusing_unpicklable, send_array
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
    experiment: Experiment,
    rows: TransferRows,
    pieces: Sequence[tuple[range, tuple[int, ...]]],
    make_view: Augment | None,
) -> Generator[tuple[Prepared, ViewOf], None, None]:
    """Yield the result of `prepare` for each piece, in order. pieces: rows of the store, and their views. make_view: the function
    of the views, which workers make anew and give the same numbers.

    Each view may be asked for once. Closing the generator ends the workers. Raises the errors of the transfer set and of the
    augmentation, TransientIOError if a worker dies or is silent.
    """
    step = max(1, CHUNK_BYTES // max(1, rows.first.nbytes))
    tasks = [
        (range(start, min(start + step, which.stop)), views)
        for which, views in pieces
        for start in range(which.start, which.stop, step)
    ]
    number = min(experiment.cache.workers, len(tasks))
    expected = f"{number} workers that prepare its inputs ([cache] workers)"
    workers: list[Worker] = []
    numbers = rows.source if rows.is_joined else None, starts_of(make_view)
    try:
        for first in range(number):  # each has every number-th chunk
            mine = tasks[first::number]
            with refusing_unpicklable(experiment.transfer_set, experiment.cache.augment):
                workers.append(
                    Worker("transfer_set", expected, _send_chunks, experiment, mine, known_files(), numbers)
                )
        turns = itertools.cycle(workers)
        for which, _ in pieces:
            yield _assembled(which, turns)
    finally:
        end_all(workers)


_Key = tuple[str, int | None]
"""Name of an array of a chunk, and its view; None for the rows themselves."""


def _send_chunks(
    connection: Connection,
    experiment: Experiment,
    tasks: Sequence[tuple[range, tuple[int, ...]]],
    known: Mapping[str, dict[str, str]],
    numbers: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None],
) -> None:
    """Prepare chunks in a worker, and send each as a list of its arrays and their bytes, or the error that ends it.

    known: files that the first process left out of its sets (`datasets.bad_files`). numbers: in a store that was concatenated,
    the index in the transfer set of each row, and the first row of each source (`starts_of`).
    """
    try:
        take_known(known)
        rows, (source, starts) = TransferRows(experiment), numbers
        if source is not None:
            rows.source = source
        make_view = numbered_from(experiment_views(experiment, rows), starts)
        with closing(run_ahead(tasks, lambda task: _chunk(rows, *task, make_view), CHUNKS_AHEAD)) as chunks:
            for chunk in chunks:
                connection.send([(key, array.dtype.str, array.shape) for key, array in chunk.items()])
                for array in chunk.values():
                    send_array(connection, array)
    except BrokenPipeError:
        pass  # nobody asks for more
    except (LogitStoreError, OSError, MemoryError) as error:
        connection.send(error)


def _chunk(
    rows: TransferRows, which: range, views: tuple[int, ...], make_view: Augment | None
) -> dict[_Key, NDArray[Any]]:
    """Prepare some rows and their views. A view that is the row as it is has no arrays of its own."""
    prepared, view_of = prepare(rows, which, make_view)
    arrays: dict[_Key, NDArray[Any]] = {
        ("inputs", None): prepared.inputs,
        ("labels", None): prepared.labels,
        ("digests", None): prepared.digests,
    }
    for view in views:
        shown, seen = view_of(view)
        if shown is not prepared.inputs:
            arrays |= {("inputs", view): shown, ("digests", view): seen}
    return {key: np.ascontiguousarray(array) for key, array in arrays.items()}


def _assembled(rows: range, workers: Iterator[Worker]) -> tuple[Prepared, ViewOf]:
    """Put the chunks of a piece together. Each view may be asked for once, and is released."""
    arrays: dict[_Key, NDArray[Any]] = {}
    done = size = 0
    while done < len(rows):
        worker = next(workers)
        chunk = worker.receive()
        if isinstance(chunk, Exception):
            raise chunk
        for key, dtype, shape in chunk:
            size = shape[0]
            if key not in arrays:
                arrays[key] = np.empty((len(rows), *shape[1:]), dtype)
            whole = arrays[key]
            if (whole.dtype, whole.shape[1:]) != (np.dtype(dtype), shape[1:]):
                first = rows.start + done
                raise BadDataError(
                    f"transfer_set, rows {first} to {first + size - 1} of the store",
                    expected=f"inputs like the others, {whole.dtype} of shape {whole.shape[1:]}",
                    found=f"{np.dtype(dtype)} of shape {shape[1:]}",
                    remedy="bring all inputs to one shape and dtype",
                )
            worker.receive_into(whole[done : done + size])
        done += size
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


def set_sample(rows: TransferRows) -> dict[str, Any]:
    """Describe a transfer set for the comparison of ranks: sizes, order, class names, and its content.

    Of a set without a fingerprint, the part that is read to compare it is digested (`Examples.looked`).
    """
    content = rows.fingerprint or rows.digest(rows.looked)
    names = [rows.class_names, None if rows.ids is None else list(rows.ids)]
    return {
        **rows.identity,
        "rows": len(rows),
        "classes": rows.num_classes,
        "content": content,
        "names": sha256_hex(canonical_json({"names": names})),
    }


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
