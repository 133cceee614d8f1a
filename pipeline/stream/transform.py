"""Rows in the transform encoding as tensors, and their decoding on a device.

    z̃ = (codes · step · 2^(−refine/2)) @ basis + centre, minus the row's largest; escaped rows: escape · scale

Codes cross to the device, and one product makes the dense rows there. The basis crosses once: it stays on the device as
long as a stream or a batch refers to it.

The product is of float32 and never of less. TensorFloat32 keeps 11 bits of a factor, too few for codes of 16 bits, so that
decoded rows would exceed their budget; `torch.set_float32_matmul_precision("high")` and autocast apply to all products of a
process or a thread. So:

- On the CPU NumPy multiplies, which has no lower precision. Rows have the bits of a stream of arrays.
- On an accelerator the product is of float32 where torch is set to full precision, its default. Where it is set to less,
  factors are widened to float64, for which no setting exists. No setting is changed: other threads may multiply meanwhile.
- Autocast is off for the product.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8, UInt16
from torch import Tensor

from ...storage.encodings.refine import ESCAPED, step_factor
from ...storage.stream.batch import TransformRows
from ...storage.stream.shared_basis import SharedBasis


@dataclass(frozen=True)
class TransformTensors:
    """Rows of a capture in the transform encoding, as they are stored (`logitstore.storage.stream.batch.TransformRows`)."""

    codes: UInt16[Tensor, "rows components"]
    """Codes in the axes of the basis, by zigzag."""
    refine: UInt8[Tensor, " rows"]
    """A row's steps are those of the basis times 2^(−refine/2); 255 for an escaped row."""
    escaped: Int64[Tensor, " escaped"]
    """Places of the escaped rows in the batch, ascending."""
    escape: UInt16[Tensor, "escaped classes"]
    """Codes of the escaped rows, one a class."""
    basis: SharedBasis
    """The basis, the same object in all batches."""
    num_classes: int
    """Classes of the capture."""

    @classmethod
    def of(cls, rows: TransformRows) -> "TransformTensors":
        """Wrap rows as tensors that share memory."""
        escaped = np.flatnonzero(rows.refine == ESCAPED) if len(rows.escape) else np.empty(0, np.int64)
        codes, refine, places, escape = map(torch.from_numpy, (rows.codes, rows.refine, escaped, rows.escape))
        return cls(codes, refine, places, escape, rows.basis, rows.num_classes)

    def map(self, function: Callable[[Tensor], Tensor]) -> "TransformTensors":
        """Apply `function` to each tensor, for another device or pinned memory; the basis stays."""
        codes, refine = function(self.codes), function(self.refine)
        escaped, escape = function(self.escaped), function(self.escape)
        return TransformTensors(codes, refine, escaped, escape, self.basis, self.num_classes)

    def head(self, count: int) -> "TransformTensors":
        """Return the first rows."""
        codes, refine = self.codes[:count], self.refine[:count]
        kept = int((self.escaped < len(codes)).sum())
        return TransformTensors(
            codes, refine, self.escaped[:kept], self.escape[:kept], self.basis, self.num_classes
        )


@dataclass(frozen=True)
class _OnDevice:
    """A basis on an accelerator."""

    basis: Float32[Tensor, "components classes"]
    centre: Float32[Tensor, " classes"]
    step: Float32[Tensor, " components"]
    factor: Float32[Tensor, " refinements"]
    """2^(−r/2) of every refine r, as NumPy rounds it."""
    escape_scale: float

    @classmethod
    def of(cls, shared: SharedBasis, device: torch.device) -> "_OnDevice":
        basis = shared.encoding.basis
        assert basis is not None  # of a sealed capture
        factor = step_factor(np.arange(ESCAPED + 1, dtype=np.uint8))
        with torch.inference_mode(False):  # They outlive the mode of the first batch.
            # Blocking: other streams of the device use them as well.
            arrays = (basis.basis, basis.centre, basis.step, factor)
            axes, centre, step, factors = (torch.tensor(values, device=device) for values in arrays)
        return cls(axes, centre, step, factors, shared.encoding.escape_scale)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.basis, self.centre, self.step, self.factor


_moved: WeakKeyDictionary[SharedBasis, dict[torch.device, _OnDevice]] = WeakKeyDictionary()
_lock = threading.Lock()


def _on_device(shared: SharedBasis, device: torch.device) -> _OnDevice:
    """Return a basis on a device, moved with its first batch."""
    with _lock:
        places = _moved.setdefault(shared, {})
        if device not in places:
            places[device] = _OnDevice.of(shared, device)
        found = places[device]
    if device.type == "cuda":
        # Its memory is not given away before this stream has used it.
        for tensor in found.tensors():
            tensor.record_stream(torch.cuda.current_stream(device))
    return found


def decode_transform(rows: TransformTensors) -> Float32[Tensor, "rows classes"]:
    """Decode rows to dense logits on their device, the largest of each row 0.

    On an accelerator sums are added in another order than on the CPU; docs/streaming.md has the differences.
    Source: docs/format-v1.md, "Transform".
    """
    device = rows.codes.device
    if device.type == "cpu":
        return torch.from_numpy(
            rows.basis.decode(rows.codes.numpy(), rows.refine.numpy(), rows.escape.numpy())
        )
    return decode_on_device(rows, _on_device(rows.basis, device))


def decode_on_device(rows: TransformTensors, basis: _OnDevice) -> Float32[Tensor, "rows classes"]:
    """Decode rows without a look at the numbers on the host, which would wait for the device."""
    wide = rows.codes.to(torch.int32)
    values = ((wide >> 1) ^ -(wide & 1)).to(torch.float32)
    values.mul_(basis.step).mul_(basis.factor[rows.refine.to(torch.int64)][:, None])
    with torch.autocast(values.device.type, enabled=False):
        if multiplies_in_full(values.device):
            decoded = values @ basis.basis
        else:
            decoded = (values.to(torch.float64) @ basis.basis.to(torch.float64)).to(torch.float32)
    decoded.add_(basis.centre)
    decoded.sub_(decoded.amax(dim=1, keepdim=True))
    if len(rows.escaped):
        decoded.index_copy_(0, rows.escaped, rows.escape.to(torch.float32).mul_(basis.escape_scale))
    return decoded


def multiplies_in_full(device: torch.device) -> bool:
    """Whether torch is set to multiply float32 on a device in full precision; False if that is not known.

    torch has two names of the setting, and refuses to read the old one where the new one was set.
    """
    if device.type == "mps":  # It has neither a lower precision nor float64.
        return True
    if device.type not in ("cpu", "cuda", "xpu"):
        return False
    backends: Any = torch.backends
    products = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    try:
        settings = {products.fp32_precision, backends.fp32_precision}
        settings.add("ieee" if torch.get_float32_matmul_precision() == "highest" else "lower")
    except (AttributeError, RuntimeError):
        return False
    return settings <= {"none", "ieee"}  # "none" leaves it to the setting above, in the end to the default
