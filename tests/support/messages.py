"""Whole sentences of messages, kept in tests/messages.txt and compared by the fixture `sentence`.

A test gives a message to the fixture; the file holds it under the id of the test. After a change of prose
`make messages` rewrites the file, and `git diff` shows every sentence that changed.

    tests/cli/test_bad_input.py::test_a_misspelt_key
        {tmp}/small.toml: student[0].temprature: expected a known key, found 'temprature'; …

Tests may run in several processes. What they gave travels with their reports, and one process writes.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

FILE: Final = Path(__file__).resolve().parent.parent / "messages.txt"
OPTION: Final = "--update-messages"
COMMAND: Final = "make messages"
GIVEN: Final = "sentences"
"""Name of the property of a test's report that carries what it gave."""
STALE: Final = "stale"
"""Name of the property that carries entries without a test."""
HEAD: Final = f"# Whole sentences, by the test that compares them. `{COMMAND}` rewrites this file.\n"
INDENT: Final = "    "

Entries = dict[str, list[str]]
"""Id of a test -> its sentences, in the order in which the test gives them."""


def read(text: str) -> Entries:
    """Return the entries of the file.

    >>> read("# head\\n\\na.py::test\\n    one\\n    two\\n")
    {'a.py::test': ['one', 'two']}
    """
    entries: Entries = {}
    test = ""
    for line in text.splitlines():
        if line.startswith(INDENT):
            entries[test].append(line.removeprefix(INDENT))
        elif line and not line.startswith("#"):
            test = line
            entries[test] = []
    return entries


def written(entries: Mapping[str, list[str]]) -> str:
    """Return the text of the file.

    >>> read(written({"b.py::test": ["one"], "a.py::test": ["two"]}))
    {'a.py::test': ['two'], 'b.py::test': ['one']}
    """
    blocks = ["\n".join([test, *(INDENT + line for line in entries[test])]) for test in sorted(entries)]
    return "\n".join([HEAD, *(block + "\n" for block in blocks)])


def name_of(node: str) -> str:
    """Return the id of a test without the group that xdist adds.

    >>> name_of("tests/a.py::test_b[c]@ranks"), name_of("tests/a.py::test_b[c@d]")
    ('tests/a.py::test_b[c]', 'tests/a.py::test_b[c@d]')
    """
    return re.sub(r"@[^@\]/]*$", "", node)


def neutral(text: str, places: Mapping[str, object]) -> str:
    """Return a message as one line with places of this machine by name, and without digests.

    >>> neutral("/tmp/x7/a: found sha256:0123456789abcdef, two\\nlines", {"tmp": "/tmp/x7"})
    '{tmp}/a: found sha256:{hex}, two\\\\nlines'
    """
    for name, value in places.items():
        text = text.replace(str(value), f"{{{name}}}")
    return re.sub(r"\b(?=[0-9]*[a-f])[0-9a-f]{12,}\b", "{hex}", text).replace("\n", "\\n")


def difference(test: str, expected: list[str], given: list[str]) -> str | None:
    """Return how given sentences differ from those of the file, with the command that accepts them, or None."""
    if expected == given:
        return None
    head = (
        f"{test}: the sentences differ from those of {FILE.name}" if expected else f"{test}: a new sentence"
    )
    lines = difflib.ndiff(expected, given)
    return "\n".join([head, *(line.rstrip() for line in lines), f"`{COMMAND}` accepts what is marked with +"])


class Line(str):
    """One line of an error, with its four parts by name.

    >>> line = Line("a.toml: lr: expected a number above 0, found -1; give a positive one")
    >>> line.where, line.expected, line.found, line.remedy
    ('a.toml: lr', 'a number above 0', '-1', 'give a positive one')
    """

    __slots__ = ()

    @property
    def parts(self) -> re.Match[str] | None:
        """The four parts, or None for a line without them."""
        return re.fullmatch(
            r"(?:(?P<where>.*?): )?expected (?P<expected>.*?), found (?P<found>.*?); (?P<remedy>.*)", self
        )

    def _part(self, name: str) -> str:
        parts = self.parts
        assert parts is not None, f"no line of an error: {self}"
        return parts[name] or ""

    @property
    def where(self) -> str:
        """The place."""
        return self._part("where")

    @property
    def expected(self) -> str:
        """The value that was expected."""
        return self._part("expected")

    @property
    def found(self) -> str:
        """The value that was found."""
        return self._part("found")

    @property
    def remedy(self) -> str:
        """The command or key that helps."""
        return self._part("remedy")


