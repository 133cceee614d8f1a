"""`TorchStream`: the batches of a store as a torch `IterableDataset`.

`TorchStream` is an `IterableDataset` whose items are whole batches, to be iterated as it is or through
`DataLoader(stream, batch_size=None)`. The stream reads what is stored; torch decodes it, on the device.

Where it is, between any two batches, is known in three ways:

- iterated in this process: `_Pass` looks one batch ahead when asked, and so tells the end of an epoch from its middle;
- with a thread that copies to a device ahead of the loop: each batch brings the stream as it was after it;
- in the workers of a DataLoader: each has a share of the batches, and a state of its own, for `StatefulDataLoader`.
"""

import copy
import multiprocessing.context
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...storage.errors import ConfigError
from ...storage.stream.stream import Stream
from ..runtime.ahead import run_ahead
from ..runtime.device import named_device
from .batch import StoredLogits, TopKTensors, TorchBatch
from .copier import copier_for

__all__ = ["MAX_WORKERS", "StoredLogits", "TopKTensors", "TorchBatch", "TorchStream"]
MAX_WORKERS = 1024
"""Most workers of one DataLoader."""
State = dict[str, Any]
_Located = tuple[TorchBatch, Stream]
"""A batch, and the stream after it: itself, or a copy where a thread has gone on with it."""


