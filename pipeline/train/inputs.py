"""Worker processes that decode and augment the inputs of a student's batches (`train.workers`).

    this process     rows, logits and labels of the next batches; hands each chunk of rows to an idle worker
    worker           makes the transfer set and the views anew from the experiment; fetches, augments, compares digests
    pipe             the chunk's rows there, its inputs back, straight into the memory of the batch

A batch has the bits that it has without workers: the rows of a batch are settled before a worker is asked.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.api import Store
from ...storage.errors import LogitStoreError
from ...storage.parts.reader import Samples
from ...storage.stream.making import InputMaker, Wanted, check_form
from ...storage.stream.row_numbers import numbered_from, starts_of
from ...storage.stream.stream import Stream
from ..augment import OtherRows
from ..datasets.bad_files import known_files, take_known
from ..experiment.document import Experiment
from ..experiment.tables import TransferSet
from ..runtime.workers import Worker, end_all, refusing_unpicklable, send_array
from ..same_set import stored_set
from ..transfer import TransferRows
from ..views import RowsOfStore, experiment_views, mixes_rows

log = logging.getLogger(__name__)
CHUNK_BYTES: Final = 4 << 20
"""Bytes of inputs that a worker makes at a time, or of stored inputs that it is sent."""
_CHUNKS_AHEAD: Final = 2
"""Chunks of each worker that are begun before their batch is needed."""


@contextlib.contextmanager
def with_workers(
    stream: Stream, number: int, experiment: Experiment, store: Store, where: str
) -> Iterator[Stream]:
    """Yield a stream whose inputs worker processes make, where there is anything to make; the stream itself for 0 workers.

    where: the training, in messages.
    """
    if number and not stream.makes_inputs:
        log.info("%s: workers have nothing to do, as the store keeps the inputs that it is shown", where)
    if not number or not stream.makes_inputs:
        yield stream
        return
    with contextlib.closing(InputWorkers(stream, number, experiment, store, where)) as workers:
        yield stream.made_by(workers)


class InputWorkers:
    """Processes that make inputs, started when the first are asked for: a `storage.stream.making.Makers`."""

    def __init__(self, stream: Stream, number: int, experiment: Experiment, store: Store, where: str) -> None:
        """Start no process yet. where: the training, in messages."""
        self._number, self._where = number, where
        self._keeps_set = store.samples.inputs is None
        self._sent = _sent(stored_set(experiment, store), keeps_set=self._keeps_set)
        is_needed = not self._keeps_set and mixes_rows(stream.augment)
        self._samples = (store.num_rows, store.samples) if is_needed else None
        self._starts = starts_of(stream.augment)
        self._workers: list[Worker] = []
        self._idle = SimpleQueue[Worker]()
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="logitstore-inputs")
        self._starting, self._is_closed = threading.Lock(), False

    def batches_ahead(self, batch_bytes: int) -> int:
        """Return how many batches are begun before the first of them is needed."""
        chunks = -(-max(1, batch_bytes) // CHUNK_BYTES)
        return 1 + -(-_CHUNKS_AHEAD * self._number // chunks)

    def begin(self, wanted: Wanted, out: NDArray[Any]) -> Sequence[Future[None]]:
        """Begin to make inputs into an array, in chunks. Raises ConfigError for things in hand that cannot be pickled."""
        self._start()
        given = 0 if wanted.stored is None else wanted.stored[0].nbytes
        step = max(1, CHUNK_BYTES // max(1, out[0].nbytes, given))
        return [
            self._threads.submit(self._make, wanted.part(start, start + step), out[start : start + step])
            for start in range(0, len(out), step)
        ]

    def close(self) -> None:
        """End the processes, and the threads that wait for them; a thread that reads ahead starts no new ones."""
        with self._starting:
            self._is_closed = True
        for worker in self._workers:
            worker.process.kill()  # it holds nothing that could be lost
        # Each thread finds the end of its pipe, before the pipe is closed.
        self._threads.shutdown(wait=True, cancel_futures=True)
        end_all(self._workers)

    def _start(self) -> None:
        expected = f"{self._number} workers that make its inputs (train.workers)"
        with self._starting, refusing_unpicklable(self._sent.transfer_set, self._sent.cache.augment):
            while len(self._workers) < self._number and not self._is_closed:
                worker = Worker(
                    self._where,
                    expected,
                    _serve,
                    self._sent,
                    self._keeps_set,
                    self._samples,
                    self._starts,
                    known_files(),
                )
                self._workers.append(worker)
                self._idle.put(worker)

    def _make(self, wanted: Wanted, out: NDArray[Any]) -> None:
        """Send some rows to a worker, and receive their inputs. Raises its error, and TransientIOError for one that has ended."""
        worker = self._idle.get()
        try:
            try:
                worker.connection.send((wanted, out.dtype, out.shape[1:]))
            except OSError as error:
                raise worker.gone() from error
            answer = worker.receive()
            if isinstance(answer, Exception):
                raise answer
            worker.receive_into(out)
        finally:
            self._idle.put(worker)  # also one that has ended: the next chunk raises the same error


def _sent(experiment: Experiment, *, keeps_set: bool) -> Experiment:
    """Return an experiment without the things in hand that no worker needs."""
    changes: dict[str, Any] = {"evaluation_set": None, "students": ()}
    if not keeps_set:
        bare: TransferSet = experiment.transfer_set.model_copy()
        bare._in_hand = None
        changes["transfer_set"] = bare
    return experiment.model_copy(update=changes)


def _serve(
    connection: Connection,
    experiment: Experiment,
    reads_set: bool,
    samples: tuple[int, Samples] | None,
    starts: NDArray[np.int64] | None,
    known: dict[str, dict[str, str]],
) -> None:
    """Make the inputs that the parent asks for, and send each chunk, or the error in its place.

    reads_set: whether inputs come from the transfer set. samples: rows of a store and their inputs, for mixtures of them.
    starts: the first row of each source of a store that was concatenated (`starts_of`).
    known: files that the parent left out of its sets (`datasets.bad_files`).
    """
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent needs no more
        maker: InputMaker | None = None
        while True:
            wanted, dtype, shape = connection.recv()
            try:
                if maker is None:
                    take_known(known)
                    maker = _maker(experiment, reads_set, samples, starts)
                made = maker.make(wanted)
                check_form(made, wanted, dtype, shape)
            except (LogitStoreError, OSError, MemoryError) as error:
                connection.send(error)
                continue
            connection.send(None)
            send_array(connection, made if made.flags.c_contiguous else made.copy(order="C"))


def _maker(
    experiment: Experiment,
    reads_set: bool,
    samples: tuple[int, Samples] | None,
    starts: NDArray[np.int64] | None,
) -> InputMaker:
    """Make the transfer set and the views of an experiment. Raises FactoryError, BadDataError or ConfigError."""
    rows = TransferRows(experiment) if reads_set else None
    others: OtherRows | None = rows if samples is None else RowsOfStore(*samples, None)
    make_view = numbered_from(experiment_views(experiment, others, made_twice=False), starts)
    return InputMaker(None if rows is None else rows.dataset, make_view)
