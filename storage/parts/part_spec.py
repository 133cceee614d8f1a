"""The spec of a part, as its writer spells it and compares it with that of a part that was begun."""

from collections.abc import Mapping
from typing import Any

from ..backends.place import Place
from ..errors import ConfigError, LogitStoreError
from ..format.constants import SPEC
from ..format.documents import canonical_json, parse_json
from ..identity import check_same


def plain_json(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `value` after a round trip through JSON. Raises ConfigError for values that JSON cannot hold."""
    try:
        return parse_json(canonical_json(dict(value)), where)
    except LogitStoreError as error:
        remedy = "keep long values elsewhere, and their digest here"
        raise ConfigError(where, expected=error.expected, found=error.found, remedy=remedy) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            where,
            expected="text, finite numbers, lists and tables",
            found=str(error)[:80],
            remedy="leave out other values",
        ) from None


def spec_bytes(identity: Mapping[str, Any], views: int, notes: Mapping[str, Any], where: str) -> bytes:
    """Spell the spec of a part. Raises ConfigError for values that JSON cannot hold."""
    return canonical_json(plain_json({"identity": {**identity, "views": views}, "notes": dict(notes)}, where))


def compare_identity(folder: Place, where: str, ours: bytes, begun: bytes, *, sealed: bool) -> None:
    """Refuse to resume a part with another identity. Raises SpecMismatch.

    ours, begun: the specs of the writer and of the part.
    """
    key = str(folder.path / SPEC)
    mine, theirs = (parse_json(spec, key).get("identity") for spec in (ours, begun))
    remedy = "change it back, or choose another name (or another store)"
    if not sealed:
        remedy += f"; to begin it anew, delete {folder.path}"
    check_same(where, mine, theirs, made="with which it was begun", remedy=remedy)
