"""Batches of tensors, and the decoding of their logits.

The tensors share memory with the arrays of the store's batch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float16, Float32, Int64, Shaped, UInt8, UInt16
from numpy.typing import NDArray
from torch import Tensor

from ...storage.checks import check_temperature
from ...storage.errors import ConfigError
from ...storage.stream.batch import Batch, TopKRows, TransformRows, batch_text
from .transform import TransformTensors, decode_transform


@dataclass(frozen=True)
class TopKTensors:
    """Rows of a capture of the k largest logits, as they are stored (`logitstore.storage.stream.stream.TopKRows`)."""

    index: Shaped[Tensor, "rows k"]
    """Columns of the k largest, in descending order."""
    logits: Shaped[Tensor, "rows k"]
    """float16: their logits, minus the row's largest."""
    tail: Float32[Tensor, "rows figures"]
    """ln Σ exp, mean and variance of the omitted logits."""
    num_classes: int
    """Classes of the capture."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "TopKTensors":
        """Apply `function` to each tensor, for another device or pinned memory."""
        return TopKTensors(function(self.index), function(self.logits), function(self.tail), self.num_classes)

    def head(self, count: int) -> "TopKTensors":
        """Return the first rows."""
        return self.map(lambda tensor: tensor[:count])


StoredLogits = (
    Float32[Tensor, "batch _"]
    | Float16[Tensor, "batch _"]
    | UInt8[Tensor, "batch _"]
    | UInt16[Tensor, "batch _"]
    | TopKTensors
    | TransformTensors
)
"""The logits of one teacher: decoded to float32, or as stored."""


@dataclass(frozen=True)
class TorchBatch:
    """Rows of a store as tensors: inputs, labels and logits."""

    rows: Int64[Tensor, " batch"]
    """Rows of the store."""
    views: Int64[Tensor, " batch"]
    """View of each row."""
    inputs: Tensor | None
    """(batch, …): the inputs as the teachers saw them; None without stored inputs and transfer set."""
    labels: Int64[Tensor, " batch"]
    """Class of each row, -1 where unknown."""
    logits: Mapping[str, StoredLogits]
    """By teacher: float32 (batch, classes), the largest of each row 0; as stored if the stream does not decode."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """By teacher, if the stream does not decode: the factor from stored integers to logits."""
    decoded_for: Mapping[str, float] = field(default_factory=dict)
    """By teacher, if its rows are decoded for one temperature of the softmax, as top-k rows are: that temperature."""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return batch_text(self)

    @classmethod
    def of(cls, batch: Batch) -> "TorchBatch":
        """Wrap a batch of arrays as tensors."""
        return cls(
            torch.from_numpy(batch.rows),
            torch.from_numpy(batch.views),
            None if batch.inputs is None else torch.from_numpy(batch.inputs),
            torch.from_numpy(batch.labels),
            {name: _tensors(logits) for name, logits in batch.logits.items()},
            batch.scale,
            batch.decoded_for,
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "TorchBatch":
        """Apply `function` to all tensors but rows and views, which stay on the host."""
        logits = {
            name: function(z) if isinstance(z, Tensor) else z.map(function) for name, z in self.logits.items()
        }
        inputs = None if self.inputs is None else function(self.inputs)
        return replace(self, inputs=inputs, labels=function(self.labels), logits=logits)

    def head(self, count: int) -> "TorchBatch":
        """Return the first rows."""
        logits = {
            name: z[:count] if isinstance(z, Tensor) else z.head(count) for name, z in self.logits.items()
        }
        inputs = None if self.inputs is None else self.inputs[:count]
        rows, views, labels = self.rows[:count], self.views[:count], self.labels[:count]
        return replace(self, rows=rows, views=views, inputs=inputs, labels=labels, logits=logits)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TorchBatch":
        """Move the batch to a device; rows and views stay on the host."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TorchBatch":
        """Copy the batch to page-locked memory; `DataLoader(..., pin_memory=True)` calls it."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: Any) -> None:
        """Keep the memory of the batch until a CUDA stream that did not fill it has used it."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def decoded(self, temperature: float | None = None) -> "TorchBatch":
        """Decode the logits to float32 on the device of the batch: see `teacher_logits`."""
        top_k = [name for name, z in self.logits.items() if isinstance(z, TopKTensors)]
        logits = self.teacher_logits(temperature)
        once = {} if temperature is None else dict.fromkeys(top_k, temperature)
        return replace(self, logits=logits, scale={}, decoded_for={**self.decoded_for, **once})

    def teacher_logits(self, temperature: float | None = None) -> dict[str, Float32[Tensor, "batch _"]]:
        """Return float32 logits by teacher, the largest of each row 0; stored codes are decoded on the device.

        temperature: that of the softmax; only top-k rows need it. Raises ConfigError if it is missing, or another than
        that for which such rows are decoded already.
        """
        return {name: self._decoded(name, temperature) for name in self.logits}

    def _decoded(self, name: str, temperature: float | None) -> Tensor:
        stored = self.logits[name]
        if isinstance(stored, TopKTensors):
            if temperature is None:
                raise ConfigError(
                    f"teacher {name!r}: temperature",
                    expected="the temperature of the softmax, by which top-k rows are decoded",
                    found="None",
                    remedy="pass temperature=…, or read the rows as they are stored",
                )
            return decode_top_k(stored, temperature)
        if temperature not in (None, before := self.decoded_for.get(name, temperature)):
            raise ConfigError(
                f"teacher {name!r}: temperature",
                expected=f"{before:g}, for which these top-k rows are decoded",
                found=f"{temperature:g}",
                remedy="stream with decode=False, which leaves the rows as they are stored",
            )
        if isinstance(stored, TransformTensors):
            return decode_transform(stored)
        return decode_codes(stored, self.scale[name]) if name in self.scale else stored.to(torch.float32)


