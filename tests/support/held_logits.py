"""Logits in memory that are read like a capture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitstore.pipeline.cluster.moments import Moments, merge, with_slice
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
    return merge([with_slice(None, *logits.shape, source.reader(0, range(len(logits))))])
