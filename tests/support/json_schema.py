"""A checker of JSON values against the JSON Schemas of the reference: the keywords that these use, and no others."""

from typing import Any, Final

TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
NOTES: Final = {"$schema", "$defs", "title", "description"}
"""Keywords that check nothing."""


def problems(
    value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$"
) -> list[str]:
    """Return a line for each place where a value breaks a schema. Raises KeyError for an unknown keyword.

    root: the whole schema, whose `$defs` are named.
    """
    root, found = schema if root is None else root, []
    for keyword, wanted in schema.items():
        if keyword not in NOTES:
            found += _KEYWORDS[keyword](value, wanted, schema, root, at)
    return found


def _type(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    kinds = [wanted] if isinstance(wanted, str) else wanted
    fits = any(
        isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in kinds
    )
    return [] if fits else [f"{at}: expected {' or '.join(kinds)}, found {value!r}"]


def _properties(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    held = value if isinstance(value, dict) else {}
    return [
        line
        for key, one in wanted.items()
        if key in held
        for line in problems(held[key], one, root, f"{at}.{key}")
    ]


def _required(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    held = value if isinstance(value, dict) else {}
    return [f"{at}: the key {key!r} is missing" for key in wanted if key not in held]


def _additional(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    held = value if isinstance(value, dict) else {}
    more = {key: one for key, one in held.items() if key not in schema.get("properties", {})}
    if wanted is False:
        return [f"{at}: the key {key!r} is in no table" for key in more]
    return [line for key, one in more.items() for line in problems(one, wanted, root, f"{at}.{key}")]


def _items(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    held = value if isinstance(value, list) else []
    return [line for i, one in enumerate(held) for line in problems(one, wanted, root, f"{at}[{i}]")]


def _any_of(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    tried = [problems(value, one, root, at) for one in wanted]
    # The lines of the alternative that fits best: it fails below this place.
    return [] if [] in tried else min(tried, key=lambda lines: (lines[0].split(":")[0] == at, len(lines)))


def _const(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    return [] if value == wanted else [f"{at}: expected {wanted!r}, found {value!r}"]


def _ref(value: Any, wanted: Any, schema: Any, root: Any, at: str) -> list[str]:
    return problems(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, at)


_KEYWORDS: Final[dict[str, Any]] = {
    "type": _type,
    "properties": _properties,
    "required": _required,
    "additionalProperties": _additional,
    "items": _items,
    "anyOf": _any_of,
    "const": _const,
    "$ref": _ref,
}
