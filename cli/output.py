"""How does a command print its result?

On stdout, as a table of plain aligned text (`print_table`) or as JSON (`print_json`), and nothing else goes
there. A heading is bold where stdout is a terminal.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import click

Cell = str | int | float | None
"""What may stand in a table. None is printed as an em dash, a number to the right."""


def format_cell(value: Cell) -> str:
    """A cell as text: whole numbers in groups of three, others to four significant digits.

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
    return value


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    r"""Lines of a table, the first being the heading; as wide as it needs, so that nothing is cut.

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
    """Print a table to stdout.

    columns: headings.
    rows: as many cells each as there are columns.
    title: a line above it.
    """
    if title is not None:
        click.echo(title)
    heading, *lines = format_table(columns, rows)
    click.echo(click.style(heading, bold=True))
    for line in lines:
        click.echo(line)


def print_text(text: str = "") -> None:
    """Print a line, or several, to stdout."""
    click.echo(text)


def print_json(value: Any) -> None:
    """Print a value to stdout as JSON, which has no NaN: null stands for it.

    value: of dicts, lists, scalars, dataclasses, paths and NumPy arrays and numbers.
    """
    click.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


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
