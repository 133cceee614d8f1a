"""Types of keys, the base of all tables, and the lines that an invalid document becomes, one a problem."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from operator import attrgetter
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ...storage.errors import MOST_LISTED, ConfigError, with_notes
from ..factories.call import suggest

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of parts, teachers and students."""
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ITEM = TypeVar("_ITEM")


def problem(expected: str, found: str, remedy: str, key: str = "") -> PydanticCustomError:
    """Return an error whose four parts reach the user unchanged; `key` is appended to the place."""
    context = {"expected": expected, "found": found, "remedy": remedy, "key": key}
    return PydanticCustomError("logitstore", "{expected}", context)


@contextlib.contextmanager
def noting(problems: list[PydanticCustomError]) -> Iterator[None]:
    """Append the problem that the block raises to a list, so that the next check is made as well."""
    try:
        yield
    except PydanticCustomError as error:
        problems.append(error)


def raise_all(problems: Sequence[PydanticCustomError]) -> None:
    """Raise several problems of one table together; nothing without any."""
    if problems:
        lines = [InitErrorDetails(type=one, input=None) for one in problems]
        raise ValidationError.from_exception_data("table", lines)


def show(value: object) -> str:
    """Return a value as its author wrote it, cut to 60 characters."""
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


def any_of(values: Sequence[str]) -> str:
    """Join alternatives.

    >>> any_of(["'sgd'", "'adam'", "'adamw'"])
    "'sgd', 'adam' or 'adamw'"
    """
    return " or ".join(part for part in (", ".join(values[:-1]), values[-1]) if part)


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


# Types of values


def check_name(value: str) -> str:
    """Refuse a string that cannot name a part of a store."""
    if not NAME.fullmatch(value):
        expected = "a name of 1 to 64 of a-z 0-9 . _ - that begins with a letter or digit"
        raise problem(expected, show(value), "rename it")
    return value


def _check_factory(value: str) -> str:
    if not _FACTORY.fullmatch(value):
        remedy = "write the module, a colon and the function's name"
        raise problem("'package.module:function'", show(value), remedy)
    return value


def _check_plain(value: object, key: str = "") -> object:
    """Refuse dates, times and NaN anywhere inside `value`: identities are JSON."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_plain(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise problem("a finite number", show(value), "write a finite number", key)
    elif not isinstance(value, str | int | float):
        found = f"{type(value).__name__} {show(str(value))}"
        raise problem("a string, number, boolean, list or table", found, "quote it", key)
    return value


def check_distinct(values: tuple[_ITEM, ...]) -> tuple[_ITEM, ...]:
    """Refuse a repeated value."""
    for value in values:
        if values.count(value) > 1:
            found = f"{show(value)} {values.count(value)} times"
            raise problem("every value once", found, "remove the repetition")
    return values


Listed = Annotated[
    tuple[_ITEM, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]
"""A list of TOML as the tuple that a frozen table holds."""
Name = Annotated[str, AfterValidator(check_name)]
FactoryName = Annotated[str, AfterValidator(_check_factory)]
Arguments = Annotated[dict[str, Any], AfterValidator(_check_plain)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Effect(NamedTuple):
    """Keys that have an effect under some values of another key alone."""

    keys: Sequence[str]
    """Keys of the table, or of a table inside: `train.label_smoothing`."""
    choice: str
    """Key that decides: `optimizer`, `loss.name`; or the property that tells which source is given."""
    values: Sequence[str]
    """Values of `choice` under which the keys have an effect."""


UpToOne = Annotated[float, Field(gt=0, le=1)]


class Table(BaseModel):
    """A table of the file: frozen, strict about types, without unknown keys or keys that have no effect."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    effects: ClassVar[Sequence[Effect]] = ()
    """Keys without an effect beside another one are refused, unless they stand at their default."""
    elsewhere: ClassVar[Sequence[tuple[str, str]]] = ()
    """Keys of other tables, each with the remedy."""

    @model_validator(mode="after")
    def _refuse_keys_without_effect(self) -> "Table":
        problems = list[PydanticCustomError]()
        for keys, choice, values in self.effects:
            if (chosen := attrgetter(choice)(self)) in values:
                continue
            expected = f"{choice} = {any_of([show(value) for value in values])}"
            problems += [
                problem(expected, f"{choice} = {show(chosen)}", f"remove {key}", key)
                for key in keys
                if _is_given(self, key)
            ]
        raise_all(problems)
        return self

    def check_one_of(self, first: str, second: str) -> None:
        """Refuse both keys, or neither."""
        given = [key for key in (first, second) if getattr(self, key) is not None]
        if len(given) != 1:
            remedy = f"remove {first} or {second}" if given else f"add {first} or {second}"
            raise problem(f"one of {first}, {second}", " and ".join(given) or "no such key", remedy)


