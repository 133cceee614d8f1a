"""Logits of a block, copied from the device while it computes the next batch.

1. `Runner` of `inference` computes them; a device without streams leaves them in the host's memory.
2. On CUDA inputs go up through page-locked memory by one stream, logits come down by another, and the host is at most two
   batches ahead of the device.
3. Logits that a store keeps as float16 are centred and cast on the device, so that half of the bytes cross the bus. The
   result is the host's to the byte; if that is not certain (`centred`), the host computes it.
"""

import threading
from collections import deque
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.inference import Runner, check_classes, host_batch, refusing_failures

_AHEAD = 2
"""Most batches that are on their way to a device or in it."""
_ROUNDS_TO_INFINITY = 65520.0
"""The smallest size that float16 cannot hold."""


@runtime_checkable
class BlockLogits(Protocol):
    """The logits of a block, filled batch by batch."""

    @property
    def nbytes(self) -> int:
        """Bytes in the memory of the host."""

    def add(self, inputs: Shaped[np.ndarray, "rows ..."]) -> None:
        """Run the teacher over the next rows of the block. Raises BadLogitsError if it fails, or returns no logits."""

    def take(self) -> tuple[NDArray[Any], Float32[np.ndarray, " rows"] | None]:
        """Wait for them: (rows, classes), and, if they were centred, the value subtracted from each row."""

    def release(self) -> None:
        """Release their memory, and with it the arrays of `take`."""


class Memory:
    """Arrays of blocks, used again and again: an allocator keeps freed memory for a while, beside the next array."""

    def __init__(self) -> None:
        self._free: list[Float32[np.ndarray, "rows classes"]] = []
        self._lock = threading.Lock()

    def take(self, rows: int, classes: int) -> Float32[np.ndarray, "rows classes"]:
        """Return an array of that size, not initialised."""
        with self._lock:
            for place, array in enumerate(self._free):
                if len(array) >= rows and array.shape[1] == classes:
                    return self._free.pop(place)[:rows]
        return np.empty((rows, classes), np.float32)

    def put_back(self, array: Float32[np.ndarray, "rows classes"]) -> None:
        """Take back an array."""
        whole = array if array.base is None else array.base
        assert isinstance(whole, np.ndarray)  # base of an array of `take`
        with self._lock:
            self._free.append(whole)


class HostLogits:
    """Logits that a teacher leaves in the memory of the host; see `BlockLogits`."""

    def __init__(self, runner: Runner, rows: int, classes: int, memory: Memory) -> None:
        self._runner, self._memory = runner, memory
        self._logits = memory.take(rows, classes)
        self._done = 0

    @property
    def nbytes(self) -> int:
        return self._logits.nbytes

    def add(self, inputs: Shaped[np.ndarray, "rows ..."]) -> None:
        stop = self._done + len(inputs)
        self._runner.logits(inputs, self._logits[self._done : stop])
        self._done = stop

    def take(self) -> tuple[NDArray[Any], Float32[np.ndarray, " rows"] | None]:
        return self._logits, None

    def release(self) -> None:
        self._memory.put_back(self._logits)


def centred(
    logits: Float32[Tensor, "batch classes"],
) -> tuple[Float16[Tensor, "batch classes"], Float32[Tensor, " batch"], Bool[Tensor, ""]]:
    """Centre logits as the host does: float16 below the largest of each row, that largest, and whether both are exact.

    They are not exact if a row is not finite or does not fit, which the host refuses, and if the largest of a row is zero,
    which has two signs.
    """
    peak, least = logits.amax(dim=1), logits.amin(dim=1)
    below = logits - peak[:, None]
    # Adding zero drops the sign of -0.0, which a store does not keep.
    stored = below.half() + 0.0
    fits = (least - peak > -_ROUNDS_TO_INFINITY) & (peak != 0)  # false for NaN
    return stored, peak, fits.all()


def block_logits(runner: Runner, rows: int, classes: int, *, as_float16: bool, memory: Memory) -> BlockLogits:
    """Allocate the logits of a block. as_float16: whether the store keeps them so."""
    if runner.device.type != "cuda":
        return HostLogits(runner, rows, classes, memory)
    return _CudaLogits(runner, rows, classes, as_float16)


class _CudaLogits:
    """Logits that a GPU computes and copies; see `BlockLogits`."""

    def __init__(self, runner: Runner, rows: int, classes: int, as_float16: bool) -> None:
        self._runner = runner
        # The allocator of page-locked memory reuses it, so `Memory` is not needed.
        dtype = torch.float16 if as_float16 else torch.float32
        self._logits = torch.empty((rows, classes), dtype=dtype, pin_memory=True)
        self._peak = torch.empty(rows, dtype=torch.float32, pin_memory=True) if as_float16 else None
        self._done = 0
        self._raw: list[Tensor] = []
        """Exact logits on the device, for blocks kept as float16."""
        self._exact: list[Tensor] = []
        """By batch, in page-locked memory: whether its float16 logits are those of the host."""
        self._up, self._down = torch.cuda.Stream(runner.device), torch.cuda.Stream(runner.device)
        self._on_their_way: deque[Any] = deque()
        """Events at the end of each batch that the device has not finished."""

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self._logits, self._peak) if t is not None)

    def add(self, inputs: Shaped[np.ndarray, "rows ..."]) -> None:
        device, runner = self._runner.device, self._runner
        with torch.cuda.device(device), runner.mode():
            compute = torch.cuda.current_stream(device)
            for rows in runner.batches(len(inputs)):
                if len(self._on_their_way) >= _AHEAD:
                    self._on_their_way.popleft().synchronize()
                host = host_batch(inputs[rows], pinned=True)
                with refusing_failures(runner.where, host), torch.cuda.stream(self._up):
                    # The allocator of page-locked memory waits for the copy before it reuses the memory.
                    batch = host.to(device, non_blocking=True)
                compute.wait_stream(self._up)
                batch.record_stream(compute)
                logits = runner.forward(batch)
                check_classes(logits, self._logits.shape[1], runner.where)
                with refusing_failures(runner.where, host):
                    # The last layer of a model on several devices may be elsewhere.
                    self._send(logits.to(device, torch.float32), compute)
                self._on_their_way.append(compute.record_event())

    def _send(self, logits: Tensor, compute: Any) -> None:
        """Start copying the logits of a batch to the host."""
        rows = slice(self._done, self._done + len(logits))
        self._done = rows.stop
        copies = [(self._logits[rows], logits)]
        if self._peak is not None:
            self._raw.append(logits)
            stored, peak, exact = centred(logits)
            self._exact.append(torch.empty((), dtype=torch.bool, pin_memory=True))
            copies = [(self._logits[rows], stored), (self._peak[rows], peak), (self._exact[-1], exact)]
        self._down.wait_stream(compute)
        with torch.cuda.stream(self._down):
            for target, source in copies:
                target.copy_(source, non_blocking=True)
                source.record_stream(self._down)

    def take(self) -> tuple[NDArray[Any], Float32[np.ndarray, " rows"] | None]:
        self._down.synchronize()
        if self._peak is None:
            return self._logits.numpy(), None
        if all(bool(exact) for exact in self._exact):
            return self._logits.numpy(), self._peak.numpy()
        return torch.cat(self._raw).cpu().numpy(), None

    def release(self) -> None:
        self._raw.clear()
