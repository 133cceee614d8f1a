"""Measures of prose: sentence lengths of Markdown, first words of docstrings, line lengths.

`python -m support.prose FILE …` prints what the rules of docs/writing.md find in Markdown and Python files.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

MAX_LINE = 100
"""Characters of the longest line of a Markdown file; tables and links that cannot be broken are exempt."""
MEDIAN_WORDS = 18
"""Words of the median sentence of a Markdown file, at most."""
LONG_WORDS = 30
"""Words of the 90th percentile of the sentences of a Markdown file, at most."""
VERBS = frozenset(Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8").split())
"""Verbs that a function's docstring may open with. Add the one that you miss."""


@dataclass(frozen=True)
class Page:
    """What was measured of a Markdown file."""

    sentences: list[int]
    """Words of each sentence of running text."""
    long_lines: list[int]
    """Numbers of lines above `MAX_LINE` characters."""

    @property
    def problems(self) -> list[str]:
        """Each rule that the page breaks, with the figure."""
        found = [f"line {number}: more than {MAX_LINE} characters" for number in self.long_lines]
        if len(self.sentences) >= 5:
            middle, long = median(self.sentences), quantiles(self.sentences, n=10)[-1]
            if middle > MEDIAN_WORDS:
                found.append(f"median sentence: at most {MEDIAN_WORDS} words, found {middle:g}")
            if long > LONG_WORDS:
                found.append(f"90th percentile of sentences: at most {LONG_WORDS} words, found {long:g}")
        return found


def read_page(text: str) -> Page:
    """Measure a Markdown text: code blocks, tables, headings and comments are left out of the sentences.

    >>> read_page("One two three. Four five.\\n\\n    code is not counted\\n").sentences
    [3, 2]
    """
    lines, prose, fenced = text.splitlines(), [], False
    long_lines = []
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
            prose.append("")
            continue
        unbreakable = line.lstrip().startswith("|") or "://" in line
        if len(line) > MAX_LINE and not fenced and not unbreakable:
            long_lines.append(number)
        left_out = fenced or line.startswith(("    ", "#", "<", "!", "[", "---", "???", ":::")) or "|" in line
        item = re.match(r"\s*(?:[-*+]|\d+\.)\s+", line)
        if item and not left_out:
            prose.append("")  # an item begins a sentence of its own
        prose.append("" if left_out else line[item.end() if item else 0 :])
    return Page(list(_sentence_lengths("\n".join(prose))), long_lines)


def _sentence_lengths(text: str) -> Iterator[int]:
    """Yield the number of words of each sentence."""
    for paragraph in re.split(r"\n\s*\n", text):
        plain = re.sub(r"`[^`]*`", "code", paragraph)
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        for sentence in re.split(r"(?<=[.!?])[\s*_)]+(?=[A-Z0-9\"“(*_`]|code)", plain):
            words = re.findall(r"[A-Za-z0-9][\w'’.,/%-]*", sentence)
            if words:
                yield len(words)


@dataclass(frozen=True)
class Docstring:
    """The first line of a docstring that breaks a rule."""

    place: str
    """`file:line name`"""
    text: str
    """The first line."""
    rule: str
    """Which rule it breaks."""

    def __str__(self) -> str:
        return f"{self.place}: {self.rule}: {self.text!r}"


def read_docstrings(source: str, file: str) -> tuple[int, list[Docstring]]:
    """Count the docstrings of a Python source, and list those whose first line breaks a rule.

    >>> read_docstrings('def f():\\n    "The blocks."\\n', "m.py")[1][0].rule
    'a function opens with a verb'
    >>> read_docstrings('def f():\\n    "Return the blocks."\\n', "m.py")
    (1, [])
    """
    count, found = 0, []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        count += 1
        line = text.splitlines()[0].strip()
        name = getattr(node, "name", "module")
        rule = _broken_rule(node, line)
        if rule is not None:
            found.append(Docstring(f"{file}:{getattr(node, 'lineno', 1)} {name}", line, rule))
    return count, found


def _broken_rule(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, line: str
) -> str | None:
    """Return the rule that a docstring's first line breaks, or None."""
    first = re.match(r"[A-Za-z]*", line)
    word = first[0] if first else ""
    if line.endswith("?"):
        return "no questions"
    if isinstance(node, ast.Module | ast.ClassDef):
        opens = word.lower() in {
            "what",
            "who",
            "where",
            "which",
            "how",
            "whether",
            "that",
            "when",
            "why",
            "is",
            "does",
            "may",
        }
        return "a module or class opens with a noun" if opens else None
    decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
    if decorators & {"property", "cached_property", "setter", "overload"}:
        return None
    return None if word.lower() in VERBS else "a function opens with a verb"


def main(arguments: list[str]) -> int:
    """Print what the rules find in the files, and return 1 where they find something."""
    status = 0
    for name in arguments:
        path = Path(name)
        files = sorted(path.rglob("*.py")) + sorted(path.rglob("*.md")) if path.is_dir() else [path]
        for file in files:
            text = file.read_text(encoding="utf-8")
            found = (
                [f"{file}: {problem}" for problem in read_page(text).problems]
                if file.suffix == ".md"
                else list(map(str, read_docstrings(text, str(file))[1]))
            )
            status |= bool(found)
            print("\n".join(found), end="\n" if found else "")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
