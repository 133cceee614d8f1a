"""Are two things made from the same? An identity is a JSON object of all that something follows from."""

from collections.abc import Mapping
from typing import Any

from .errors import SpecMismatch
from .format.documents import canonical_json, parse_json

_SHOWN = 160
"""Characters of a value that a message shows."""


def difference(ours: Any, theirs: Any, path: str = "") -> tuple[str, str, str] | None:
    """The first place where two JSON values differ: (path, ours, theirs).

    >>> difference({"a": {"b": 1}}, {"a": {"b": 2}})
    ('a.b', '1', '2')
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*ours, *theirs}):
            found = difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if ours == theirs else (path, _shown(ours), _shown(theirs))


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def check_same(where: str, ours: Any, theirs: Any, *, made: str, remedy: str) -> None:
    """Refuse to go on with something that was made from other things. Raises SpecMismatch with the first.

    made: how `theirs` belongs to what is there, as "with which it was begun".

    >>> check_same("teachers/wide", {"seed": 1}, {"seed": 0}, made="with which it was trained", remedy="rename it")
    Traceback (most recent call last):
    logitstore.storage.errors.SpecMismatch: teachers/wide: expected seed = 0, with which it was trained, found 1; rename it
    """
    found = difference(ours, theirs)
    if found:
        path, wanted, there = found
        raise SpecMismatch(
            where, expected=f"{path} = {there[:_SHOWN]}, {made}", found=wanted[:_SHOWN], remedy=remedy
        )


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as it comes back from a JSON file: tuples become lists, and so on."""
    return parse_json(canonical_json(value), "identity")
