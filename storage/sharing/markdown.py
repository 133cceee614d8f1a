"""Texts of others in Markdown and YAML: shown as they are, and read as markup by no program.

Whatever could begin markup becomes a numeric entity, which Markdown never takes for structure. A backslash would not
do: web sites look for formulas ($…$, \\(…\\)) before they read the Markdown.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

_PLAIN: Final = frozenset(" ,.;:'\"()?/%-+")
"""Punctuation that stays; all other characters of ASCII but letters and digits become entities."""
_STEERING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that are not seen, or hide and reorder others."""
_JOINERS: Final = "\u200c\u200d"
"""Characters of category Cf that the spelling of some scripts needs."""
_URL: Final = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9._~:/?#@!,;=%+-]{0,500}[A-Za-z0-9/]")
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAIL: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,63}}@{_LABEL}(\.{_LABEL}){{1,8}}")
_ITEM: Final = re.compile(r"(\d{1,9})([.)])")


def inline(text: str) -> str:
    r"""Return a text of one line that Markdown and HTML show as it is; white space becomes single spaces.

    Whole words that are web or mail addresses become links to just these.

    >>> inline("# <b>50\u202e% | of</b>\n`x`"), inline("1. see https://host/a_b or a@host.org")
    ('&#35; &#60;b&#62;50&#92;u202e% &#124; of&#60;/b&#62; &#96;x&#96;', '1&#46; see <https://host/a_b> or <a@host.org>')
    """
    words = " ".join(map(_word, text.split()))
    # At the beginning of a line some of the punctuation that stays begins a list, a rule or a heading.
    if words[:1] in _PLAIN and words:
        words = _entity(words[0]) + words[1:]
    return (
        _ITEM.sub(lambda found: found[1] + _entity(found[2]), words, count=1) if _ITEM.match(words) else words
    )


def paragraphs(text: str) -> list[str]:
    r"""Return the paragraphs of a text, which blank lines part, each as `inline`, with blank lines between.

    >>> paragraphs("one\ntwo\n \n---\nthree")
    ['one two', '', '&#45;-- three']
    """
    found = [inline(part) for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()]
    return [line for part in found for line in ("", part)][1:]


def _word(word: str) -> str:
    if _URL.fullmatch(word) or _MAIL.fullmatch(word):
        return f"<{word}>"
    return "".join(map(_character, word))


def _character(one: str) -> str:
    if one.isascii():
        if one.isalnum() or one in _PLAIN:
            return one
        return _entity(one) if one.isprintable() else _named(one)
    is_hidden = unicodedata.category(one) in _STEERING and one not in _JOINERS
    return _named(one) if is_hidden else one


def _entity(one: str) -> str:
    return f"&#{ord(one)};"


def _named(one: str) -> str:
    """Return the number of a character that is not to be seen: its escape in Python."""
    return _entity("\\") + one.encode("unicode_escape", "surrogatepass").decode().removeprefix("\\")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines. Cells are Markdown of one line, without a bar.

    >>> table(["model", "errors"], [["wide", "67"]])
    ['| model | errors |', '| --- | --- |', '| wide | 67 |']
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def quoted(text: str) -> str:
    r"""Return a text as a double-quoted scalar of YAML, on one line.

    >>> quoted('a "b"\nc: \U0001f600\u2028')
    '"a \\"b\\"\\nc: 😀\\u2028"'
    """
    return f'"{"".join(map(_scalar, text))}"'


def _scalar(one: str) -> str:
    if one in '"\\':
        return f"\\{one}"
    if one.isprintable() and one != "\ufeff":
        return one
    # YAML has the escapes that Python makes: \n, \r, \t, \xXX, \uXXXX and \UXXXXXXXX.
    return one.encode("unicode_escape", "surrogatepass").decode()
