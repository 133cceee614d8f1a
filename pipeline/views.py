"""How does a student get the very inputs that its teacher saw?

A stream hands over the inputs of a run of rows as the transfer set has them; `replay` makes of them the view that was
captured, and the stream compares each with the digest of what the teacher was given. Stage one makes its views
with the same function.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..storage.inputs import Augment
from .augment import Augmentation, augment_rows
from .experiment import Experiment
from .factories import build_augmentation


def replay(augmentation: Augmentation, seed: int = 0, first_view: int = 1) -> Augment:
    """What `store.stream(..., augment=…)` takes, for an augmentation such as `shift(pixels=2)`.

    seed, first_view: as the capture has them (`store.teachers[name].augmentation` says both).

    >>> from logitstore.pipeline.augment import shift
    >>> again = replay(shift(pixels=1))
    >>> again(np.ones((2, 3, 3)), 0, np.array([4, 5])).sum()  # view 0 is the row as it is
    np.float64(18.0)
    """
    return _Replay(augmentation, seed, first_view)


@dataclass(frozen=True)
class _Replay:
    """An object and no closure: a stream is sent to the workers of a DataLoader, and what it holds with it."""

    augmentation: Augmentation
    seed: int
    first_view: int

    def __call__(self, inputs: NDArray[Any], view: int, rows: Int64[np.ndarray, " rows"]) -> NDArray[Any]:
        return augment_rows(inputs, self.augmentation, self.seed, view, rows, self.first_view)


def experiment_views(experiment: Experiment) -> Augment | None:
    """What makes the views of an experiment's captures; None where every view is the row as it is.

    Raises FactoryError.
    """
    table = experiment.cache.augment
    if table is None:
        return None
    augmentation = build_augmentation(table.factory, table.args, base=experiment.base)
    return replay(augmentation, table.seed, table.first_view)
