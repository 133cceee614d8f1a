"""Output in any encoding: nothing that was computed is lost for the sake of a dash, and two names stay two."""

import codecs
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import logitstore
from logitstore.cli.printing import encodings
from logitstore.cli.printing.encodings import SUBSTITUTES, make_printable, substitute
from logitstore.cli.printing.text import print_json, print_table, print_text

ENCODINGS = ["ascii", "latin-1", "iso8859-15", "koi8-r", "cp850", "cp1252", "shift_jis"]
NAMES = ["caf\u00e9", "\u732b", "na\u00efve \u2192 \U0001f600", "\u0436\u0443\u043a"]


@contextlib.contextmanager
def output_in(encoding: str, errors: str = "strict") -> Iterator[io.BytesIO]:
    """Stdout in an encoding, as bytes."""
    raw = io.BytesIO()
    with contextlib.redirect_stdout(
        io.TextIOWrapper(raw, encoding=encoding, errors=errors, write_through=True)
    ):
        yield raw


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_is_printed_with_substitutes(encoding: str) -> None:
    with output_in(encoding) as raw:
        make_printable()
        print_table(["class", "error"], [[name, None] for name in NAMES], title="T² ± … → ≤ −1")
        print_text("\ud800 a path that is no text")
        text = raw.getvalue().decode(encoding)
    assert len(text.splitlines()) == 7
    rows = [line.split("  ")[0] for line in text.splitlines()[2:6]]
    assert len(set(rows)) == len(NAMES), "two names stay two"
    for character in ("\u732b", "\u00e9"):
        try:
            shown = character.encode(encoding).decode(encoding)
        except UnicodeEncodeError:
            shown = character.encode("unicode_escape").decode()
        assert shown in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_comes_back_as_it_was(encoding: str) -> None:
    with output_in(encoding) as raw:
        make_printable()
        print_json({"names": NAMES})
        content = raw.getvalue()
    assert json.loads(content.decode(encoding)) == {"names": NAMES}
    assert content.isascii() == (encoding != "utf-8")


def test_without_the_guard_a_dash_is_an_error() -> None:
    """Negative control."""
    with output_in("latin-1"), pytest.raises(UnicodeEncodeError):
        print_table(["class", "error"], [["cat", None]])


def test_utf_8_is_left_alone() -> None:
    with output_in("utf-8", "surrogateescape") as raw:
        make_printable()
        assert sys.stdout.errors == "surrogateescape"
        print_text(*NAMES)
        assert raw.getvalue().decode().splitlines() == NAMES


def test_substitutes_are_ascii() -> None:
    assert "".join(SUBSTITUTES.values()).isascii() and not "".join(SUBSTITUTES).isascii()
    with pytest.raises(UnicodeDecodeError):
        substitute(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "reason"))
    assert not encodings.is_unicode(type("Stream", (), {"encoding": "no such encoding"})())
    assert encodings.is_unicode(io.StringIO())
    assert codecs.lookup("u8").name == "utf-8"


@pytest.mark.parametrize("encoding", ["latin-1", "koi8-r"])
def test_commands_end_as_they_do_in_utf_8(tmp_path: Path, encoding: str) -> None:
    store = logitstore.create_store(
        tmp_path / "store.zarr",
        class_names=NAMES,
        labels=np.arange(40) % 4,
        inputs=np.zeros((40, 2), np.uint8),
    )
    with store.capture("wide", provenance={"model": "m"}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, np.zeros((len(rows), 4), np.float32))
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for arguments in (
        ["inspect", str(store.path)],
        ["inspect", str(store.path), "--json"],
        ["--help"],
        ["inspect", "\u732b"],
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "logitstore", *arguments],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert ran.returncode == (65 if "\u732b" in arguments else 0), ran.stderr
        ran.stdout.decode(encoding), ran.stderr.decode(encoding)
