"""Class names of a data set, by the habits of several libraries.

    class_names            ours
    classes                torchvision: texts, or a tuple of synonyms a class
    features               Hugging Face datasets: the names of the one ClassLabel
    dataset, datasets      torch's Subset and ConcatDataset: the names of the sets within

Names of another form are refused if they are `class_names`, which only means them, and ignored elsewhere.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from ...storage.errors import BadDataError

log = logging.getLogger(__name__)


def names_of(dataset: Any, where: str) -> list[str] | None:
    """Return the class names that a data set has, in the order of its labels; None without any.

    where: the set in messages. Raises BadDataError for `class_names` that are no list of texts.
    """
    if (given := getattr(dataset, "class_names", None)) is not None:
        return as_names(given, f"{where}: class_names") or None
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple) and classes:
        joined = [", ".join(one) if isinstance(one, tuple) and all_texts(one) else one for one in classes]
        if all_texts(joined):
            return joined
        log.info("%s: classes are not taken as class names: they are no texts", where)
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        named = [list(feature.names) for feature in features.values() if hasattr(feature, "names")]
        if len(named) == 1 and named[0] and all_texts(named[0]):
            return named[0]
    return _names_within(dataset, where)


def _names_within(dataset: Any, where: str) -> list[str] | None:
    """Return the class names of the sets that a subset or a concatenation is made of.

    Labels go through such sets as they are, so that all must have the same names in one order. Raises BadDataError.
    """
    joined = getattr(dataset, "datasets", None)
    if isinstance(joined, list | tuple):
        within = list(joined)
    elif hasattr(dataset, "indices") and (inner := getattr(dataset, "dataset", None)) is not None:
        within = [inner]
    else:
        return None
    # Names that only number the labels of a part say nothing of the others.
    named = [(part, names_of(one, where)) for part, one in enumerate(within) if not is_numbered(one)]
    known = [(part, names) for part, names in named if names]
    for part, names in known[1:]:
        first, expected = known[0]
        if names != expected:
            place = next((i for i, (a, b) in enumerate(zip(expected, names, strict=False)) if a != b), None)
            raise BadDataError(
                f"{where}: class_names",
                expected=f"the same classes in part {part} as in part {first}"
                + ("" if place is None else f", where class {place} is {expected[place]!r}"),
                found=f"{len(names)} classes" if place is None else repr(names[place]),
                remedy="number the labels of all parts alike",
            )
    if known and len(known) < len(within):
        log.warning("%s: only some of its %d parts name their classes; taken for all", where, len(within))
    return known[0][1] if known else None


def is_numbered(dataset: Any) -> bool:
    """Return whether the class names of a data set only number its labels, up to the largest one."""
    return bool(getattr(dataset, "is_numbered", False))


def as_names(given: Any, where: str) -> list[str]:
    """Return names as texts: numbers are written out, bytes are UTF-8. Raises BadDataError for another form.

    A text is a sequence of characters and a dict a sequence of keys: both would become names without an error.

    >>> as_names(("cat", b"dog", 3), "set")
    ['cat', 'dog', '3']
    """
    if isinstance(given, str | bytes | Mapping | AbstractSet) or not hasattr(given, "__iter__"):
        raise _no_names(where, f"a {type(given).__name__}")
    names = []
    for number, name in enumerate(given):
        if not isinstance(name, str | bytes | int | float | np.generic):
            raise _no_names(where, f"a {type(name).__name__} as name {number}")
        try:
            text = name.decode() if isinstance(name, bytes) else str(name)
            text.encode()
        except UnicodeError:
            raise _no_names(where, f"{name!a} as name {number}, which is no UTF-8") from None
        names.append(text)
    return names


def as_ids(given: Any, rows: int, where: str) -> list[str]:
    """Return the names of the rows as texts. Raises BadDataError for another number of them, and for no UTF-8."""
    try:
        ids = [one.decode() if isinstance(one, bytes) else str(one) for one in given]
        "".join(ids).encode()
    except (TypeError, UnicodeDecodeError, UnicodeEncodeError) as error:
        found = f"a {type(given).__name__}" if isinstance(error, TypeError) else ascii(error.object)[:60]
        raise BadDataError(
            where, expected="texts in UTF-8, one a row", found=found, remedy="correct ids of the data set"
        ) from None
    if isinstance(given, str | bytes) or len(ids) != rows:
        raise BadDataError(
            where,
            expected=f"{rows} ids, one a row",
            found=f"a {type(given).__name__} of {len(ids)}",
            remedy="correct ids of the data set",
        )
    return ids


def all_texts(values: Sequence[Any]) -> bool:
    """Return whether all values are texts, and there is one."""
    return bool(values) and all(isinstance(value, str) for value in values)


def checked_class_names(class_names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names as a tuple; raise BadDataError if two are equal."""
    name, count = max(Counter(class_names).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise BadDataError(
            where,
            expected="distinct class names",
            found=f"{name!r} {count} times",
            remedy="rename the classes of that name",
        )
    return tuple(class_names)


def _no_names(where: str, found: str) -> BadDataError:
    return BadDataError(
        where,
        expected="a list of texts, one a class",
        found=found,
        remedy="list the names in the order of the labels",
    )
