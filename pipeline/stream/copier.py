"""Copies of the next batch to the device while the current one is used.

1. `run_ahead`: a thread takes items from an iterator and prepares them, two before they are asked for.
2. `Copier`: a batch goes through page-locked memory to a CUDA device, on a side stream, and is decoded there: stored
   bytes cross the bus, a half or a quarter of float32's.
3. `to_device`: both together. For the CPU there is nothing to copy, and so no thread.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import torch

from ..runtime.ahead import run_ahead
from ..runtime.device import choose_device
from .batch import TorchBatch


class Copier:
    """Copies batches to a CUDA device by a stream of its own, while the current stream computes."""

    def __init__(self, device: torch.device, then: Callable[[TorchBatch], TorchBatch]) -> None:
        """Set the device and `then`, a function applied to a batch on the device, on the same stream."""
        self._device, self._then = device, then
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: TorchBatch) -> tuple[TorchBatch, Any]:
        """Begin the copy; the batch as it will be, and the event after which it is. In any thread."""
        # A thread begins on the first GPU: without this, page-locked memory would be asked from that one.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # The allocator of page-locked memory waits for the copy before it gives the memory to another.
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
    choose_device(str(device))  # one line where it is not there
    return Copier(
        device if device.index is not None else torch.device("cuda", torch.cuda.current_device()), then
    )


def to_device(
    batches: Iterable[TorchBatch],
    device: torch.device | str,
    then: Callable[[TorchBatch], TorchBatch] = lambda batch: batch,
) -> Iterator[TorchBatch]:
    """Yield batches on a device, the next ones on their way there while one is used.

    batches: of a `TorchStream`, or of a `DataLoader` around one. device: on "cuda" at most `AHEAD` batches are
    held before they are asked for; anywhere else there is no thread, and on the CPU no copy. then: what is to
    be done with each of them on the device.
    """
    target = torch.device(device)
    copier = copier_for(target, then)
    if copier is None:
        yield from (then(batch.to(target)) for batch in batches)
        return
    with closing(run_ahead(batches, copier.send)) as sent:
        yield from map(copier.receive, sent)
