"""The docstrings as Markdown: arguments become a list, doctests become code.

Ours are plain text: "rows: (n,) int64. seed: of the order. Raises ConfigError if …". Markdown would run the
arguments together, and take a doctest for a quotation.
"""

import re
from typing import Any

import griffe

_CODE = (" ", "```", ">>>", "|")
"""Beginnings of paragraphs that are not running text."""


def as_markdown(text: str, arguments: list[str]) -> str:
    r"""Return a docstring with a list item for each argument that it explains, and with fenced doctests.

    >>> as_markdown("Add.\n\na: one. b: two. Raises ValueError if not.", ["a", "b"])
    'Add.\n\n- `a`: one.\n- `b`: two.\n\nRaises ValueError if not.'
    """
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if paragraph.lstrip().startswith(">>>"):
            paragraphs.append(f"```pycon\n{paragraph.rstrip()}\n```")
        elif paragraph.startswith(_CODE):
            paragraphs.append(paragraph)
        else:
            errors = re.split(r"(?:^|(?<=[.;])[ \n])(?=Raises [A-Z])", paragraph)
            paragraphs += [_listed(part, arguments) for part in errors if part]
    return "\n\n".join(paragraphs)


def _listed(paragraph: str, arguments: list[str]) -> str:
    """Return a paragraph whose explanations of arguments are items of a list."""
    if not arguments:
        return paragraph
    names = "|".join(map(re.escape, arguments))
    # An explanation begins a line or follows a sentence; one may hold for several: "a, b: two numbers."
    begins = rf"(?:^|(?<=[.;])[ \n])(?=(?:{names})(?:, (?:{names}))*: )"
    first, *items = re.split(begins, paragraph, flags=re.MULTILINE)
    # A sentence that begins a line after the last item is no part of it.
    last, _, rest = (
        items[-1].partition(".\n") if items and re.search(r"\.\n[A-Z]", items[-1]) else ("", "", "")
    )
    if last:
        items[-1] = f"{last}."
    listed = [re.sub(r"^([\w, ]+): ", lambda found: f"- `{found[1]}`: ", item.strip()) for item in items]
    return "\n\n".join(part for part in (first.strip(), "\n".join(listed), rest) if part)


class PlainText(griffe.Extension):
    """The extension that griffe loads."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            arguments = [each.name for each in obj.parameters] if isinstance(obj, griffe.Function) else []
            obj.docstring.value = as_markdown(obj.docstring.value, arguments)
