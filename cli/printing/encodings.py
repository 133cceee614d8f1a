"""Output on a terminal, or in a log, whose encoding lacks a character.

A result is never lost for a dash. Punctuation of our own is replaced by ASCII (`—` by `-`, `±` by `+/-`), any other character
by its escape, so that two class names stay two: `caf\xe9`, `\u732b`. UTF-8 needs none of it.
"""

import codecs
import io
import sys
from typing import Final

SUBSTITUTES: Final = {
    "—": "-",
    "–": "-",
    "−": "-",
    "…": "...",
    "±": "+/-",
    "×": "x",
    "·": "*",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "²": "^2",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
}
"""ASCII for the characters of our own texts."""
_HANDLER: Final = "logitstore.substitute"


def substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Replace the characters that an encoding lacks, as an error handler of `codecs`.

    >>> codecs.register_error("substitute", substitute)
    >>> "47 % ± 1 — café 猫".encode("latin-1", "substitute")
    b'47 % \xb1 1 - caf\xe9 \\u732b'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    text = "".join(
        SUBSTITUTES.get(character) or character.encode("ascii", "backslashreplace").decode()
        for character in lacking
    )
    return text, error.end


def is_unicode(stream: object) -> bool:
    """Return whether a stream has every character. A stream without an encoding takes text as it is."""
    encoding = getattr(stream, "encoding", None)
    if not encoding:
        return True
    try:
        return codecs.lookup(encoding).name.startswith("utf")
    except LookupError:
        return False


def make_printable() -> None:
    """Make stdout and stderr take every text, whatever their encoding."""
    codecs.register_error(_HANDLER, substitute)
    for stream in (sys.stdout, sys.stderr):
        # UTF-8 lacks only halves of surrogate pairs, which stand for bytes of a path that are no text.
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or not is_unicode(stream)):
            stream.reconfigure(errors=_HANDLER)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line to stdout or stderr.

    Without its `file`, `click.echo` would write UTF-8 to an ASCII stream.
    """
    import click

    click.echo(text, file=sys.stderr if err else sys.stdout)
