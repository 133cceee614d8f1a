"""The rules of writing that a test can hold: docs/writing.md says why, support/prose.py measures."""

import re
from pathlib import PurePosixPath

import pytest
from support.prose import MAX_LINE, read_docstrings, read_page
from support.tree import ROOT, python_files

PAGES = sorted(
    path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path.is_file()
)
GONE = (
    "nothing to do, said after",
    "each input is compared with what the teacher saw",
    "what has a small covariance is near",
    "is half an identity",
    "or word that there is none",
    "found it; drop one of the two",
    "longest that the gradient may be",
)
"""Sentences that nobody could read, each of which was rewritten."""


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_sentences_are_short_and_lines_are_wrapped(page: PurePosixPath) -> None:
    assert read_page((ROOT / page).read_text(encoding="utf-8")).problems == []


@pytest.mark.parametrize("path", python_files(ROOT), ids=str)
def test_docstrings_open_with_a_verb_or_a_noun(path: PurePosixPath) -> None:
    _, broken = read_docstrings((ROOT / path).read_text(encoding="utf-8"), str(path))
    assert not broken, "\n".join(map(str, broken))


def test_unreadable_sentences_are_gone() -> None:
    texts = {
        str(path): re.sub(r"\s+", " ", (ROOT / path).read_text(encoding="utf-8"))
        for path in [*PAGES, *python_files(ROOT)]
        if path.name != "writing.md"  # shows some of them beside the better one
    }
    assert len(texts) > 150
    assert [(path, gone) for path, text in texts.items() for gone in GONE if gone in text] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("word " * (MAX_LINE // 4), "line 1: more than 100 characters"),
        ("\n\n".join(["one " * 19 + "end."] * 6), "median sentence: at most 18 words, found 20"),
        ("\n\n".join(["One two."] * 6 + ["one " * 39 + "end."]), "90th percentile of sentences: at most 30"),
    ],
    ids=["long line", "long sentences", "some long sentences"],
)
def test_a_page_that_is_hard_to_read_is_noticed(text: str, problem: str) -> None:
    """Negative control."""
    assert any(problem in found for found in read_page(text).problems)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('"""Which blocks are missing?"""', "no questions"),
        ('"""What is missing."""', "a module or class opens with a noun"),
        ('def f():\n    """The blocks that are missing."""', "a function opens with a verb"),
        ('class A:\n    """How it is made."""', "a module or class opens with a noun"),
    ],
    ids=["question", "what", "function", "class"],
)
def test_a_docstring_that_opens_otherwise_is_noticed(source: str, rule: str) -> None:
    """Negative control."""
    _, broken = read_docstrings(source, "m.py")
    assert [each.rule for each in broken] == [rule]


def test_good_prose_passes() -> None:
    assert (
        read_page("A store holds logits. You read it with `open_store`.\n\n| a table | is exempt |").problems
        == []
    )
    source = '"""Blocks of a store."""\ndef f():\n    """Return the missing blocks."""'
    assert read_docstrings(source, "m.py") == (2, [])
