"""Effect of specialists by the *cover* of an example: the number of sets that hold its class.

For each cover: the examples, and how many the generalist and the combination have right. With the specialists of the most
likely class alone (n = 1) no example of cover 0 can be lost: if the generalist is right about it, no specialist is active. It
can be won by a specialist whose dustbin is likely.
Source: Hinton et al. 2015, section 5.5, table 4.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

from ...storage.errors import BadDataError, ConfigError

MOST_SHOWN = 10
"""The paper's last row is "10 or more"."""


@dataclass(frozen=True)
class CoverageRow:
    """The examples of one cover."""

    covering: int
    """Sets that hold the correct class."""
    or_more: bool
    """Whether examples of larger covers are included."""
    examples: int
    """Labelled examples."""
    before: int
    """Examples that the generalist has right."""
    after: int
    """Examples that the combination has right."""

    @property
    def change(self) -> int:
        """Change in the number that is right."""
        return self.after - self.before

    @property
    def relative(self) -> float:
        """Relative change in accuracy: change as a share of those right before; NaN if none was."""
        return self.change / self.before if self.before else math.nan

    @property
    def label(self) -> str:
        """The cover in a table: "3", "10 or more"."""
        return f"{self.covering} or more" if self.or_more else str(self.covering)


@dataclass(frozen=True, eq=False)
class Coverage:
    """Counts by cover; those of batches can be added up."""

    counts: Int64[np.ndarray, "3 covers"]
    """Examples, right before, right after, each by cover from 0 to the number of sets."""

    def __add__(self, other: "Coverage") -> "Coverage":
        """Add the counts of another batch, of the same sets."""
        return Coverage(self.counts + other.counts)

    def rows(self, most: int = MOST_SHOWN) -> list[CoverageRow]:
        """List a row for each cover that occurs, ascending; covers from `most` on are one row.

        Raises ConfigError for a `most` below 1.
        """
        if most < 1:
            raise ConfigError("most", expected="1 or more", found=str(most), remedy="raise it")
        rows = []
        for cover in range(min(most, self.counts.shape[1])):
            if self.counts[0, cover]:
                rows.append(CoverageRow(cover, False, *self.counts[:, cover].tolist()))
        rest = self.counts[:, most:].sum(axis=1)
        if rest[0]:
            rows.append(CoverageRow(most, True, *rest.tolist()))
        return rows

    @property
    def total(self) -> CoverageRow:
        """All examples together."""
        return CoverageRow(0, True, *self.counts.sum(axis=1).tolist())


def covers_of(
    sets: Iterable[Sequence[int] | NDArray[np.int64]], num_classes: int
) -> Int64[np.ndarray, " classes"]:
    """Count the sets of each class; a dustbin (-1) is ignored.

    Raises BadDataError for a member that is no class.

    >>> covers_of([[0, 2, -1], [2, 3]], 4)
    array([1, 0, 2, 1])
    """
    covers = np.zeros(num_classes, np.int64)
    for members in sets:
        for member in {int(member) for member in members} - {-1}:
            if not 0 <= member < num_classes:
                raise BadDataError(
                    "sets",
                    expected=f"classes from 0 to {num_classes - 1}",
                    found=str(member),
                    remedy="take the sets of this store",
                )
            covers[member] += 1
    return covers


def coverage(
    before: Bool[np.ndarray, " rows"],
    after: Bool[np.ndarray, " rows"],
    labels: Int64[np.ndarray, " rows"],
    covers: Int64[np.ndarray, " classes"],
    *,
    num_sets: int,
) -> Coverage:
    """Count one batch.

    before, after: whether the generalist and the combination have a row right. labels: -1 if unknown; those rows are left
    out. covers: of each class, from `covers_of`. num_sets: the largest possible cover.

    >>> right, covers = np.array([True, False, True]), np.array([0, 2])
    >>> coverage(right, ~right, np.array([0, 1, -1]), covers, num_sets=2).counts.tolist()
    [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    """
    known = labels >= 0
    cover = covers[labels[known]]
    lines = [np.ones(len(cover), bool), before[known], after[known]]
    return Coverage(
        np.stack([np.bincount(cover[line], minlength=num_sets + 1) for line in lines]).astype(np.int64)
    )


@dataclass(frozen=True)
class Conditional:
    """Examples of special classes, and how many are right among the special classes."""

    examples: int = 0
    """Labelled examples whose class is special."""
    correct: int = 0
    """Examples whose class has the largest logit of all special classes; of equal logits the first counts."""

    @property
    def accuracy(self) -> float:
        """Share of the examples that are right; NaN without examples."""
        return self.correct / self.examples if self.examples else math.nan

    def __add__(self, other: "Conditional") -> "Conditional":
        """Add the counts of another batch."""
        return Conditional(self.examples + other.examples, self.correct + other.correct)


def conditional(
    logits: Float[np.ndarray, "rows columns"],
    labels: Int64[np.ndarray, " rows"],
    special: Int64[np.ndarray, " special"],
    *,
    columns: Int64[np.ndarray, " columns"] | None = None,
) -> Conditional:
    """Count the conditional accuracy of one batch.

    logits: nats, any additive constant per row. labels: -1 if unknown; those rows are left out.
    special: classes, each once. columns: the class of each column as of `Capture.classes`, by default all classes in order;
    a dustbin (-1) is ignored.
    Raises BadDataError for a special class without a column.

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
    """List the classes of any set, ascending, each once; a dustbin (-1) is ignored.

    >>> special_classes([[2, 5, -1], [1, 2]])
    array([1, 2, 5])
    """
    members = {int(member) for one in sets for member in one}
    return np.array(sorted(members - {-1}), np.int64)
