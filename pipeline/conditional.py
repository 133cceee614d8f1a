"""How often is a model right about special classes, when it may name no other?

1. The examples whose class is special are kept, the others left out.
2. Of the logits of such an example only the special classes' are looked at; the largest is the prediction.

So a generalist and specialists are compared on what specialists are for, and the choice between special and other
classes, which no specialist makes, is taken out.
Source: Hinton et al. 2015, section 5.5 and table 3, "conditional accuracy".
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from ..storage.errors import BadDataError


@dataclass(frozen=True)
class Conditional:
    """Examples of special classes, and how many of them are told apart from the other special classes."""

    examples: int = 0
    """Labelled examples whose class is special."""
    correct: int = 0
    """Those whose class has the largest logit of all special classes; of equally large ones the first counts."""

    @property
    def accuracy(self) -> float:
        """Share of them that are right; NaN where there are none."""
        return self.correct / self.examples if self.examples else math.nan

    def __add__(self, other: "Conditional") -> "Conditional":
        """Both together."""
        return Conditional(self.examples + other.examples, self.correct + other.correct)


def conditional(
    logits: Float[np.ndarray, "rows columns"],
    labels: Int64[np.ndarray, " rows"],
    special: Int64[np.ndarray, " special"],
    *,
    columns: Int64[np.ndarray, " columns"] | None = None,
) -> Conditional:
    """Conditional accuracy on one batch.

    logits: nats, any additive constant per row. labels: -1 where unknown; those rows are left out.
    special: classes, each once. columns: the class of each column where they are not all classes in order, as
    `Capture.classes` gives them; a dustbin (-1) is looked at by nobody.
    Raises BadDataError for a special class that the logits have no column for.

    >>> logits = np.array([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0], [9.0, 0.0, 0.0]])
    >>> conditional(logits, np.array([1, 1, 0]), np.array([1, 2]))
    Conditional(examples=2, correct=1)
    """
    classes = np.arange(logits.shape[1], dtype=np.int64) if columns is None else columns
    special = np.sort(special)
    there = np.isin(special, classes)
    if not there.all():
        raise BadDataError(
            "special classes",
            expected="classes that the logits have a column for",
            found=f"{int(special[~there][0])}, which is none",
            remedy="take the sets that belong to these captures",
        )
    if not len(special):
        return Conditional()
    order = np.argsort(classes, kind="stable")
    places = order[np.searchsorted(classes, special, sorter=order)]
    kept = np.isin(labels, special)
    predicted = special[logits[kept][:, places].argmax(axis=1)]
    return Conditional(int(kept.sum()), int((predicted == labels[kept]).sum()))


def special_classes(sets: Iterable[Sequence[int] | NDArray[np.int64]]) -> Int64[np.ndarray, " special"]:
    """The classes of any set, ascending, each once; a dustbin (-1) is none.

    >>> special_classes([[2, 5, -1], [1, 2]])
    array([1, 2, 5])
    """
    found = {int(member) for members in sets for member in members}
    return np.array(sorted(found - {-1}), np.int64)
