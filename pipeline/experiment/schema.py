"""What may stand under a key of a settings file, and how is what may not be reported?

1. `problem` makes an error whose four parts (where, expected, found, remedy) reach the user as they are.
2. The types are what a key can hold: names, factories, counts, seeds, finite numbers.
3. `Table` is the base of every table: frozen, strict, and an unknown key names the nearest known one.
4. `explain` turns what pydantic found into one `ConfigError` of one line.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ...storage.errors import ConfigError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What the name of a part, a teacher or a student looks like."""


_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


_ITEM = TypeVar("_ITEM")


def problem(expected: str, found: str, remedy: str, key: str = "") -> PydanticCustomError:
    """An error whose four parts reach the user as they are; `key` is what to add to the place."""
    context = {"expected": expected, "found": found, "remedy": remedy, "key": key}
    return PydanticCustomError("logitstore", "{expected}", context)


def show(value: object) -> str:
    """A value as its author wrote it, cut to a length that fits in a line."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, Mapping):
        text = "{ " + ", ".join(f"{key} = …" for key in value) + " }" if value else "an empty table"
    else:
        text = "nothing" if value is None else repr(value)
    text = _one_line(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(text: str) -> str:
    """`text`, escaped where it holds anything that a terminal would not print."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def nearest(key: str, known: Sequence[str]) -> str:
    """What to do about an unknown `key`: the known one that it most resembles, or all of them."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{close[0]}'?" if close else "use one of " + ", ".join(sorted(known))


# Types of values


def check_name(value: str) -> str:
    """Refuse what cannot be the name of a part of a store."""
    if not NAME.fullmatch(value):
        raise problem(
            "a name of 1 to 64 of a-z 0-9 . _ - that begins with a letter or digit",
            show(value),
            "rename it",
        )
    return value


def _check_factory(value: str) -> str:
    if not _FACTORY.fullmatch(value):
        raise problem(
            "'package.module:function'", show(value), "write the module, a colon and the function's name"
        )
    return value


def _check_plain(value: object, key: str = "") -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_plain(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise problem("a finite number", show(value), "write a finite number", key)
    elif not isinstance(value, str | int | float):
        raise problem(
            "a string, number, boolean, list or table",
            f"{type(value).__name__} {show(str(value))}",
            "quote it",
            key,
        )


def _check_arguments(value: dict[str, Any]) -> dict[str, Any]:
    _check_plain(value)
    return value


def list_as_tuple(value: object) -> object:
    """TOML's arrays are lists; a frozen table holds tuples."""
    return tuple(value) if isinstance(value, list) else value


def check_distinct(values: tuple[_ITEM, ...]) -> tuple[_ITEM, ...]:
    """Refuse a value that stands twice."""
    for value in values:
        if values.count(value) > 1:
            raise problem("every value once", f"{show(value)} {values.count(value)} times", "drop the rest")
    return values


Name = Annotated[str, AfterValidator(check_name)]


FactoryName = Annotated[str, AfterValidator(_check_factory)]


Arguments = Annotated[dict[str, Any], AfterValidator(_check_arguments)]


Count = Annotated[int, Field(ge=1)]


Whole = Annotated[int, Field(ge=0)]


Seed = Annotated[int, Field(ge=0, lt=2**63)]


Positive = Annotated[float, Field(gt=0)]


NotNegative = Annotated[float, Field(ge=0)]


Fraction = Annotated[float, Field(ge=0, lt=1)]


Share = Annotated[float, Field(gt=0, le=1)]


class Table(BaseModel):
    """A table of the file: frozen, strict about types, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise cls.unknown_key(str(key), known)
        return data

    @classmethod
    def unknown_key(cls, key: str, known: list[str]) -> PydanticCustomError:
        """The error for a key that the table does not have; a table may know why somebody writes it."""
        return problem("a known key", show(key), nearest(key, known), key)


# From pydantic's errors to ours


_EXPECTED = {
    "missing": "a value",
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
    "too_short": "at least {min_length} of them",
    "string_type": "a string",
    "string_too_short": "a string that is not empty",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "{le:g} at most",
}


def explain(error: ValidationError, where: str) -> ConfigError:
    """The first problem of `error` as a line about the document `where`; its remedy counts the others."""
    details = error.errors(include_url=False)
    detail = details[0]
    location = _location(detail)
    context = detail.get("ctx", {})
    if detail["type"] == "logitstore":
        expected, found, remedy = (str(context[part]) for part in ("expected", "found", "remedy"))
    else:
        expected = _EXPECTED.get(detail["type"], "a value that fits ({message})")
        expected = expected.format(message=detail["msg"], **context)
        found = "no such key" if detail["type"] == "missing" else show(detail["input"])
        remedy = _remedy(detail)
    if len(details) > 1:
        others = len(details) - 1
        remedy += f" ({others} more problem{'s' if others > 1 else ''} after this one)"
    return ConfigError(
        f"{where}: {location}" if location else where, expected=expected, found=found, remedy=remedy
    )


def _remedy(detail: ErrorDetails) -> str:
    key = str(detail["loc"][-1]) if detail["loc"] else "it"
    if detail["type"] == "missing":
        return f"add {key}"
    if isinstance(detail["input"], str) and detail["type"] in ("int_type", "float_type", "bool_type"):
        return f"write {key} without quotes" if detail["input"] else f"give {key} a value"
    if detail["type"] == "tuple_type" and key in ("teacher", "student"):
        return f"head the table with [[{key}]]"
    return f"correct {key}"


def _location(detail: ErrorDetails) -> str:
    """`("student", 0, "train", "lr")` as `student[0].train.lr`."""
    text = ""
    for part in detail["loc"]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    added = str(detail.get("ctx", {}).get("key", "")) if detail["type"] == "logitstore" else ""
    if added:
        text += added if added.startswith("[") else f".{added}"
    return _one_line(text.removeprefix("."))


def settled(table: Table, *, later: set[str], idle: set[str]) -> dict[str, Any]:
    """What a table says of what is made from it.

    later: keys that came to the table after things were made from it. At their defaults they are left out, so
    that those things are still what they were. idle: keys from which nothing follows.
    """
    fields = type(table).model_fields
    unset = {name for name in later if getattr(table, name) == fields[name].default}
    return table.model_dump(mode="json", exclude=idle | unset)