def _tensors(stored: NDArray[Any] | TopKRows | TransformRows) -> StoredLogits:
    """Wrap the arrays of one teacher as tensors that share memory."""
    if isinstance(stored, TransformRows):
        return TransformTensors.of(stored)
    if isinstance(stored, TopKRows):
        index, logits, tail = map(torch.from_numpy, (stored.index, stored.logits, stored.tail))
        return TopKTensors(index, logits, tail, stored.num_classes)
    return torch.from_numpy(stored)


def decode_codes(codes: Shaped[Tensor, "rows classes"], scale: float) -> Float32[Tensor, "rows classes"]:
    """Decode integer codes to centred logits: float32(code) · float32(scale), the largest of each row 0.

    codes: uint8 or uint16, as stored. scale: `batch.scale[teacher]`, natural-log units a code, negative.

    >>> decode_codes(torch.tensor([[0, 2]], dtype=torch.uint8), -0.25)
    tensor([[-0.0000, -0.5000]])
    """
    return codes.to(torch.float32).mul_(scale)


def decode_top_k(rows: TopKTensors, temperature: float) -> Float32[Tensor, "rows classes"]:
    """Decode top-k rows to dense logits for a softmax at `temperature`; the omitted classes share one level.

    Raises ConfigError for a wrong temperature. Source: docs/format-v1.md, "Encoded captures".
    """
    check_temperature(temperature)
    kept = rows.logits.to(torch.float32)
    dense = kept.new_empty((len(kept), rows.num_classes))
    omitted = rows.num_classes - kept.shape[1]
    if omitted:
        log_sum, mean, variance = rows.tail.to(torch.float64).unbind(1)
        beta = 1 / temperature
        at_one = torch.maximum(log_sum - math.log(omitted), mean)
        rise = at_one - mean
        below = 2 * rise * (1 - beta) + variance * beta
        level = mean + rise * variance * beta / torch.where(below > 0, below, 1.0)
        level = torch.where(below > 0, level, math.inf)
        largest = torch.maximum(kept[:, -1].to(torch.float64), at_one)
        by_largest = temperature * at_one + (1 - temperature) * largest
        if temperature >= 1:
            level = torch.clamp(level, torch.maximum(mean, by_largest), at_one)
        else:
            width = torch.clamp(largest - mean, min=1e-30)
            power = torch.clamp(beta * width, max=500)  # above 500, `by_largest` is lower
            by_variance = mean + temperature * variance * (torch.expm1(power) - power) / width**2
            level = torch.clamp(level, at_one, torch.maximum(at_one, torch.minimum(by_largest, by_variance)))
        dense.copy_(level.to(torch.float32)[:, None].expand_as(dense))
    return dense.scatter_(1, rows.index.to(torch.int64), kept)
