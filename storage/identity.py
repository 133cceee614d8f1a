"""Identities: JSON objects of everything that a result follows from, compared on resume."""

from collections.abc import Mapping
from typing import Any

from .errors import SpecMismatch
from .format.documents import canonical_json, parse_json

_SHOWN = 160
"""Characters of a value in a message."""


def difference(ours: Any, theirs: Any, path: str = "") -> tuple[str, str, str] | None:
    """Find the first difference of two JSON values: (path, ours, theirs), or None. A kind comes before its other keys.

    >>> difference({"a": {"b": 1}}, {"a": {"b": 2}})
    ('a.b', '1', '2')
    >>> difference({"k": 3, "kind": "top-k"}, {"kind": "float16"})
    ('kind', "'top-k'", "'float16'")
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*ours, *theirs}, key=lambda key: (key != "kind", key)):
            inner = difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
            if inner:
                return inner
        return None
    return None if _equal(ours, theirs) else (path, _shown(ours), _shown(theirs))


def _equal(ours: Any, theirs: Any) -> bool:
    """Compare two JSON values; unlike Python's, true is not 1."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return difference(ours, theirs) is None
    return isinstance(ours, bool) == isinstance(theirs, bool) and bool(ours == theirs)


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def check_same(where: str, ours: Any, theirs: Any, *, made: str, remedy: str) -> None:
    """Refuse to resume a result that was made from other inputs. Raises SpecMismatch with the first difference.

    made: the part of `theirs` in the existing result, as "with which it was begun".

    >>> check_same("teachers/wide", {"seed": 1}, {"seed": 0}, made="with which it was trained", remedy="rename it")
    Traceback (most recent call last):
    logitstore.storage.errors.SpecMismatch: teachers/wide: expected seed = 0, with which it was trained, found 1; rename it
    """
    first = difference(ours, theirs)
    if first:
        path, mine, other = first
        raise SpecMismatch(
            where, expected=f"{path} = {other[:_SHOWN]}, {made}", found=mine[:_SHOWN], remedy=remedy
        )


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `value` as a JSON file would: tuples become lists, and so on."""
    return parse_json(canonical_json(value), "identity")
