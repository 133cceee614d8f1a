"""How do a teacher's logits leave the device while it goes on with the next batch?

1. `Runner` of `inference` computes them; for a device without streams they are in the host's memory then.
2. On CUDA inputs go up through page-locked memory by one stream, the logits come down through page-locked memory by
   another, and the host is never more than two batches ahead of the device.
3. Logits that a store keeps as float16 are centred and cast there: half of the bytes cross the bus. The bytes are
   those that the host would make; where that is not sure (`centred`), the host makes them.
"""

from collections import deque
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Shaped
from numpy.typing import NDArray
from torch import Tensor

from .inference import Runner, check_classes, host_batch, refusing_failures

_AHEAD = 2
"""Batches that are on their way to a device or in it, at most."""
_ROUNDS_TO_INFINITY = 65520.0
"""The smallest size that float16 cannot hold."""


@runtime_checkable
class Held(Protocol):
    """The logits of a block, on their way."""

    @property
    def nbytes(self) -> int:
        """Bytes that they take in the memory of the host."""

    def take(self) -> tuple[NDArray[Any], Float32[np.ndarray, " rows"] | None]:
        """Wait until they are there: (rows, classes), and, where they were centred, what was taken out of each row."""


class HostLogits:
    """Logits that are there."""

    def __init__(self, logits: Float32[np.ndarray, "rows classes"]) -> None:
        self._logits = logits

    @property
    def nbytes(self) -> int:
        """See `Held`."""
        return self._logits.nbytes

    def take(self) -> tuple[NDArray[Any], Float32[np.ndarray, " rows"] | None]:
        """See `Held`."""
        return self._logits, None


def centred(
    logits: Float32[Tensor, "batch classes"],
) -> tuple[Float16[Tensor, "batch classes"], Float32[Tensor, " batch"], Bool[Tensor, ""]]:
    """Logits as float16 below the largest of their row, that largest, and whether both are what the host would make.

    They are not where a row is not finite or does not fit, which the host has to say, and where the largest of a row
    is a zero, of which there are two.
    """
    peak, least = logits.amax(dim=1), logits.amin(dim=1)
    below = logits - peak[:, None]
    # What rounds to zero has no sign in a store.
    stored = below.half() + 0.0
    fits = (least - peak > -_ROUNDS_TO_INFINITY) & (peak != 0)  # false for whatever is not a number
    return stored, peak, fits.all()


def run(runner: Runner, inputs: Shaped[np.ndarray, "rows ..."], *, as_float16: bool) -> Held:
    """Run a network over a block. as_float16: whether the store keeps its logits so.

    Raises BadLogitsError where it fails, or gives no logits.
    """
    if runner.device.type != "cuda":
        return HostLogits(runner.logits(inputs))
    return _CudaLogits(runner, inputs, as_float16)


class _CudaLogits:
    """Logits that a GPU computes and copies."""

    def __init__(self, runner: Runner, inputs: Shaped[np.ndarray, "rows ..."], as_float16: bool) -> None:
        self._device = runner.device
        self._peak: Float32[Tensor, " rows"] | None = None
        self._logits: Float[Tensor, "rows classes"] | None = None
        self._raw: list[Tensor] = []
        """The logits as they were, on the device, where they are kept as float16."""
        self._exact: list[Tensor] = []
        """Of each batch, in page-locked memory: whether the host would have made the same of it."""
        with torch.cuda.device(self._device):
            self._run(runner, inputs, as_float16)

    def _run(self, runner: Runner, inputs: Shaped[np.ndarray, "rows ..."], as_float16: bool) -> None:
        up, down = torch.cuda.Stream(self._device), torch.cuda.Stream(self._device)
        compute = torch.cuda.current_stream(self._device)
        done: deque[Any] = deque()
        with runner.mode():
            for rows in runner.batches(len(inputs)):
                if len(done) >= _AHEAD:
                    done.popleft().synchronize()
                host = host_batch(inputs[rows], pinned=True)
                with refusing_failures(runner.where, host), torch.cuda.stream(up):
                    # The allocator of page-locked memory waits for the copy before it gives the memory to another.
                    batch = host.to(self._device, non_blocking=True)
                compute.wait_stream(up)
                batch.record_stream(compute)
                logits = runner.forward(batch)
                with refusing_failures(runner.where, host):
                    # Wherever the last layer of a model on several devices is.
                    logits = logits.to(self._device, torch.float32)
                    self._send(logits, rows, len(inputs), down, runner, as_float16)
                done.append(compute.record_event())
        self._arrived = down.record_event()

    def _send(
        self, logits: Tensor, rows: slice, total: int, down: Any, runner: Runner, as_float16: bool
    ) -> None:
        """Begin to copy the logits of a batch to the host."""
        if self._logits is None:
            dtype = torch.float16 if as_float16 else torch.float32
            with torch.inference_mode(False):
                self._logits = torch.empty((total, logits.shape[1]), dtype=dtype, pin_memory=True)
                self._peak = torch.empty(total, dtype=torch.float32, pin_memory=True) if as_float16 else None
        check_classes(logits, self._logits.shape[1], runner.where)
        copies = [(self._logits[rows], logits)]
        if self._peak is not None:
            self._raw.append(logits)
            stored, peak, exact = centred(logits)
            self._exact.append(torch.empty((), dtype=torch.bool, pin_memory=True))
            copies = [(self._logits[rows], stored), (self._peak[rows], peak), (self._exact[-1], exact)]
        down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(down):
            for target, source in copies:
                target.copy_(source, non_blocking=True)
                source.record_stream(down)

    @property
    def nbytes(self) -> int:
        """See `Held`."""
        return sum(t.nbytes for t in (self._logits, self._peak) if t is not None)

    def take(self) -> tuple[NDArray[Any], Float32[np.ndarray, " rows"] | None]:
        """See `Held`."""
        assert self._logits is not None  # there is a row
        self._arrived.synchronize()
        if self._peak is None:
            return self._logits.numpy(), None
        if all(bool(exact) for exact in self._exact):
            return self._logits.numpy(), self._peak.numpy()
        return torch.cat(self._raw).cpu().numpy(), None
