"""Items of a data set: the forms that an example may have, and what a label may be.

    array or tensor           an input without a label
    (input,)                  an input without a label
    (input, label)            a tuple, a named tuple or a list of two

A label is a class number: an integer of Python, NumPy or torch, or an array of one integer; -1 where it is unknown. Anything
else is refused with the index of the example. A fraction, a text, a boolean, None or one number a class may be a mistake:
`int()` would turn it into a wrong class without an error.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..checks import hidden_by_mask
from ..errors import BadDataError, LogitStoreError

UNKNOWN = -1
"""The label of an example without one."""
_BEYOND = 2**63
"""The first integer that int64 does not hold."""
_UNFIT = (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""Errors of a tensor that NumPy has no dtype or no memory for."""


class Item(NamedTuple):
    """An item of a data set, taken apart."""

    input: Any
    """The input, as the data set gives it."""
    label: Any
    """The label, as the data set gives it; -1 without one."""
    is_labelled: bool
    """Whether the item has a label."""


def fetch_items(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Fetch items of a map-style data set, at once if it has `__getitems__`. Raises BadDataError for its errors."""
    where, failing = _span(indices), indices[0] if len(indices) == 1 else None
    try:
        if hasattr(dataset, "__getitems__"):
            items = list(dataset.__getitems__(list(indices)))
        else:
            items = []
            for index in indices:
                where, failing = f"example {index}", index
                items.append(dataset[index])
    except (LogitStoreError, MemoryError):
        raise
    except Exception as error:
        raise BadDataError(
            f"transfer set, {where}{in_file(dataset, failing)}",
            expected="an example",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": "),
            remedy="repair the data set, and run the same command again",
        ) from error
    if len(items) != len(indices):
        raise BadDataError(
            f"transfer set, {where}",
            expected=f"{len(indices)} items of __getitems__, one an index",
            found=f"{len(items)}",
            remedy="return the items of all indices, in their order",
        )
    return items


def split_item(item: Any, where: str) -> Item:
    """Take an item apart. where: the example in messages. Raises BadDataError for another form.

    >>> split_item((np.zeros(2), 1), "example 0").label, split_item(np.zeros(2), "example 0").is_labelled
    (1, False)
    """
    is_pair = isinstance(item, tuple) or (isinstance(item, list) and bool(item) and _is_array(item[0]))
    if not is_pair:
        problem = None if _is_array(item) or isinstance(item, list) else describe(item)
        parts: Sequence[Any] = (item,)
    else:
        parts = item
        problem = None if 1 <= len(parts) <= 2 else f"a {type(item).__name__} of {len(parts)}"
    if problem is None and not (_is_array(parts[0]) or isinstance(parts[0], list)):
        problem = f"{describe(parts[0])} as the input"
    if problem is not None:
        raise BadDataError(
            where,
            expected="(input, label) or input, the input an array or a tensor",
            found=problem,
            remedy="return such an item from the data set",
        )
    return Item(parts[0], parts[1] if len(parts) == 2 else UNKNOWN, len(parts) == 2)


def as_array(value: Any, where: str) -> NDArray[Any]:
    """Return an input as an array on the CPU, of native byte order. Raises BadDataError for values that NumPy lacks.

    A tensor may need a gradient or lie on a device: its numbers are the same. where: the example in messages.
    """
    try:
        array = _plain(value)
    except _UNFIT as error:
        raise BadDataError(
            where,
            expected="an array or a tensor that NumPy can hold",
            found=f"{describe(value)} ({' '.join(str(error).split())[:100]})",
            remedy="convert it in the data set, to float32 for example",
        ) from error
    if found := hidden_by_mask(value):
        raise BadDataError(
            where, expected="an input without masked values", found=found, remedy="fill them in the data set"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def class_number(label: Any, where: str, class_names: Sequence[str] = (), num_classes: int = 0) -> int:
    """Return a label as a class number, -1 if unknown. Raises BadDataError for any other value.

    where: the example in messages. class_names: for the remedy. num_classes: 0 if it is not known.

    >>> class_number(np.array([2]), "example 0"), class_number(-1, "example 0", num_classes=3)
    (2, -1)
    >>> class_number(True, "example 0")
    Traceback (most recent call last):
    logitstore.storage.errors.BadDataError: example 0: expected a class number (an integer, -1 for unknown), found True; \
return 0 or 1
    """
    number = _integer(label)
    if number is None:
        raise BadDataError(
            where,
            expected="a class number (an integer, -1 for unknown)",
            found=describe(label),
            remedy=_remedy(label, class_names),
        )
    limit = num_classes or _BEYOND
    if not UNKNOWN <= number < limit:
        remedy = "correct the labels, or name all classes"
        if number == num_classes:
            remedy += "; labels count from 0"
        elif number < UNKNOWN:
            remedy = "return -1 for an unknown label"
        raise BadDataError(
            where,
            expected=f"a label from -1 to {limit - 1}" + (f" ({num_classes} classes)" if num_classes else ""),
            found=str(number),
            remedy=remedy,
        )
    return number


def read_inputs(items: Sequence[Any], indices: Sequence[int], where: str) -> NDArray[Any]:
    """Return the inputs (rows, …) of some items, labelled or not. where: the set in messages.

    Raises BadDataError for items of another form, and for inputs of different shapes or dtypes.
    """
    inputs: list[NDArray[Any]] = []
    for index, item in zip(indices, items, strict=True):
        place = f"{where}, example {index}"
        value = as_array(split_item(item, place).input, place)
        if inputs and (value.shape, value.dtype) != (inputs[0].shape, inputs[0].dtype):
            raise BadDataError(
                place,
                expected=f"{inputs[0].dtype} of shape {inputs[0].shape}, as in example {indices[0]}",
                found=f"{value.dtype} of shape {value.shape}",
                remedy="bring all inputs to one shape and dtype",
            )
        inputs.append(value)
    return np.stack(inputs)


def listed_labels(dataset: Any) -> Int64[np.ndarray, " rows"] | None:
    """Return the labels that a set lists beside its items, so that no input is decoded; None if it lists none.

    They are `labels` or `targets`, as data sets of torchvision have them. A subset (`dataset`, `indices`) and a concatenation
    (`datasets`) of such sets, as torch makes them, have those of their sets.
    """
    try:
        inner, indices, joined = (getattr(dataset, name, None) for name in ("dataset", "indices", "datasets"))
        if inner is not None and indices is not None:
            of_inner = listed_labels(inner)
            listed: Any = None if of_inner is None else of_inner[np.asarray(indices, dtype=np.int64)]
        elif isinstance(joined, (list, tuple)):
            of_each = [labels for one in joined if (labels := listed_labels(one)) is not None]
            listed = np.concatenate(of_each) if of_each else None
        else:
            listed = next(
                (v for n in ("labels", "targets") if (v := getattr(dataset, n, None)) is not None), None
            )
        if listed is None or isinstance(listed, str) or callable(listed):
            return None
        labels = np.asarray(listed)
    except Exception:  # noqa: BLE001 - attributes of a user's set may be anything
        return None
    if labels.shape != (len(dataset),) or labels.dtype.kind not in "iu":
        return None
    return labels.astype(np.int64)


def file_of(dataset: Any, index: int) -> str | None:
    """Return the file of an example, where a set lists its files as those of torchvision do; None otherwise.

    They are `samples` or `imgs`: pairs that begin with a path. Subsets and concatenations of torch have those of their sets.

    >>> class Folder: samples = [("a.png", 0), ("b.png", 1)]
    >>> file_of(Folder(), 1), file_of([], 1)
    ('b.png', None)
    """
    try:
        inner, indices, joined = (getattr(dataset, name, None) for name in ("dataset", "indices", "datasets"))
        if inner is not None and indices is not None:
            return file_of(inner, int(indices[index]))
        for one in joined if isinstance(joined, list | tuple) else ():
            if index < len(one):
                return file_of(one, index)
            index -= len(one)
        listed = next(v for n in ("samples", "imgs") if (v := getattr(dataset, n, None)) is not None)
        path = listed[index][0]
    except Exception:  # noqa: BLE001 - attributes of a user's set may be anything
        return None
    return os.fspath(path) if isinstance(path, str | os.PathLike) else None


def describe(value: Any) -> str:
    """Describe a value in the words of a message: type, shape and dtype, or the value itself if it is short.

    >>> describe("cat"), describe(None), describe(np.zeros(3)), describe({"image": 1, "label": 2})
    ("'cat'", 'None', 'float64 array of shape (3,)', "a dict of 'image', 'label'")
    """
    if value is None or isinstance(value, bool | np.bool_ | int | float | str | bytes | np.number):
        text = repr(value.item() if isinstance(value, np.generic) else value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    name = type(value).__name__
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(value)[:4])
        return f"a {name} of {keys}"[:60] if keys else f"an empty {name}"
    if _is_array(value):
        dtype = str(value.dtype).removeprefix("torch.")
        kind = "tensor" if name in ("Tensor", "Parameter") else "array"
        shape = tuple(value.shape)
        one = f" {_shown(value)}" if shape == () else f" of shape {shape}"
        return f"{dtype} {kind}{one}"
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{article} {name} of {len(value)}" if isinstance(value, list | tuple) else f"{article} {name}"


def _shown(value: Any) -> str:
    return repr(value.item())[:40] if hasattr(value, "item") else "of no axes"


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _plain(value: Any) -> NDArray[Any]:
    """Return an array, or a tensor of any device, as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().resolve_neg().numpy()
    return np.asarray(value)


def _integer(label: Any) -> int | None:
    """Return a label that is one integer; None for any other value."""
    if isinstance(label, int):
        return None if isinstance(label, bool) else int(label)
    if not _is_array(label) or isinstance(label, np.ma.MaskedArray):
        return None
    try:
        array = _plain(label)
    except _UNFIT:
        return None
    return int(array.reshape(())) if array.dtype.kind in "iu" and array.shape in ((), (1,)) else None


def _remedy(label: Any, class_names: Sequence[str]) -> str:
    """Return the remedy for a label that is no class number."""
    if label is None:
        return "return -1 for an unknown label"
    if isinstance(label, bool | np.bool_):
        return "return 0 or 1"
    if isinstance(label, str):
        known = list(class_names).index(label) if label in class_names else None
        return "return the number of its class" + ("" if known is None else f", {known}")
    if _is_array(label) and len(label.shape) == 1 and label.shape[0] > 1:
        return "return the number of the class instead of a number a class (argmax of a one-hot row)"
    if isinstance(label, tuple | list | Mapping):
        return "return (input, label) alone"
    return "return an integer; logitstore does not round"


def in_file(dataset: Any, index: int | None) -> str:
    """Return the file of an example in brackets, for a message; nothing where it is not known."""
    path = None if index is None else file_of(dataset, index)
    return "" if path is None else f" ({path[:300]})"


def _span(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"example {indices[0]}"
    return f"examples {min(indices)} to {max(indices)}" if len(indices) else "no examples"
