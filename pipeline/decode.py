"""How do stored integers, and the k largest logits, become logits on the device that uses them?

A stream reads what is stored, and torch does with it what `Capture.read` does on the host: on a GPU after the copy, so
that a half or a quarter of the bytes goes over the bus, and on the CPU because its cast of float16 is many times as
fast as numpy's. Both give the same bits for floats and codes (one float32 product), and the same to the last digit but
one for top-k rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from .losses import check_temperature


@dataclass(frozen=True)
class TopKTensors:
    """Rows of a capture of the k largest logits, as they are stored (`logitstore.storage.stream.TopKRows`)."""

    index: Shaped[Tensor, "rows k"]
    """Columns of the k largest, in descending order."""
    logits: Shaped[Tensor, "rows k"]
    """float16: those logits, minus the row's largest."""
    tail: Float32[Tensor, "rows figures"]
    """ln Σ exp, mean and variance of the logits that were left out."""
    num_classes: int
    """Columns of the capture."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "TopKTensors":
        """The same with `function` of each tensor: another device, pinned memory."""
        return TopKTensors(function(self.index), function(self.logits), function(self.tail), self.num_classes)


def decode_codes(codes: Shaped[Tensor, "rows classes"], scale: float) -> Float32[Tensor, "rows classes"]:
    """Centred logits from integer codes: float32(code) · float32(scale), the largest of each row 0.

    codes: uint8 or uint16, as stored. scale: `batch.scale[teacher]`, natural-log units a code, negative.

    >>> decode_codes(torch.tensor([[0, 2]], dtype=torch.uint8), -0.25)
    tensor([[-0.0000, -0.5000]])
    """
    return codes.to(torch.float32).mul_(scale)


def decode_top_k(rows: TopKTensors, temperature: float) -> Float32[Tensor, "rows classes"]:
    """Dense logits whose softmax at `temperature` is what was stored; the classes left out share one level.

    Raises ConfigError for a temperature that is none. Source: docs/format-v1.md, "Encoded captures".
    """
    check_temperature(temperature)
    kept = rows.logits.to(torch.float32)
    dense = kept.new_empty((len(kept), rows.num_classes))
    left_out = rows.num_classes - kept.shape[1]
    if left_out:
        log_sum, mean, variance = rows.tail.to(torch.float64).unbind(1)
        beta = 1 / temperature
        at_one = torch.maximum(log_sum - math.log(left_out), mean)
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
            power = torch.clamp(beta * width, max=500)  # beyond, the other bound is the lower one
            by_variance = mean + temperature * variance * (torch.expm1(power) - power) / width**2
            level = torch.clamp(level, at_one, torch.maximum(at_one, torch.minimum(by_largest, by_variance)))
        dense.copy_(level.to(torch.float32)[:, None].expand_as(dense))
    return dense.scatter_(1, rows.index.to(torch.int64), kept)
