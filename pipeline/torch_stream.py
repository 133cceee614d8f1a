"""How do batches of a store reach a torch training loop?

`TorchStream` is an `IterableDataset` whose items are whole batches, to be iterated as it is or through
`DataLoader(stream, batch_size=None)`. Tensors share memory with the arrays that were read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float16, Float32, Int64, UInt8, UInt16
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..storage.errors import ConfigError
from ..storage.batch import Batch, TopKRows
from ..storage.stream import Stream
from .decode import TopKTensors, decode_codes, decode_top_k

StoredLogits = (
    Float32[Tensor, "batch _"]
    | Float16[Tensor, "batch _"]
    | UInt8[Tensor, "batch _"]
    | UInt16[Tensor, "batch _"]
    | TopKTensors
)
"""The logits of one teacher: decoded, or in one of the forms in which they are stored."""

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
    logits: Mapping[str, StoredLogits]
    """By teacher: float32 (batch, classes), the largest of each row 0; as stored where the stream does not decode."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """By teacher, where the stream does not decode: what stored integers are to be multiplied by."""

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
            {name: _tensors(logits) for name, logits in batch.logits.items()},
            batch.scale,
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "TorchBatch":
        """The same with `function` of all but rows and views, which stay on the host."""
        logits = {
            name: z.map(function) if isinstance(z, TopKTensors) else function(z)
            for name, z in self.logits.items()
        }
        inputs = None if self.inputs is None else function(self.inputs)
        return replace(self, inputs=inputs, labels=function(self.labels), logits=logits)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TorchBatch":
        """The batch on a device; rows and views stay where they are."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TorchBatch":
        """The batch in page-locked memory; `DataLoader(..., pin_memory=True)` calls it."""
        return self._map(Tensor.pin_memory)

    def teacher_logits(self, temperature: float | None = None) -> dict[str, Float32[Tensor, "batch _"]]:
        """float32 logits by teacher, the largest of each row 0; decoded here, on the device, where they are as stored.

        temperature: the one at which the logits will be used; only top-k rows need it. Raises ConfigError without.
        """
        return {name: self._decoded(name, temperature) for name in self.logits}

    def _decoded(self, name: str, temperature: float | None) -> Tensor:
        stored = self.logits[name]
        if isinstance(stored, TopKTensors):
            if temperature is None:
                raise ConfigError(
                    f"teacher {name!r}: temperature",
                    expected="the one at which the logits will be used: top-k rows decode to others at each",
                    found="none",
                    remedy="pass temperature=…",
                )
            return decode_top_k(stored, temperature)
        return decode_codes(stored, self.scale[name]) if name in self.scale else stored.to(torch.float32)


def _tensors(stored: NDArray[Any] | TopKRows) -> StoredLogits:
    """What a batch of arrays holds of a teacher, as tensors that share its memory."""
    if isinstance(stored, TopKRows):
        index, logits, tail = map(torch.from_numpy, (stored.index, stored.logits, stored.tail))
        return TopKTensors(index, logits, tail, stored.num_classes)
    return torch.from_numpy(stored)


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
