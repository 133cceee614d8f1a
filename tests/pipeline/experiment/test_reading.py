"""Experiment files of other editors: read as they are meant, or one line that names the character and its column."""

from pathlib import Path

import pytest

from logitstore.pipeline.experiment.document import load_experiment
from logitstore.storage.errors import ConfigError

TEXT = """[transfer_set]
factory = "logitstore.pipeline.datasets:digits"
args = { subset = "0:64" } # “a note”
[[teacher]]
name = "t"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [4] }
train = { lr = 1e-2, epochs = 1 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "e.toml"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
    ],
    ids=["plain", "byte order mark", "windows", "old mac"],
)
def test_marks_and_line_ends_do_not_matter(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert load_experiment(file).teacher_members()[0].name == "t"


@pytest.mark.parametrize(
    ("old", "new", "place", "found", "remedy"),
    [
        ("lr =", "lr\u00a0=", "line 8, column 13", "U+00A0 NO-BREAK SPACE", "type a space instead"),
        ("lr =", "lr\u3000=", "line 8, column 13", "U+3000 IDEOGRAPHIC SPACE", "type a space instead"),
        ("lr =", "\u200blr =", "line 8, column 11", "U+200B ZERO WIDTH SPACE", "delete it"),
        (
            "[[teacher]]",
            "\ufeff[[teacher]]",
            "line 4, column 1",
            "U+FEFF ZERO WIDTH NO-BREAK SPACE",
            "delete it",
        ),
        ('"t"', "“t”", "line 5, column 8", "U+201C LEFT DOUBLE QUOTATION MARK", 'type " instead'),
        ('"t"', "„t“", "line 5, column 8", "U+201E DOUBLE LOW-9 QUOTATION MARK", 'type " instead'),
        ('"t"', "‘t’", "line 5, column 8", "U+2018 LEFT SINGLE QUOTATION MARK", "type ' instead"),
        ('"t"', '"t”', "line 5, column 10", "U+201D RIGHT DOUBLE QUOTATION MARK", 'type " instead'),
        ("1e-2", "1e−2", "line 8, column 18", "U+2212 MINUS SIGN", "type - instead"),
        ("lr =", "lr ＝", "line 8, column 14", "U+FF1D FULLWIDTH EQUALS SIGN", "type = instead"),
        (
            'name = "t"\n',
            'name = "t"\r',
            "line 5, column 11",
            "U+000D, a control character",
            "save the file with the line ends of Unix or Windows",
        ),
        ('"t"\n', '"t"\u2028', "line 5, column 11", "U+2028 LINE SEPARATOR", "delete it"),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
def test_a_character_that_is_no_toml_is_named(
    file: Path, old: str, new: str, place: str, found: str, remedy: str, ends: str
) -> None:
    file.write_bytes(TEXT.replace(old, new).replace("\n", ends).encode())
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    assert caught.value.where == f"{file}: {place}"
    assert (caught.value.expected, caught.value.found, caught.value.remedy) == ("TOML", found, remedy)


@pytest.mark.parametrize(
    ("encoding", "mark", "found"),
    [
        ("utf-16-le", b"\xff\xfe", "UTF-16 text, which begins with the byte order mark ff fe"),
        ("utf-16-be", b"\xfe\xff", "UTF-16 text, which begins with the byte order mark fe ff"),
        ("utf-32-le", b"\xff\xfe\0\0", "UTF-32 text, which begins with the byte order mark ff fe 00 00"),
        ("utf-16-le", b"", "a zero byte, as in UTF-16 text"),
        ("latin-1", b"# \xe9\n", "byte 0xe9 at offset 2"),
    ],
)
def test_text_of_another_encoding_is_named(file: Path, encoding: str, mark: bytes, found: str) -> None:
    file.write_bytes(mark + TEXT.replace("“", "'").replace("”", "'").encode(encoding))
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    assert (caught.value.expected, caught.value.found) == ("UTF-8 text", found)


def test_a_plain_error_is_told_as_before(file: Path) -> None:
    """Negative control: odd characters in strings and comments are blamed for nothing."""
    file.write_text(TEXT.replace("lr =", "lr"), encoding="utf-8")
    with pytest.raises(ConfigError, match="found a syntax error"):
        load_experiment(file)
    file.write_text(TEXT.replace('"0:64" }', '"“0:64”" '), encoding="utf-8")
    with pytest.raises(ConfigError, match="found a syntax error"):
        load_experiment(file)
