"""Checks of values that are read from a store whose digests are right."""

from typing import Any

from numpy.typing import NDArray

from ..format.documents import invalid


def in_range(values: NDArray[Any], least: int, end: int, where: str, what: str = "classes") -> NDArray[Any]:
    """Return `values`. Raises ManifestInvalid if one is not in least … end - 1: no writer stored it.

    what: the kind of the values.

    >>> import numpy as np
    >>> in_range(np.array([-1, 2]), -1, 3, "label").tolist()
    [-1, 2]
    """
    if values.size and (int(values.min()) < least or int(values.max()) >= end):
        found = f"{int(values.min())} to {int(values.max())}"
        raise invalid(where, f"{what} from {least} to {end - 1}", found)
    return values
