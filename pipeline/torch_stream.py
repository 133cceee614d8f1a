"""How do batches of a store reach a torch training loop?

`TorchStream` is an `IterableDataset` whose items are whole batches, to be iterated as it is or through
`DataLoader(stream, batch_size=None)`. Tensors share memory with the arrays that were read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..storage.errors import ConfigError
from ..storage.stream import Batch, Stream

MAX_WORKERS = 1024
"""Most workers of one DataLoader."""


@dataclass(frozen=True)
class TorchBatch:
    """Some rows, and all that is known of them, as tensors."""

    rows: Int64[Tensor, " batch"]
    """Rows of the store."""
    views: Int64[Tensor, " batch"]
    """View of each row."""
    inputs: Tensor | None
    """(batch, …): the inputs as the teachers saw them; None where there are none to be had."""
    labels: Int64[Tensor, " batch"]
    """Class of each row, -1 where unknown."""
    logits: Mapping[str, Float32[Tensor, "batch classes"]]
    """By teacher, the largest of each row 0."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, batch: Batch) -> "TorchBatch":
        """The tensors of a batch of arrays."""
        return cls(
            torch.from_numpy(batch.rows),
            torch.from_numpy(batch.views),
            None if batch.inputs is None else torch.from_numpy(batch.inputs),
            torch.from_numpy(batch.labels),
            {name: torch.from_numpy(logits) for name, logits in batch.logits.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TorchBatch":
        """The batch on a device; rows and views stay where they are."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return TorchBatch(
            self.rows,
            self.views,
            None if self.inputs is None else move(self.inputs),
            move(self.labels),
            {name: move(logits) for name, logits in self.logits.items()},
        )

    def pin_memory(self) -> "TorchBatch":
        """The batch in page-locked memory; `DataLoader(..., pin_memory=True)` calls it."""
        inputs = None if self.inputs is None else self.inputs.pin_memory()
        logits = {name: logits.pin_memory() for name, logits in self.logits.items()}
        return TorchBatch(self.rows, self.views, inputs, self.labels.pin_memory(), logits)


class TorchStream(IterableDataset[TorchBatch]):
    """A stream of a store as whole batches of tensors.

    Iterate it as it is: reading is done by a thread that runs ahead, and one process is usually fastest. Or put it
    into `DataLoader(stream, batch_size=None, num_workers=n)`: the n workers take its batches in turn, so that
    they come exactly as they would without workers, epoch after epoch, whether workers persist or not.
    """

    def __init__(self, stream: Stream) -> None:
        """Wrap `store.stream(...)`."""
        super().__init__()
        self.stream = stream
        # Seen by all workers: the epoch that was set (-1 for none), and how many epochs each has begun.
        self._set = torch.full((1,), -1, dtype=torch.int64).share_memory_()
        self._begun = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.stream)

    def __iter__(self) -> Iterator[TorchBatch]:
        """The batches of one epoch. Raises ConfigError for more workers than `MAX_WORKERS`."""
        worker = get_worker_info()
        if worker is None:
            return map(TorchBatch.of, self.stream)
        if worker.num_workers > MAX_WORKERS:
            raise ConfigError(
                "num_workers",
                expected=f"at most {MAX_WORKERS}",
                found=str(worker.num_workers),
                remedy="use fewer: one process with its reading thread is usually fastest",
            )
        share = self.stream.every(worker.num_workers, first=worker.id)
        begun, chosen = int(self._begun[worker.id]), int(self._set[0])
        self._begun[worker.id] += 1
        if chosen >= 0:
            share.set_epoch(chosen)
        elif begun:
            share.set_epoch(self.stream.epoch + begun)
        return map(TorchBatch.of, share)

    def set_epoch(self, epoch: int) -> None:
        """See `Stream.set_epoch`; workers that are running hear of it too."""
        self.stream.set_epoch(epoch)
        self._set[0] = epoch

    def state_dict(self) -> dict[str, Any]:
        """See `Stream.state_dict`. Raises ConfigError where workers of a DataLoader have read the stream.

        They read ahead of the training, and this process does not know how far it has come.
        """
        if self._begun.any():
            raise ConfigError(
                "state_dict",
                expected="a stream that is iterated in this process",
                found="one that workers of a DataLoader have read",
                remedy="iterate it with num_workers=0 where the training is to be resumed",
            )
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Stream.load_state_dict`."""
        self.stream.load_state_dict(state)
