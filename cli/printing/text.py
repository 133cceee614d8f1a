"""Results on stdout: tables of plain aligned text, or JSON.

Names and texts come from stores that others wrote. A character that would steer the terminal, or hide or
reorder text on it, is printed as an escape (`printable`).
"""

import dataclasses
import json
import math
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import click

from .encodings import echo, is_unicode

Cell = str | int | float | None
"""A value in a table. None is printed as an em dash, a number to the right."""
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that steer a terminal: control, format, surrogates, line separators."""
_NAMES, _NAME = 20, 80
"""Maximum number of names in a line, and of characters of each."""
_JOINERS = "\u200c\u200d"
"""Characters of category Cf that the spelling of some scripts needs."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape what steers a terminal in `text`: control characters, line ends, bidirectional marks.

    keep: characters that are not escaped.

    >>> printable("a\x1b[31m\nb\u202e"), printable("clàss ✓"), printable("a\nb", keep="\n")
    ('a\\x1b[31m\\nb\\u202e', 'clàss ✓', 'a\nb')
    """
    escaped = _steering_in(text) - set(keep)
    return text.translate({ord(one): one.encode("unicode_escape").decode() for one in escaped})


def _steering_in(text: str) -> set[str]:
    """Return the characters of a text, of any length, that would steer a terminal."""
    if text.isprintable():
        return set()
    return {one for one in set(text) - set(_JOINERS) if unicodedata.category(one) in _STEERING}


def shorten_names(names: Sequence[str]) -> str:
    """List the first names, and the number of the rest; a long one is cut.

    >>> shorten_names(["oak", "x" * 100]), shorten_names([str(n) for n in range(1000)])[-18:]
    ('oak, xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…', '18, 19, … 980 more')
    """
    cut = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in names[:_NAMES]]
    more = [f"… {len(names) - _NAMES:,} more"] if len(names) > _NAMES else []
    return ", ".join(cut + more)


def format_cell(value: Cell, form: str = "") -> str:
    """Format a cell by `form`; by default integers in groups of three, other numbers to four significant digits.

    >>> [format_cell(value) for value in (1200, 0.98765, 1e-9, 12345.6, None, "wide", True)]
    ['1,200', '0.9877', '1e-09', '12,346', '—', 'wide', 'yes']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if form:
        return format(value, form)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return printable(value)


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    r"""Format a table as lines, the heading first; columns are as wide as their cells, and nothing is cut.

    >>> print("\n".join(format_table(["model", "errors"], [["wide", 67], ["small", 1146]])))
    model  errors
    wide       67
    small   1,146
    """
    texts = [[format_cell(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numbers = [
        any(isinstance(row[index], int | float) for row in rows)
        and not any(isinstance(row[index], str | bool) for row in rows)
        for index in range(len(columns))
    ]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in texts
    ]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, title: str | None = None) -> None:
    """Print a table to stdout, its headings bold on a terminal; `title` is a line above it."""
    if title is not None:
        print_text(title)
    heading, *lines = format_table(columns, rows)
    echo("\n".join([click.style(heading, bold=True), *lines]))


def print_records(
    columns: Mapping[str, str], records: Sequence[Mapping[str, Any]], *, title: str | None = None
) -> None:
    """Print records as a table. columns: the key of each heading, and a format, as in "accuracy:.2%"."""
    keys = [key.partition(":") for key in columns.values()]
    rows = [
        [format_cell(record[key], form) if form else record[key] for key, _, form in keys]
        for record in records
    ]
    print_table(list(columns), rows, title=title)


def print_text(*lines: str) -> None:
    """Print each text to stdout as one line: a line end within it is escaped, as it may come from a store."""
    if lines:
        echo("\n".join(map(printable, lines)))


def print_json(value: Any) -> None:
    """Print dicts, lists, scalars, dataclasses, errors, paths and NumPy values as JSON; NaN becomes null.

    Where stdout lacks characters, JSON has its own escapes for them, which every program reads back.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=not is_unicode(sys.stdout), allow_nan=False)
    # JSON escapes characters below the space; others that steer a terminal occur in strings alone.
    echo(text.translate({ord(one): json.dumps(one)[1:-1] for one in _steering_in(text) - {"\n"}}))


def pick(value: object, *names: str) -> dict[str, Any]:
    """Return attributes of a value as a record.

    >>> pick(1j, "real", "imag")
    {'real': 0.0, 'imag': 1.0}
    """
    return {name: getattr(value, name) for name in names}


def print_todo(lines: list[str], *, compared: str = "", as_json: bool = False) -> None:
    """Print pending work, one line each. compared: what was looked at, for the line that there is none."""
    if as_json:
        print_json({"pending": lines})
    else:
        print_text(*(lines or [nothing_to_do("everything is done and unchanged", compared)]))


def nothing_to_do(state: str, compared: str = "") -> str:
    """Return the line of a command that has found its work done.

    compared: what of the transfer set was looked at to find that out.

    >>> nothing_to_do("wide captured already and unchanged", "labels of all 9 rows and the inputs of 1 compared")
    'nothing to do: wide captured already and unchanged (labels of all 9 rows and the inputs of 1 compared)'
    """
    return f"nothing to do: {state}" + (f" ({compared})" if compared else "")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = pick(value, *(field.name for field in dataclasses.fields(value)))
    elif isinstance(value, Exception):
        value = {"code": getattr(value, "code", None), **vars(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