class TorchStream(IterableDataset[TorchBatch]):
    """A stream of a store as whole batches of tensors.

    Iterate it as it is: reading is done by a thread that runs ahead, and one process is usually fastest. Or put it
    into `DataLoader(stream, batch_size=None, num_workers=n)`: the n workers take its batches in turn, so that
    they come exactly as they would without workers, epoch after epoch, whether workers persist or not.

    An epoch is over once its last batch was handed out, also to a loop that counts its steps and asks for no more.
    """

    def __init__(self, stream: Stream, device: torch.device | str | None = None) -> None:
        """Wrap `store.stream(...)`.

        device: where the batches shall be, rows and views apart; the CPU by default. On "cuda" a thread copies the next
        two through page-locked memory, as they are stored, and they are decoded there while one is used.
        """
        super().__init__()
        if not isinstance(stream, Stream):
            raise ConfigError(
                "TorchStream",
                expected="a stream",
                found=type(stream).__name__,
                remedy="pass store.stream(batch_size=…)",
            )
        self.stream = stream
        self.device = None if device is None else named_device(device)
        self._pass: _Pass | None = None
        self._left: State | None = None  # where an iteration was left early
        # Seen by all workers: the epoch that was set (-1 for none), the epoch that each begins next (-1: the
        # one that it was sent with), and how many states were loaded since there are copies of this.
        self._set = torch.full((1,), -1, dtype=torch.int64).share_memory_()
        self._next = torch.full((MAX_WORKERS,), -1, dtype=torch.int64).share_memory_()
        self._loads = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._loads_then = 0
        # In a worker: its share of the batches, and a state that it is to begin with.
        self._share: _Share | None = None
        self._resume: State | None = None

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.stream)

    def __iter__(self) -> Iterator[TorchBatch]:
        """Yield the batches of one epoch, or the rest of it after a state was loaded.

        Raises ConfigError in a worker of a DataLoader that cannot give them.
        """
        worker = get_worker_info()
        return self._here() if worker is None else self._in_worker(worker.id, worker.num_workers)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is, or goes on with; to be asked between iterations."""
        return self.stream.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch as `Stream.set_epoch` does; running workers follow."""
        self.stream.set_epoch(epoch)
        self._left = None
        self._set[0] = self.stream.epoch

    def state_dict(self) -> State:
        """Return the position between two batches: see `Stream.state_dict`.

        After the last batch of an epoch that was not set it is the beginning of the next. In a worker, for
        `StatefulDataLoader`, it is where that worker is. Raises ConfigError in the main process where workers of
        a DataLoader have read the stream: they read ahead of the training, and nobody here knows how far it is.
        """
        if get_worker_info() is not None:
            return {} if self._share is None else self._share.state_dict()
        if bool((self._next >= 0).any()):
            raise ConfigError(
                "state_dict",
                expected="a stream that is iterated in this process",
                found="a stream that DataLoader workers have read",
                remedy="use num_workers=0, or torchdata's StatefulDataLoader and its state_dict",
            )
        if self._pass is not None:
            where = self._pass.where(look_ahead=int(self._set[0]) < 0)
            return self.stream.state_dict() if where is None else where
        return self.stream.state_dict() if self._left is None else self._left

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at the position of `state`: see `Stream.load_state_dict`. In a worker, a state of that worker."""
        worker = get_worker_info()
        if worker is not None:
            self._resume = _checked(state, worker.num_workers)
            return
        self.stream.load_state_dict(state)
        self._left = None
        self._next.fill_(-1)
        self._loads += 1
        self._loads_then = int(self._loads[0])
        if int(self._set[0]) >= 0:
            self._set[0] = self.stream.epoch

    # In this process

    def _here(self) -> Iterator[TorchBatch]:
        self._left = None
        current = self._pass = _Pass(self._located(), self.stream)
        try:
            yield from current
        finally:
            self._left = current.leave()
            self._pass = None

    def _located(self) -> Iterator[_Located]:
        """Yield the batches of an iteration on their device."""
        copier = None if self.device is None else copier_for(self.device, self._decode)
        if copier is None:
            for batch in self._tensors(self.stream):
                yield batch, self.stream
            return

        def stored() -> Iterator[_Located]:
            for batch in self.stream.batches(decode=False):
                yield TorchBatch.of(batch), copy.copy(self.stream)  # microseconds; a state takes longer

        def send(located: _Located) -> tuple[tuple[TorchBatch, Any], Stream]:
            return copier.send(located[0]), located[1]

        with closing(run_ahead(stored(), send)) as ahead:
            for sent, after in ahead:
                yield copier.receive(sent), after

    def _tensors(self, stream: Stream) -> Iterator[TorchBatch]:
        """Yield the batches of `stream` as tensors."""
        for batch in stream.batches(decode=False):
            tensors = TorchBatch.of(batch)
            yield self._decode(tensors if self.device is None else tensors.to(self.device))

    def _decode(self, batch: TorchBatch) -> TorchBatch:
        return batch.decoded(self.stream.temperature) if self.stream.decode else batch

    # In a worker of a DataLoader

    def _in_worker(self, worker: int, workers: int) -> Iterator[TorchBatch]:
        """Yield this worker's batches: from its own state, for the epoch that is due, or as it was sent."""
        refusal = self._refusal(workers)
        if refusal is not None:
            # Raised with the first batch: an error of `iter` ends a persistent worker, unheard.
            return _raising(refusal)
        upcoming, chosen = int(self._next[worker]), int(self._set[0])
        resume, self._resume = self._resume, None
        if resume is not None:
            share = self.stream.every(workers, first=int(resume["first"]))
            share.load_state_dict(resume["stream"])
            self._share = _Share(
                share, workers, int(resume["first"]), int(resume["next"]), bool(resume["over"])
            )
        else:
            share = self.stream.every(workers, first=worker)
            if upcoming >= 0 or chosen not in (-1, share.epoch):
                share.begin_epoch(upcoming if chosen < 0 else chosen)
            self._share = _Share(share, workers, worker, share.epoch + 1, over=False)
        self._next[worker] = self._share.next_epoch
        return self._share.batches(self._tensors)

    def _refusal(self, workers: int) -> ConfigError | None:
        """Return the error that explains why this worker cannot give batches."""
        if workers > MAX_WORKERS:
            return ConfigError(
                "num_workers",
                expected=f"at most {MAX_WORKERS}",
                found=str(workers),
                remedy="use fewer: one process with its reading thread is usually fastest",
            )
        if self.device is not None and self.device.type != "cpu":
            return ConfigError(
                f"TorchStream(device={str(self.device)!r})",
                expected="batches that are copied by the process that trains",
                found="a worker of a DataLoader",
                remedy="leave the device out, and iterate to_device(loader, device)",
            )
        if self._loads_then != int(self._loads[0]):
            return ConfigError(
                "load_state_dict",
                expected="workers that were started after the state was loaded",
                found="persistent workers, which were started before",
                remedy="make a new DataLoader",
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that is sent to workers. Raises ConfigError if the stream cannot be pickled."""
        if multiprocessing.context.get_spawning_popen() is not None:
            try:
                ForkingPickler(_Nowhere(), 5).dump(self.stream)
            except Exception as error:
                raise ConfigError(
                    "a stream for the workers of a DataLoader",
                    expected="a transfer set and an augmentation that can be pickled",
                    found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                    remedy="open files when an item is asked for, define functions at the top of a module, or use num_workers=0",
                ) from error
        return {**self.__dict__, "_pass": None, "_left": None, "_share": None, "_resume": None}


class _Pass(Iterator[TorchBatch]):
    """One iteration. Asked where it is, it takes the next batch in advance, to know whether there is one."""

    def __init__(self, batches: Iterator[_Located], stream: Stream) -> None:
        self._batches, self._after = batches, stream
        self._where: State | None = None
        self._coming: _Located | Exception | None = None
        self._over = False

    def __next__(self) -> TorchBatch:
        coming, self._coming = self._coming, None
        if isinstance(coming, Exception):
            raise coming
        if coming is None:
            try:
                coming = next(self._batches)
            except StopIteration:
                self._over = True
                raise
        self._where = None
        batch, self._after = coming
        return batch

    def where(self, look_ahead: bool = True) -> State | None:
        """Return the state after the last batch handed out, or None once the stream is in another epoch."""
        if self._coming is None and not self._over:
            if self._where is None:
                self._where = self._after.state_dict()
            if look_ahead:
                try:
                    self._coming = next(self._batches)
                except StopIteration:
                    self._over = True
                except Exception as error:  # noqa: BLE001 - of the next batch, and raised when that is asked for
                    self._coming = error
        return None if self._over else self._where

    def leave(self) -> State | None:
        """End the iteration, wherever it is: its state, None where the epoch was over."""
        where = self.where()
        del self._batches, self._coming
        return where


class _Share:
    """The batches of one worker, and where it is among them."""

    def __init__(self, stream: Stream, workers: int, first: int, next_epoch: int, over: bool) -> None:
        self._stream, self._workers = stream, workers
        self._first, self._over = first, over
        self.next_epoch = next_epoch
        """The epoch that this worker begins after this one."""

    def batches(self, tensors: Callable[[Stream], Iterator[TorchBatch]]) -> Iterator[TorchBatch]:
        if self._over:
            return
        for batch in tensors(self._stream):
            # Of the batches after this one, the others take the next; then it is this worker's turn.
            self._first = self._workers - 1
            yield batch
        self._over = True

    def state_dict(self) -> State:
        return {
            "stream": self._stream.state_dict(),
            "first": self._first,
            "workers": self._workers,
            "next": self.next_epoch,
            "over": self._over,
        }


def _checked(state: Mapping[str, Any], workers: int) -> State | None:
    """Check the state of a worker; None for one that had not begun. Raises ConfigError."""
    if not state:
        return None
    if set(state) != {"stream", "first", "workers", "next", "over"} or state["workers"] != workers:
        raise ConfigError(
            "load_state_dict in a worker of a DataLoader",
            expected=f"a state that StatefulDataLoader took with num_workers={workers}",
            found=f"a state of {state['workers']} workers"
            if "workers" in state
            else "a state of a single process",
            remedy="resume with the number of workers of the state",
        )
    return dict(state)


def _raising(error: ConfigError) -> Iterator[TorchBatch]:
    """Raise the error at the first item."""
    raise error
    yield  # unreachable, and what makes this an iterator


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes  # a large array comes as a buffer, which has no len()
