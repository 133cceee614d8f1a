"""A batch of a stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16
from numpy.typing import NDArray

from .shared_basis import SharedBasis

_SHOWN: Final = 4
"""Teachers of a batch that its text names."""


@dataclass(frozen=True)
class TopKRows:
    """Rows of a top-k capture as they are stored."""

    index: NDArray[Any]
    """(batch, k): the columns of the k largest logits, in descending order."""
    logits: NDArray[Any]
    """float16 (batch, k): those logits, minus the row's largest."""
    tail: NDArray[Any]
    """float32 (batch, 3): ln Σ exp, mean and variance of the other logits."""
    num_classes: int
    """Columns of the capture."""


@dataclass(frozen=True)
class TransformRows:
    """Rows of a capture in the transform encoding as they are stored."""

    codes: UInt16[np.ndarray, "batch components"]
    """Codes in the axes of the basis, by zigzag: 0, −1, 1, −2 … are 0, 1, 2, 3 …"""
    refine: UInt8[np.ndarray, " batch"]
    """A row's steps are those of the basis times 2^(−refine/2); 255 for an escaped row, which is stored whole."""
    escape: UInt16[np.ndarray, "escaped classes"]
    """Codes of the escaped rows alone, in their order, one a class."""
    basis: SharedBasis
    """The basis, the same object in all batches; `basis.encoding.basis` has its arrays."""
    num_classes: int
    """Columns of the capture."""

    def decode(self) -> Float32[np.ndarray, "batch classes"]:
        """Decode the rows to centred logits: the largest of a row is 0."""
        return self.basis.decode(self.codes, self.refine, self.escape)


@dataclass(frozen=True)
class Batch:
    """Rows of a store with their inputs, labels and logits."""

    rows: Int64[np.ndarray, " batch"]
    """Rows of the store."""
    views: Int64[np.ndarray, " batch"]
    """View of each row."""
    inputs: NDArray[Any] | None
    """(batch, …): the inputs as the teachers saw them; None without inputs."""
    labels: Int64[np.ndarray, " batch"]
    """Class of each row, -1 if unknown."""
    logits: Mapping[str, "NDArray[Any] | TopKRows | TransformRows"]
    """By teacher: float32 (batch, classes), the largest of each row 0; as stored with decode=False."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """By teacher, with decode=False: the factor of stored integers; floats have none."""
    decoded_for: Mapping[str, float] = field(default_factory=dict)
    """By teacher, if its rows are decoded for one temperature of the softmax, as top-k rows are: that temperature."""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return batch_text(self)


def batch_text(batch: Any) -> str:
    """Return a batch of arrays or tensors in ten lines at most: dtype and shape of each, no numbers.

    >>> one = Batch(np.arange(2), np.zeros(2, np.int64), None, np.array([3, -1]), {"wide": np.zeros((2, 5), np.float16)})
    >>> one
    <Batch of 2 rows
      rows    int64 (2,)
      views   int64 (2,)
      inputs  None
      labels  int64 (2,)
      logits  wide: float16 (2, 5)>
    """
    lines = [f"{name:<8}{_text(getattr(batch, name))}" for name in ("rows", "views", "inputs", "labels")]
    logits = [f"{name}: {_text(values)}" for name, values in batch.logits.items()]
    if more := len(logits) - _SHOWN:
        logits = [*logits[:_SHOWN], f"and {more} more"] if more > 0 else logits
    lines += [f"{'' if number else 'logits':<8}{line}" for number, line in enumerate(logits or ["none"])]
    return "\n  ".join([f"<{type(batch).__name__} of {len(batch.rows)} rows", *lines]) + ">"


def _text(values: Any) -> str:
    """Return dtype, shape and device of an array or a tensor; of stored rows, those of their arrays."""
    if not hasattr(values, "dtype"):
        arrays = vars(values).items() if values is not None else ()
        stored = [f"{name} {_text(one)}" for name, one in arrays if hasattr(one, "dtype")]
        return f"{type(values).__name__} of {', '.join(stored)}" if stored else repr(values)
    place = f" on {values.device}" if str(getattr(values, "device", "cpu")) != "cpu" else ""
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}{place}"
