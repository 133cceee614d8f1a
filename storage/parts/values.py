"""Checks of values that a writer is given, and of those that are read from a store whose digests are right."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadDataError, ConfigError
from ..format.constants import DTYPES, INPUT_DTYPES
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


def check_rows_of(where: str, values: Any, dtype: str, wanted: tuple[int, ...]) -> None:
    """Refuse values of another shape, or of a dtype that another does not hold. Raises BadDataError."""
    array = np.asarray(values)
    if array.shape != wanted or not np.can_cast(array.dtype, np.dtype(DTYPES[dtype]), "safe"):
        raise BadDataError(
            where,
            expected=f"{dtype} of shape {wanted}",
            found=f"{array.dtype} of shape {array.shape}",
            remedy="pass an item a row, of the dtype with which it was begun",
        )


def check_input_dtype(dtype: "np.dtype[Any] | str") -> None:
    """Refuse inputs of a dtype that a store cannot keep. Raises ConfigError."""
    if np.dtype(dtype).name not in INPUT_DTYPES:
        raise ConfigError(
            "inputs",
            expected=f"one of the dtypes {', '.join(INPUT_DTYPES)}",
            found=str(dtype),
            remedy="convert them before they are digested, or do not store them",
        )


def kept_example(inputs: NDArray[Any] | None) -> NDArray[Any]:
    """Return an array of the shape and dtype of one of the inputs to keep. Raises ConfigError."""
    if inputs is None:
        raise ConfigError(
            "inputs",
            expected="the inputs to keep",
            found="None",
            remedy="pass inputs=…, or store_inputs=False",
        )
    check_input_dtype(inputs.dtype)
    return np.empty(inputs.shape[1:], inputs.dtype)
