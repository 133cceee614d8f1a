"""Copies of the next batch to the device while the current one is used.

1. `run_ahead` prepares two items of an iterator in a thread, before they are requested.
2. `Copier` sends a batch through page-locked memory to a CUDA device, on a side stream, and decodes it there. Stored
   logits are a half or a quarter of the bytes of float32.
3. `to_device` combines the two. On the CPU it needs neither copy nor thread.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import torch

from ..runtime.ahead import run_ahead
from ..runtime.device import choose_device
from .batch import TorchBatch


class Copier:
    """Copies batches to a CUDA device on a side stream, while the current stream computes."""

    def __init__(self, device: torch.device, then: Callable[[TorchBatch], TorchBatch]) -> None:
        """Set the device and `then`, a function that is applied to each batch there, on the side stream."""
        self._device, self._then = device, then
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: TorchBatch) -> tuple[TorchBatch, Any]:
        """Begin the copy, from any thread; return the batch and the event that ends the copy."""
        # A new thread uses the first GPU, which would then allocate the page-locked memory.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # The allocator does not reuse the page-locked memory before the copy has ended.
            moved = self._then(batch.pin_memory().to(self._device, non_blocking=True))
            return moved, self._stream.record_event()

    def receive(self, sent: tuple[TorchBatch, Any]) -> TorchBatch:
        """Hand the batch over to the current stream of the caller."""
        batch, arrived = sent
        current = torch.cuda.current_stream(self._device)
        current.wait_event(arrived)
        batch.record_stream(current)
        return batch


def copier_for(device: torch.device, then: Callable[[TorchBatch], TorchBatch]) -> Copier | None:
    """Return a copier that overlaps with the device's work, or None for devices without one. Raises ConfigError."""
    if device.type != "cuda":
        return None
    choose_device(str(device))  # for a message of one line if it is missing
    index = torch.cuda.current_device() if device.index is None else device.index
    return Copier(torch.device("cuda", index), then)


def to_device(
    batches: Iterable[TorchBatch],
    device: torch.device | str,
    then: Callable[[TorchBatch], TorchBatch] = lambda batch: batch,
) -> Iterator[TorchBatch]:
    """Yield batches on a device, and copy the next ones while one is used.

    batches: of a `TorchStream`, or of a `DataLoader` around one. device: for "cuda" a thread copies at most `AHEAD`
    batches in advance; other devices need no thread. then: a function that is applied to each batch on the device.
    """
    target = torch.device(device)
    copier = copier_for(target, then)
    if copier is None:
        yield from (then(batch.to(target)) for batch in batches)
        return
    with closing(run_ahead(batches, copier.send)) as sent:
        yield from map(copier.receive, sent)
