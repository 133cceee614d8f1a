"""Logits in memory that are read like a capture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitstore.pipeline.cluster.moments import Moments
from logitstore.pipeline.cluster.softened import softened_of


@dataclass(frozen=True, eq=False)
class Held:
    """Logits (view, row, class) float32 in memory."""

    values: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int, int]:
        views, rows, classes = self.values.shape
        return views, rows, classes

    def read(self, rows: range, view: int = 0, temperature: float | None = None) -> NDArray[np.float32]:
        return self.values[view, rows.start : rows.stop]


def moments(logits: NDArray[np.float32], temperature: float) -> Moments:
    """Moments of one slice of logits (rows, classes)."""
    source = softened_of(Held(logits[None]), temperature, len(logits))
    total = Moments.zeros(logits.shape[1], logits.shape[1])
    total.add(source.read(0, range(len(logits))))
    return total
