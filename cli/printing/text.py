"""Output of the commands on stdout: aligned tables (`print_table`), lines, or JSON (`print_json`).

Names and texts may come from stores of others: characters that steer a terminal, or hide or reorder its text, are printed as
escapes (`printable`).
"""

import dataclasses
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import click

Cell = str | int | float | None
"""Cell of a table. None is printed as an em dash; numbers are aligned to the right."""

_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that act instead of being seen: control, format, line separators."""

_JOINERS = "\u200c\u200d"
"""Characters of category Cf that some scripts need for spelling."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape the characters that steer a terminal: control characters, line ends, bidirectional marks.

    keep: characters that stay as they are.

    >>> printable("a\x1b[31m\nb\u202e"), printable("clàss ✓"), printable("a\nb", keep="\n")
    ('a\\x1b[31m\\nb\\u202e', 'clàss ✓', 'a\nb')
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character in keep or character in _JOINERS or unicodedata.category(character) not in _STEERING
        else character.encode("unicode_escape").decode()
        for character in text
    )


def format_cell(value: Cell) -> str:
    """Format a cell: whole numbers in groups of three, others to four significant digits.

    >>> [format_cell(value) for value in (1200, 0.98765, 1e-9, 12345.6, None, "wide", True)]
    ['1,200', '0.9877', '1e-09', '12,346', '—', 'wide', 'yes']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return printable(value)


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    r"""Format the lines of a table, the heading first; columns are as wide as needed, so that nothing is cut.

    >>> print("\n".join(format_table(["model", "errors"], [["wide", 67], ["small", 1146]])))
    model  errors
    wide       67
    small   1,146
    """
    texts = [[format_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, (column, *(row[index] for row in texts)))) for index, column in enumerate(columns)]
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
        for line in (list(columns), *texts)
    ]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, title: str | None = None) -> None:
    """Print a table to stdout. columns: headings. rows: a cell for each column. title: a line above it."""
    if title is not None:
        print_text(title)
    heading, *lines = format_table(columns, rows)
    click.echo(click.style(heading, bold=True))
    for line in lines:
        click.echo(line)


def print_text(text: str = "") -> None:
    """Print lines to stdout. Pass text from a store through `printable` first."""
    click.echo(printable(text, keep="\n"))


def print_json(value: Any) -> None:
    """Print a value to stdout as JSON, with null for NaN.

    value: of dicts, lists, scalars, dataclasses, paths and NumPy arrays and numbers.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    # JSON escapes control characters itself; the others that steer a terminal occur in strings alone.
    click.echo("".join(map(_json_escape, text)) if not text.replace("\n", "").isprintable() else text)


def _json_escape(character: str) -> str:
    """Return the character, or its escape in a JSON string."""
    return character if printable(character, keep="\n") == character else json.dumps(character)[1:-1]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
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


def print_todo(lines: list[str], *, as_json: bool = False) -> None:
    """Print what is to be done, a line each."""
    if as_json:
        print_json({"pending": lines})
    else:
        print_text("\n".join(lines) if lines else "nothing to do: everything is done and unchanged")
