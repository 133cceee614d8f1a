"""The experts of a row: a generalist, and the specialists that are active for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int64

from ...storage.errors import ConfigError

DUSTBIN: Final = -1
"""The class of the column that stands for all other classes."""
_CACHED: Final = 1 << 17
"""Elements that are worked on at a time, so that some arrays stay in a core's cache."""


@dataclass(frozen=True, eq=False)
class Experts:
    """Columns and sets of some specialists, ready for lookups."""

    num_classes: int
    """Number of classes of the generalist, C."""
    classes: tuple[Int64[np.ndarray, "_"], ...]
    """By specialist: the class of each of its columns, -1 the dustbin class."""
    members: Bool[np.ndarray, "specialists classes"]
    """Whether a class is of the specialist's set."""
    columns: Int64[np.ndarray, "specialists classes"]
    """The specialist's column of a class; its dustbin column where the class is not of its set."""

    @staticmethod
    def of(classes: Sequence[Any], num_classes: int) -> "Experts":
        """Make the lookups of specialists with these columns.

        classes: by specialist, the class of each column, each once, and -1 (the dustbin class) once.
        Raises ConfigError, with the number of the specialist, for other columns.
        """
        members = np.zeros((len(classes), num_classes), bool)
        columns = np.zeros((len(classes), num_classes), np.int64)
        kept = []
        for number, given in enumerate(classes):
            own = np.asarray(given, np.int64)
            check_columns(own, num_classes, f"specialist {number}")
            special = np.flatnonzero(own != DUSTBIN)
            members[number, own[special]] = True
            columns[number] = np.flatnonzero(own == DUSTBIN)[0]
            columns[number, own[special]] = special
            kept.append(own)
        return Experts(num_classes, tuple(kept), members, columns)

    @property
    def are_disjoint(self) -> bool:
        """Return whether no class is of two sets."""
        return bool((self.members.sum(axis=0) <= 1).all())


def check_columns(classes: Int64[np.ndarray, "columns"], num_classes: int, where: str) -> None:
    """Refuse columns other than some of the classes and the dustbin. Raises ConfigError."""
    special = classes[classes != DUSTBIN]
    dustbins = len(classes) - len(special)
    outside = special[(special < 0) | (special >= num_classes)]
    if len(outside):
        found = f"class {int(outside[0])}"
    elif dustbins != 1:
        found = f"{dustbins} dustbin columns" if dustbins else "no dustbin column"
    elif len(np.unique(special)) != len(special):
        found = "a class twice"
    elif not 1 <= len(special) < num_classes:
        found = f"a set of {len(special)} of {num_classes} classes"
    else:
        return
    raise ConfigError(
        where,
        expected=f"columns for some of the classes 0 to {num_classes - 1}, each once, and one dustbin column (-1)",
        found=found,
        remedy="combine specialists that were trained with a dustbin class on sets of these classes",
    )


def active_specialists(
    logits: Float[np.ndarray, "rows classes"], experts: Experts, top: int = 1
) -> Bool[np.ndarray, "rows specialists"]:
    """Return the specialists that are asked about each row: those whose set meets its `top` most likely classes.

    logits: of the generalist. Of equal logits, the first class counts as the more likely.
    Raises ConfigError for a `top` below 1 or above the number of classes. Source: section 5.4, steps 1 and 2.
    """
    if not 1 <= top <= logits.shape[1]:
        raise ConfigError(
            "top",
            expected=f"a number of classes from 1 to {logits.shape[1]}",
            found=str(top),
            remedy="leave it out for 1, as in the paper",
        )
    of_class = np.ascontiguousarray(experts.members.T)
    active = np.asarray(of_class[logits.argmax(axis=1)])
    if top == 1:
        return active
    for piece in pieces(len(logits), logits.shape[1]):
        left = logits[piece].copy()
        row = np.arange(len(left))
        best = left.argmax(axis=1)
        for _ in range(top - 1):
            left[row, best] = -np.inf
            best = left.argmax(axis=1)
            active[piece] |= of_class[best]
    return active


def pieces(rows: int, classes: int) -> Iterator[slice]:
    """Yield slices of rows that stay in the cache."""
    step = max(1, _CACHED // classes)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))
