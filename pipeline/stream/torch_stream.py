"""`TorchStream`: the batches of a store as a torch `IterableDataset`.

The items of a `TorchStream` are whole batches. Iterate it directly or through `DataLoader(stream, batch_size=None)`. The
stream reads the stored logits; torch decodes them on the device.

The position between two batches is known in three ways:

- In this process, the stream counts the batches that the loop has.
- So it does where a thread reads and copies ahead of the loop: reading moves no position.
- In the workers of a DataLoader, each worker has a share of the batches and its own state, for `StatefulDataLoader`.
"""

import multiprocessing.context
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...storage.errors import ConfigError, described
from ...storage.stream.forgotten_ranks import warn_of_forgotten_ranks
from ...storage.stream.stream import Iteration, Stream
from ..runtime.ahead import run_ahead
from ..runtime.device import named_device
from ..runtime.workers import watch_parent
from .batch import StoredLogits, TopKTensors, TorchBatch
from .copier import copier_for

__all__ = ["MAX_WORKERS", "StoredLogits", "TopKTensors", "TorchBatch", "TorchStream"]
MAX_WORKERS = 1024
"""Maximum number of workers of one DataLoader."""
State = dict[str, Any]


class TorchStream(IterableDataset[TorchBatch]):
    """A stream of a store as whole batches of tensors.

    Iterate it directly: a thread reads ahead, and one process is usually fastest. Or pass it to
    `DataLoader(stream, batch_size=None, num_workers=n)`: the n workers take its batches in turn, so the batches are the
    same as without workers, in every epoch, with persistent workers or without.

    An epoch ends with its last batch, even if a loop that counts its steps never reaches `StopIteration`.
    """

    def __init__(self, stream: Stream, device: torch.device | str | None = None) -> None:
        """Wrap `store.stream(...)`.

        device: of the batches, except their rows and views; the CPU by default. For "cuda" a thread copies the next two
        through page-locked memory, as stored, and decodes them on the device.
        """
        super().__init__()
        if not isinstance(stream, Stream):
            raise ConfigError(
                "TorchStream",
                expected="a stream",
                found=type(stream).__name__,
                remedy="pass store.stream(batch_size=…)",
            )
        distributed = torch.distributed
        if stream.reads_every_row and distributed.is_available() and distributed.is_initialized():
            warn_of_forgotten_ranks(distributed.get_world_size())
        self.stream = stream
        self.device = None if device is None else named_device(device)
        # Shared with all workers: the epoch that was set (-1 for none), the next epoch of each worker (-1 for the one
        # that it was started with), and the number of loaded states.
        self._set = torch.full((1,), -1, dtype=torch.int64).share_memory_()
        self._next = torch.full((MAX_WORKERS,), -1, dtype=torch.int64).share_memory_()
        self._loads = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._loads_then = 0
        # In a worker: its share of the batches, and the state that its next iteration resumes from.
        self._share: _Share | None = None
        self._resume: State | None = None

    def __repr__(self) -> str:
        place = "" if self.device is None else f" on {self.device}"
        return f"<TorchStream{place} of {self.stream!r}>"

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.stream)

    def __iter__(self) -> Iterator[TorchBatch]:
        """Yield the batches of one epoch, or the rest of it after a state was loaded.

        Raises ConfigError in a worker of a DataLoader that cannot read them.
        """
        worker = get_worker_info()
        if worker is None:
            return self._here()
        watch_parent()
        return self._in_worker(worker.id, worker.num_workers)

    @property
    def epoch(self) -> int:
        """Epoch of the next iteration, begun or resumed; only valid between iterations."""
        return self.stream.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch as `Stream.set_epoch` does; running workers follow."""
        self.stream.set_epoch(epoch)
        self._set[0] = self.stream.epoch

    def state_dict(self) -> State:
        """Return the position between two batches: see `Stream.state_dict`.

        After the last batch of an epoch that was not set, it is the beginning of the next epoch. In a worker, for
        `StatefulDataLoader`, it is the position of that worker. Raises ConfigError in the main process after workers of a
        DataLoader have read the stream: they read ahead of the training, whose position is unknown here.
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
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at the position of `state`: see `Stream.load_state_dict`; in a worker, a state of that worker."""
        worker = get_worker_info()
        if worker is not None:
            self._resume = _checked(state, worker.num_workers, self.stream.cut)
            return
        self.stream.load_state_dict(state)
        self._next.fill_(-1)
        self._loads += 1
        self._loads_then = int(self._loads[0])
        if int(self._set[0]) >= 0:
            self._set[0] = self.stream.epoch

    # In this process

    def _here(self) -> Iterator[TorchBatch]:
        iteration = self.stream.begin()
        with self.stream.going_on(iteration), closing(self._on_device(iteration)) as batches:
            for batch in batches:
                self.stream.hand_out(iteration)
                yield batch
        self.stream.end(iteration)

    def _on_device(self, iteration: Iteration) -> Generator[TorchBatch, None, None]:
        """Yield the batches of an iteration on their device; the position of the stream stays."""

        def stored() -> Iterator[TorchBatch]:
            with closing(self.stream.read(iteration, decode=False)) as batches:
                yield from map(TorchBatch.of, batches)

        copier = None if self.device is None else copier_for(self.device, self._decode)
        if copier is None:
            yield from map(self._converted, stored())
            return
        with closing(run_ahead(stored(), copier.send)) as ahead:
            yield from map(copier.receive, ahead)

    def _tensors(self, stream: Stream) -> Iterator[TorchBatch]:
        """Return the batches of `stream` as tensors."""
        return map(self._converted, map(TorchBatch.of, stream.batches(decode=False)))

    def _converted(self, batch: TorchBatch) -> TorchBatch:
        return self._decode(batch if self.device is None else batch.to(self.device))

    def _decode(self, batch: TorchBatch) -> TorchBatch:
        return batch.decoded(self.stream.temperature) if self.stream.decode else batch

    # In a worker of a DataLoader

    def _in_worker(self, worker: int, workers: int) -> Iterator[TorchBatch]:
        """Yield this worker's batches: from a loaded state, of the epoch that was set, or of the next epoch."""
        if (refusal := self._refusal(workers)) is not None:
            # Raised with the first batch: an error of `iter` ends a persistent worker without a message.
            return _raising(refusal)
        resume, self._resume = self._resume, None
        first = worker if resume is None else int(resume["first"])
        share = self.stream.every(workers, first=first)
        if resume is not None:
            share.load_state_dict(resume["stream"])
            self._share = _Share(share, workers, first, int(resume["next"]), bool(resume["over"]))
        else:
            upcoming, chosen = int(self._next[worker]), int(self._set[0])
            if upcoming >= 0 or chosen not in (-1, share.epoch):
                share.begin_epoch(upcoming if chosen < 0 else chosen)
            self._share = _Share(share, workers, first, share.epoch + 1)
        self._next[worker] = self._share.next_epoch
        return self._share.batches(self._tensors)

    def _refusal(self, workers: int) -> ConfigError | None:
        """Return the error of a worker that cannot read batches, or None."""
        if workers > MAX_WORKERS:
            return ConfigError(
                "num_workers",
                expected=f"at most {MAX_WORKERS}",
                found=str(workers),
                remedy="lower num_workers; 0 is usually fastest",
            )
        if self.device is not None and self.device.type != "cpu":
            return ConfigError(
                f"TorchStream(device={str(self.device)!r})",
                expected="device=None in a worker of a DataLoader",
                found=f"device={str(self.device)!r}",
                remedy="remove the device, and iterate to_device(loader, device)",
            )
        if self._loads_then != int(self._loads[0]):
            return ConfigError(
                "load_state_dict",
                expected="workers that were started after the state was loaded",
                found="persistent workers that were started before",
                remedy="make a new DataLoader",
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes that workers receive. Raises ConfigError if the stream cannot be pickled."""
        if multiprocessing.context.get_spawning_popen() is not None:
            try:
                ForkingPickler(_Nowhere(), 5).dump(self.stream)
            except Exception as error:
                raise ConfigError(
                    "a stream for the workers of a DataLoader",
                    expected="a transfer set and an augmentation that can be pickled",
                    found=described(error),
                    remedy="open files in `__getitem__`, define functions at the top of a module, or use num_workers=0",
                ) from error
        return {**self.__dict__, "_share": None, "_resume": None}


@dataclass
class _Share:
    """The batches of one worker, and its position among them."""

    stream: Stream
    workers: int
    first: int
    """Batches of the stream before the next one of this worker."""
    next_epoch: int
    """The epoch that this worker begins after this one."""
    over: bool = False

    def batches(self, tensors: Callable[[Stream], Iterator[TorchBatch]]) -> Iterator[TorchBatch]:
        if self.over:
            return
        for batch in tensors(self.stream):
            self.first = (
                self.workers - 1
            )  # each of the other workers takes one batch before the next of this one
            yield batch
        self.over = True

    def state_dict(self) -> State:
        return {
            "stream": self.stream.state_dict(),
            "first": self.first,
            "workers": self.workers,
            "cut": self.stream.cut,
            "next": self.next_epoch,
            "over": self.over,
        }


def _checked(state: Mapping[str, Any], workers: int, cut: Mapping[str, int]) -> State | None:
    """Check the state of a worker; return None for one that had not begun. Raises ConfigError.

    cut: that of the stream. Each worker knows the rows of its own share alone, so that the batches must be cut as before.
    """
    if not state:
        return None
    before = state.get("cut")
    for key, value in cut.items():
        if isinstance(before, Mapping) and before.get(key) != value:
            raise ConfigError(
                f"load_state_dict in a worker of a DataLoader: {key}",
                expected=f"{before.get(key)}, with which the state was saved",
                found=str(value),
                remedy=f"resume with the {key} of the state, or read with num_workers=0, which resumes with any",
            )
    if set(state) != {"stream", "first", "workers", "cut", "next", "over"} or state["workers"] != workers:
        raise ConfigError(
            "load_state_dict in a worker of a DataLoader",
            expected=f"a state of StatefulDataLoader with num_workers={workers}",
            found=f"a state with num_workers={state.get('workers', 0)}",
            remedy="resume with the num_workers of the state",
        )
    return dict(state)


def _raising(error: ConfigError) -> Iterator[TorchBatch]:
    """Raise the error at the first item."""
    raise error
    yield  # unreachable, but makes this function a generator


class _Nowhere:
    """A file that discards its content."""

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes  # pickle writes large arrays as buffers without len()
