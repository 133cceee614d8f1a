"""Text of an experiment file, and the character that a syntax error comes from.

Editors of Windows begin a file with a byte order mark, which is skipped. Pasted pages bring no-break spaces and typographic
quotes, which look right and are no TOML: an error names them with their column.
"""

import codecs
import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Any, Final

from ...storage.backends.posix import read_plain
from ...storage.errors import ConfigError

_WIDE: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Byte order marks; that of UTF-32 begins as that of UTF-16."""
_INSTEAD: Final = {
    '"': "“”„‟«»″＂",
    "'": "‘’‚‛‹›′´｀＇",
    "-": "‐‑‒–—−－",
    "=": "＝",
    "[": "［",
    "]": "］",
    "{": "｛",
    "}": "｝",
    ",": "，、",
}
"""Characters that TOML has, and others that look like them."""
_LOOKALIKES: Final = {other: plain for plain, others in _INSTEAD.items() for other in others}
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
"""Unicode categories of characters that nobody sees."""
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"|' r"'[^']*'")
_MOST_BYTES: Final = 1 << 20
"""Bytes of an experiment file."""
_MOST_LEVELS: Final = 32
"""Levels of lists and tables, and names of a dotted key."""
_NAME_AND_DOT: Final = r"""(?:[\w-]++|"[^"\n]*"|'[^'\n]*')[ \t]*+\.[ \t]*+"""
_LONG_KEY: Final = re.compile(rf"(?<![\w-])(?:{_NAME_AND_DOT}){{{_MOST_LEVELS}}}")
_PLACE: Final = re.compile(r"\(at line (\d+), column (\d+)\)")


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark and with the line ends of TOML.

    Raises OSError, and ConfigError for a file that is not UTF-8.
    """
    content = read_plain(path)
    if len(content) > _MOST_BYTES:
        raise _beyond(str(path), f"at most {_MOST_BYTES:,} bytes", f"{len(content):,} bytes")
    for mark, name in _WIDE:
        if content.startswith(mark):
            raise _not_utf8(path, f"{name} text, which begins with the byte order mark {mark.hex(' ')}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise _not_utf8(path, found) from error
    if text[:2].count("\0"):
        raise _not_utf8(path, "a zero byte, as in UTF-16 text")
    return text if "\n" in text else text.replace("\r", "\n")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse a TOML document within the limits of experiments. Raises ConfigError, TOMLDecodeError."""
    if (match := _LONG_KEY.search(text)) is not None:  # the parser takes the square of its length
        line = text.count("\n", 0, match.start()) + 1
        raise _beyond(where, f"keys of at most {_MOST_LEVELS} names", f"a longer key in line {line}")
    too_deep = _beyond(where, f"at most {_MOST_LEVELS} levels of lists and tables", "more levels")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise too_deep from None
    except ValueError:  # of Python's own limit
        raise _beyond(where, "numbers of at most 4,300 digits", "a longer number") from None
    if _is_deeper(document, _MOST_LEVELS):
        raise too_deep
    return document


def _beyond(where: str, expected: str, found: str) -> ConfigError:
    return ConfigError(where, expected=expected, found=found, remedy="shorten the file")


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether lists and tables are nested deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(item, levels - 1) for item in inner))


def syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> ConfigError:
    """Return the error of a file that is no TOML, with the character that it comes from if that is known."""
    reason, _, place = str(error).partition(" (at ")
    numbers = _PLACE.search(str(error))
    if numbers is not None:
        lines = text.replace("\r\n", "\n").split("\n")
        number = int(numbers[1])
        # A character that is not seen may end a line too early: the error is then found in the next one.
        for line in (number, number - 1):
            column = odd_column(lines[line - 1]) if 0 < line <= len(lines) else None
            if column is not None:
                character = lines[line - 1][column - 1]
                return ConfigError(
                    f"{path}: line {line}, column {column}",
                    expected="TOML",
                    found=_named(character),
                    remedy=_remedy(character),
                )
    return ConfigError(
        f"{path}: {place.rstrip(')') or 'whole file'}",
        expected="TOML",
        found=f"a syntax error ({reason[:1].lower()}{reason[1:]})",
        remedy="correct this line or the one before",
    )


def odd_column(line: str) -> int | None:
    """Return the column, from 1, of a character that looks like one of TOML and is none; None without one.

    Strings and comments may hold any character. A string that is not closed may end in a typographic quote.

    >>> odd_column("lr\\u00a0= 1"), odd_column('name = “wide”'), odd_column('name = "“wide”" # “”'), odd_column('name = "wide”')
    (3, 8, None, 13)
    """
    bare = _STRING.sub(lambda match: " " * len(match[0]), line)
    code, _, _ = bare.partition("#")
    odd = [
        column
        for column, character in enumerate(code, 1)
        if character in _LOOKALIKES
        or (character not in " \t" and unicodedata.category(character) in _INVISIBLE)
    ]
    # An odd character in a string counts only if that string is open, and is then more likely its end.
    opened = min((at for at in (code.find('"'), code.find("'")) if at >= 0), default=len(code))
    before = [column for column in odd if column <= opened]
    return before[0] if before else odd[-1] if odd else None


def _named(character: str) -> str:
    """Return a character by code and name.

    >>> _named("\\u00a0"), _named("\\r")
    ('U+00A0 NO-BREAK SPACE', 'U+000D, a control character')
    """
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X}" + (f" {name}" if name else ", a control character")


def _remedy(character: str) -> str:
    if character == "\r":
        return "save the file with the line ends of Unix or Windows"
    if character in _LOOKALIKES:
        return f"type {_LOOKALIKES[character]} instead"
    return "type a space instead" if unicodedata.category(character) == "Zs" else "delete it"


def _not_utf8(path: Path, found: str) -> ConfigError:
    return ConfigError(str(path), expected="UTF-8 text", found=found, remedy="save the file as UTF-8")