def stale(entries: Iterable[str], collected: Mapping[str, bool], partly: Iterable[str] = ()) -> list[str]:
    """Return the entries of which no test gives the sentences.

    Args:
        entries: ids of the file.
        collected: id of each test that pytest has found -> whether it uses the fixture.
        partly: files of which only some tests were asked for; nothing is said of these.
    """
    files = {test.partition("::")[0] for test in collected} - set(partly)
    return [
        test
        for test in entries
        if not collected.get(test)
        and (test.partition("::")[0] in files or not (FILE.parent.parent / test.partition("::")[0]).exists())
    ]


class Sentences:
    """Sentences of one test, compared with the file as they come."""

    def __init__(self, test: str, expected: list[str], places: Mapping[str, object], update: bool) -> None:
        self.given: list[str] = []
        self._test = test
        self._expected = expected
        self._places = places
        self._update = update

    def __call__(self, message: object, **places: object) -> None:
        """Compare a message (or an error) with the next sentence of this test; places: name -> path of this run."""
        self.given.append(neutral(str(message), {**places, **self._places}))
        number = len(self.given)
        wrong = difference(self._test, self._expected[number - 1 : number], self.given[-1:])
        if wrong is not None and not self._update:
            pytest.fail(wrong, pytrace=False)

    def finish(self) -> None:
        """Fail where the file holds sentences that the test did not give."""
        missing = self._expected[len(self.given) :]
        if missing and not self._update:
            pytest.fail(
                f"{self._test}: {FILE.name} has more sentences than the test: {missing}", pytrace=False
            )


def merged(entries: Entries, properties: Iterable[tuple[str, Any]]) -> Entries:
    """Return the entries with what tests that passed gave, and without those that are stale.

    >>> merged({"a": ["old"], "b": ["gone"]}, [(GIVEN, ["a", ["new"]]), (STALE, ["b"])])
    {'a': ['new']}
    """
    result = dict(entries)
    for name, value in properties:
        if name == GIVEN:
            result[value[0]] = value[1]
        elif name == STALE:
            for test in value:
                result.pop(test, None)
    return {test: sentences for test, sentences in result.items() if sentences}


# Hooks and fixtures, which tests/conftest.py imports


@pytest.fixture
def sentence(request: pytest.FixtureRequest) -> Iterator[Sentences]:
    """Compare a message with its entry in tests/messages.txt; `make messages` rewrites the entries."""
    test = name_of(request.node.nodeid)
    places = {"tmp": request.getfixturevalue("tmp_path")} if "tmp_path" in request.fixturenames else {}
    update = bool(request.config.getoption(OPTION))
    given = Sentences(test, request.config.stash[_ENTRIES].get(test, []), places, update)
    # The list is filled while the test runs; its report carries what is there at its end.
    request.node.user_properties.append((GIVEN, [test, given.given]))
    yield given
    if request.node.stash.get(_PASSED, False):
        given.finish()


@pytest.fixture
def stale_messages(request: pytest.FixtureRequest) -> list[str]:
    """Return the entries of tests/messages.txt without a test; with --update-messages they are dropped."""
    config = request.config
    partly = {argument.partition("::")[0] for argument in config.args if "::" in argument}
    found = stale(config.stash[_ENTRIES], config.stash[_COLLECTED], partly)
    if config.getoption(OPTION):
        request.node.user_properties.append((STALE, found))
        return []
    return found


_ENTRIES = pytest.StashKey[Entries]()
_COLLECTED = pytest.StashKey[dict[str, bool]]()
_PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites the file."""
    parser.addoption(
        OPTION, action="store_true", help="run the tests that compare sentences, and rewrite them"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the file, once a process."""
    config.stash[_ENTRIES] = read(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note every test before any is deselected; with the option, keep those that compare sentences."""
    uses = {name_of(item.nodeid): {"sentence", "stale_messages"} & set(_fixtures(item)) for item in items}
    config.stash[_COLLECTED] = {name: "sentence" in fixtures for name, fixtures in uses.items()}
    if config.getoption(OPTION):
        config.hook.pytest_deselected(items=[item for item in items if not uses[name_of(item.nodeid)]])
        items[:] = [item for item in items if uses[name_of(item.nodeid)]]


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note for the fixture whether the test itself passed."""
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed  # type: ignore[attr-defined]
    return report


def rewrite(terminalreporter: Any) -> None:
    """Rewrite the file from what the tests gave, where that was asked for."""
    config = terminalreporter.config
    if not config.getoption(OPTION):
        return
    passed = terminalreporter.stats.get("passed", [])
    before = config.stash[_ENTRIES]
    entries = merged(before, [one for report in passed for one in report.user_properties])
    changed = sum(entries.get(test) != before.get(test) for test in {*entries, *before})
    FILE.write_text(written(entries), encoding="utf-8")
    terminalreporter.write_line(f"{FILE.name}: {len(entries)} entries, {changed} of them changed")