_TABLE = TypeVar("_TABLE", bound=Table)


def checked(table: type[_TABLE], where: str, **keys: Any) -> _TABLE:
    """Make a table of Python values. where: the table in messages. Raises ConfigError for the first problem."""
    try:
        return table.model_validate(keys)
    except ValidationError as error:
        raise explain(error, where, table) from None


def _is_given(table: Table, key: str) -> bool:
    outer, _, inner = key.partition(".")
    value = getattr(table, outer)
    if inner:
        return _is_given(value, inner)
    return bool(value != type(table).model_fields[outer].get_default(call_default_factory=True))


def settled(table: Table, *, later: set[str], idle: set[str]) -> dict[str, Any]:
    """Return the keys of a table that an identity holds, as JSON values.

    later: keys that are younger than results that exist. They are left out at their defaults, so that
        those results keep their identity.
    idle: keys from which no byte of a result follows.
    """
    unset = {name for name in later if not _is_given(table, name)}
    return table.model_dump(mode="json", exclude=idle | unset)


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
    "less_than_equal": "{le:.15g} at most",
}


def explain(error: ValidationError, where: str, table: type[Table]) -> ConfigError:
    """Return the first problem in the document `where` as one line, with the others as its notes (PEP 678).

    table: the class of the document. The remedy counts the others; the notes hold ten lines at most.
    """
    details = _without_echoes(error.errors(include_url=False), table)
    first, *others = [_line(detail, where, table) for detail in details]
    after = f" ({_more(len(others))} after this one)" if others else ""
    whole = ConfigError(
        first.where, expected=first.expected, found=first.found, remedy=f"{first.remedy}{after}"
    )
    beyond = len(details) - MOST_LISTED
    return with_notes([whole, *others][:MOST_LISTED], f"{where}: {_more(beyond)}" if beyond > 0 else "")


def _more(number: int) -> str:
    return f"{number} more problem{'s' if number > 1 else ''}"


def _without_echoes(details: list[ErrorDetails], table: type[Table]) -> list[ErrorDetails]:
    """Return the problems that follow from no others."""
    # A list whose items fail is reported as too short as well.
    inside = {each["loc"][:depth] for each in details for depth in range(len(each["loc"]))}
    # A key that is misspelt is missing as well.
    meant = {
        (*each["loc"][:-1], near)
        for each in details
        if each["type"] == "extra_forbidden" and (near := _nearest(each, table))
    }
    return [
        each
        for each in details
        if not (each["type"] == "too_short" and each["loc"] in inside)
        and not (each["type"] == "missing" and each["loc"] in meant)
    ]


def _line(detail: ErrorDetails, where: str, table: type[Table]) -> ConfigError:
    context = detail.get("ctx", {})
    if detail["type"] == "logitstore":
        expected, found, remedy = (str(context[part]) for part in ("expected", "found", "remedy"))
    elif detail["type"] == "extra_forbidden":
        key, owner = str(detail["loc"][-1]), _table_at(table, detail["loc"][:-1])
        expected, found = "a known key", show(key)
        remedy = dict(owner.elsewhere).get(key) or suggest(key, _keys(owner))
    else:
        expected = _EXPECTED.get(detail["type"], "a value that fits ({message})")
        expected = expected.format(message=detail["msg"], **context)
        found = "no such key" if detail["type"] == "missing" else show(detail["input"])
        remedy = _remedy(detail)
    location = _location(detail)
    return ConfigError(
        f"{where}: {location}" if location else where, expected=expected, found=found, remedy=remedy
    )


def _keys(table: type[Table]) -> list[str]:
    """List the keys of a table as a document has them."""
    return [field.alias or name for name, field in table.model_fields.items()]


def _nearest(detail: ErrorDetails, table: type[Table]) -> str | None:
    """Return the key that an unknown one is like."""
    near = get_close_matches(str(detail["loc"][-1]), _keys(_table_at(table, detail["loc"][:-1])), n=1)
    return near[0] if near else None


def _table_at(table: type[Table], location: Sequence[int | str]) -> type[Table]:
    """Return the class of the table at a location in a document of the class `table`."""
    for part in location:
        for name, field in table.model_fields.items():
            if part in (name, field.alias):
                table = next(_tables_in(field.annotation), table)
    return table


def _tables_in(annotation: object) -> Iterator[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    for argument in get_args(annotation):
        yield from _tables_in(argument)


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
    """Return `("student", 0, "train", "lr")` as `student[0].train.lr`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    key = str(detail.get("ctx", {}).get("key", "")) if detail["type"] == "logitstore" else ""
    if key:
        text += key if key.startswith("[") else f".{key}"
    return _one_line(text.removeprefix("."))
