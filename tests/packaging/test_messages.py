"""The file of whole sentences: nothing stale in it, and a test whose sentence differs fails."""

import pytest
from support.messages import Sentences, difference, stale


def test_every_entry_belongs_to_a_test(stale_messages: list[str]) -> None:
    assert not stale_messages, (
        f"entries of tests/messages.txt without a test; run `make messages`: {stale_messages}"
    )


HERE = "tests/packaging/test_messages.py"
TESTS = {f"{HERE}::one": True, f"{HERE}::two": True, f"{HERE}::silent": False}


@pytest.mark.parametrize(
    ("entry", "is_stale"),
    [
        pytest.param(f"{HERE}::one", False, id="test"),
        pytest.param(f"{HERE}::three", True, id="test is gone"),
        pytest.param(f"{HERE}::silent", True, id="test compares none"),
        pytest.param("tests/packaging/gone.py::one", True, id="file is gone"),
        pytest.param("tests/packaging/test_wheel.py::one", False, id="file not collected"),
    ],
)
def test_an_entry_without_a_test_is_stale(entry: str, is_stale: bool) -> None:
    """Negative control of the test above."""
    assert stale([entry], TESTS) == ([entry] if is_stale else [])


def test_nothing_is_said_of_a_file_that_was_asked_for_in_part() -> None:
    assert stale([f"{HERE}::three"], TESTS, [HERE]) == []


def failure(sentences: Sentences, *messages: str) -> str:
    """Return the words with which a comparison fails."""
    with pytest.raises(pytest.fail.Exception) as caught:
        for message in messages:
            sentences(message)
        sentences.finish()
    return str(caught.value)


def test_another_sentence_fails_with_the_difference_and_the_command() -> None:
    """Negative control: both sentences and the command are shown."""
    said = failure(Sentences("a.py::test", ["found 3 rows"], {}, update=False), "found 4 rows")
    assert "- found 3 rows" in said
    assert "+ found 4 rows" in said
    assert "`make messages`" in said


def test_a_sentence_that_the_file_lacks_fails() -> None:
    said = failure(Sentences("a.py::test", ["one"], {}, update=False), "one", "two")
    assert said == "a.py::test: a new sentence\n+ two\n`make messages` accepts what is marked with +"


def test_a_test_that_gives_too_few_fails() -> None:
    said = failure(Sentences("a.py::test", ["one", "two"], {}, update=False), "one")
    assert said.endswith("has more sentences than the test: ['two']")


def test_with_the_option_nothing_fails_and_everything_is_noted() -> None:
    sentences = Sentences("a.py::test", ["one", "two"], {"tmp": "/x"}, update=True)
    sentences("/x/a: three")
    sentences.finish()
    assert sentences.given == ["{tmp}/a: three"]
    assert difference("a.py::test", ["{tmp}/a: three"], sentences.given) is None
