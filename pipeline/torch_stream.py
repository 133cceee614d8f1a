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

from ..storage.stream import Batch, Stream


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

    With `DataLoader(..., num_workers=n)` each worker takes its own share of the rank's rows, so that every row
    still comes once. Workers begin with what the stream is when they are started: call `set_epoch` before each
    epoch, or let them persist, and they go on to the next one by themselves. One process is usually fastest:
    reading is done by a thread that runs ahead.
    """

    def __init__(self, stream: Stream) -> None:
        """Wrap `store.stream(...)`."""
        super().__init__()
        self.stream = stream
        self._share: Stream | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.stream)

    def __iter__(self) -> Iterator[TorchBatch]:
        """The batches of one epoch."""
        worker = get_worker_info()
        if worker is None:
            return map(TorchBatch.of, self.stream)
        if self._share is None:
            # Kept, so that a worker that persists goes on to the next epoch.
            self._share = self.stream.share(worker.id, worker.num_workers)
        return map(TorchBatch.of, self._share)

    def set_epoch(self, epoch: int) -> None:
        """See `Stream.set_epoch`."""
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `Stream.state_dict`."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Stream.load_state_dict`."""
        self.stream.load_state_dict(state)
