"""The captures of a stream: those that a caller names, or all teachers of the store.

The logits of a batch are compared with labels and with each other by the number of a column, so all are in the order of the
store's classes. A capture that lacks classes cannot be: it is refused, unless it is a specialist or the caller asks for the
columns that each capture has.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from ..errors import ConfigError
from ..parts.reader import CaptureReader

log = logging.getLogger(__name__)
COLUMNS: Final = ("all", "own")
"""The logits of all classes of the store, or those that each capture has."""


def choose_captures(
    there: Mapping[str, CaptureReader],
    names: Sequence[str] | None,
    columns: str,
    num_classes: int,
    where: str,
) -> dict[str, CaptureReader]:
    """Return the captures of a stream, in order.

    there: the sealed captures. names: those that are wanted; None for teachers of all classes. columns: of `COLUMNS`.
    where: the store in messages. Raises ConfigError for names that are no list and, unless `columns` is "own", for
    captures whose columns would be mistaken for others; PartNotFound or StoreIncomplete for an absent one.
    """
    if columns not in COLUMNS:
        raise ConfigError("columns", expected="'all' or 'own'", found=repr(columns), remedy="correct columns")
    if names is None:
        return _teachers(there, where)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(
            "teachers", expected="a list of names", found=repr(names), remedy=f"pass [{names!r}]"
        )
    captures = {name: there[name] for name in names}
    if columns == "all":
        _check_columns(captures, num_classes, where)
    return captures


def warn_of_unfinished(parts: Iterable[str], where: str) -> None:
    """Warn of captures that are not streamed because they are not complete. parts: the unfinished parts of the store."""
    for part in parts:
        if part.startswith("teachers/"):
            log.warning("%s: %s is not streamed: it is unfinished", where, part)


def _check_columns(captures: Mapping[str, CaptureReader], num_classes: int, where: str) -> None:
    """Refuse captures whose columns would be mistaken for those of others. Raises ConfigError.

    A specialist is known to have columns of its own. Beside another capture with as many, nothing would tell them apart.
    """
    remedy = "leave it out, or pass columns='own' and take its columns as capture.classes names them"
    of_width: dict[int, CaptureReader] = {}
    for name, capture in captures.items():
        if not (capture.has_all_classes or capture.is_specialist):
            raise ConfigError(
                f"{where}: teachers/{name}",
                expected=f"a capture of all {num_classes} classes of the store, by whose numbers labels count",
                found=capture.columns_found,
                remedy=remedy,
            )
        other = of_width.setdefault(capture.shape[2], capture)
        if not np.array_equal(other.classes, capture.classes):
            raise ConfigError(
                f"{where}: teachers/{name}",
                expected=f"the classes of teachers/{other.name}, which has as many columns",
                found=f"others: {capture.classes.tolist()}"[:80],
                remedy=remedy,
            )


def _teachers(there: Mapping[str, CaptureReader], where: str) -> dict[str, CaptureReader]:
    """Return the captures of all classes, without those derived from others here and those of specialists."""

    def is_original(capture: CaptureReader) -> bool:
        identity = capture.part.spec.identity
        origin = identity.get("derived_from")
        is_derived = isinstance(origin, Mapping) and origin.get("capture") in there
        return not (is_derived or capture.is_specialist or isinstance(identity.get("combination"), Mapping))

    captures = {name: capture for name, capture in there.items() if is_original(capture)}
    for name in [name for name, capture in captures.items() if not capture.has_all_classes]:
        found = captures.pop(name).columns_found
        log.warning("%s: teachers/%s is not streamed: of the store it has %s alone", where, name, found)
    return captures
