"""A batch of a stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16
from numpy.typing import NDArray

from .shared_basis import SharedBasis


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
