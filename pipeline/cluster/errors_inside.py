"""Share of a teacher's errors that lie inside sets of classes, beside random sets.

An error is a labelled row whose most probable class is not its label. It lies inside a set that has both classes: a
specialist for the set can correct it. The share is compared with that of random sets of the same number and size. Their
expectation is exact; their spread comes from draws.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64

from ...storage.errors import BadDataError

DRAWS: Final = 100
"""Number of random collections of sets that are drawn."""


@dataclass(frozen=True)
class ErrorsInside:
    """Counts of a generalist's errors, inside sets of classes and in all."""

    errors: int
    """Number of labelled rows that are predicted wrongly."""
    inside: int
    """Number of those whose label and prediction share a set."""
    random_share: float
    """Expected share of the errors inside as many random sets of this size."""
    random_deviation: float = float("nan")
    """Standard deviation of that share over draws of random sets; NaN without draws or errors."""
    draws: int = 0
    """Number of those draws."""

    @property
    def share(self) -> float:
        """Return the share of the errors inside a set; NaN without errors."""
        return self.inside / self.errors if self.errors else float("nan")


def errors_inside(
    sets: Int64[np.ndarray, "clusters classes_per_cluster"],
    labels: Int64[np.ndarray, "rows"],
    predictions: Int64[np.ndarray, "rows"],
    *,
    num_classes: int,
    disjoint: bool = False,
    draws: int = 0,
    seed: int = 0,
) -> ErrorsInside:
    """Count the errors that a specialist for one of the sets could correct.

    sets: classes, each once in a set. labels: -1 where unknown; those rows are left out.
    predictions: the most probable class of each row. disjoint: whether random sets are disjoint, as the given ones are.
    draws, seed: of random collections of sets.

    The expected share is exact: a set of M of the C classes, drawn evenly, holds a given pair with
    probability M (M - 1) / (C (C - 1)). Of K sets drawn independently the chances of a miss multiply; of K disjoint sets
    the chances add up. Raises BadDataError for a class that does not exist.
    """
    for name, values, least in (("sets", sets, 0), ("labels", labels, -1), ("predictions", predictions, 0)):
        wrong = values[(values < least) | (values >= num_classes)]
        if len(wrong):
            raise BadDataError(
                name,
                expected=f"classes from {least} to {num_classes - 1}",
                found=str(int(wrong[0])),
                remedy=f"take {name} of this store",
            )
    wrong_rows = (labels >= 0) & (labels != predictions)
    pairs, counts = np.unique(labels[wrong_rows] * num_classes + predictions[wrong_rows], return_counts=True)
    confused = np.stack(np.divmod(pairs, num_classes))
    count, size = sets.shape
    one = size * (size - 1) / (num_classes * (num_classes - 1))
    errors = int(wrong_rows.sum())
    deviation = float("nan")
    if draws and errors:
        generator = np.random.default_rng(seed)
        shares = [
            _inside(random_sets(count, size, num_classes, generator, disjoint=disjoint), confused, counts)
            / errors
            for _ in range(draws)
        ]
        deviation = float(np.std(shares))
    return ErrorsInside(
        errors,
        _inside(sets, confused, counts),
        count * one if disjoint else 1 - (1 - one) ** count,
        deviation,
        draws if errors else 0,
    )


def random_sets(
    count: int, size: int, num_classes: int, generator: np.random.Generator, *, disjoint: bool = False
) -> Int64[np.ndarray, "clusters classes_per_cluster"]:
    """Draw random sets of classes, each class once in a set; disjoint, or independently."""
    if disjoint:
        return generator.permutation(num_classes)[: count * size].reshape(count, size)
    return np.stack([generator.permutation(num_classes)[:size] for _ in range(count)])


def _inside(
    sets: Int64[np.ndarray, "clusters classes_per_cluster"],
    confused: Int64[np.ndarray, "two pairs"],
    counts: Int64[np.ndarray, "pairs"],
) -> int:
    """Count the errors whose two classes share a set."""
    held = np.zeros(confused.shape[1], bool)
    most = int(max(sets.max(initial=0), confused.max(initial=0))) + 1
    for members in sets:
        belongs = np.zeros(most, bool)
        belongs[members] = True
        held |= belongs[confused[0]] & belongs[confused[1]]
    return int(counts[held].sum())
