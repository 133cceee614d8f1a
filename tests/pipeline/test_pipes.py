"""Pipes in the place of files that a command reads: refused or passed over at once, never waited for."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logitstore.pipeline.evaluate.scores import Scores
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.models.records import Models, weights_digest
from logitstore.pipeline.models.sources import read_json
from logitstore.pipeline.models.weights import load_weights
from logitstore.storage.backends.posix import read_plain
from logitstore.storage.errors import BadDataError, ConfigError

FOUND = "a pipe in the place of a file"


def at_once(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or its error; fails after some seconds of waiting."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - it is the result
            results.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert results, "it waits for a writer"
    return results[0]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path / "pipe.json"


def test_an_experiment_file(pipe: Path) -> None:
    error = at_once(lambda: load_experiment(pipe))
    assert isinstance(error, ConfigError) and FOUND in str(error)


def test_a_record_and_scores_count_as_missing(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "students").mkdir()
    os.mkfifo(tmp_path / "students" / "small.json")
    assert at_once(lambda: Models(tmp_path).recorded_identity("students", "small")) is None
    assert at_once(lambda: Scores(pipe)._scores) == {}


def test_weights_and_their_digest(tmp_path: Path, pipe: Path) -> None:
    from torch import nn

    os.mkfifo(tmp_path / "w.safetensors")
    for call in (
        lambda: weights_digest(pipe),
        lambda: load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors"),
        lambda: read_json(pipe),
    ):
        error = at_once(call)
        assert isinstance(error, BadDataError), error


def test_plain_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_plain(tmp_path / "file") == read_plain(tmp_path / "link") == b"x"
    with pytest.raises(IsADirectoryError):
        read_plain(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "none")


def test_a_plain_open_waits_for_a_writer(pipe: Path) -> None:
    """Negative control."""
    with pytest.raises(AssertionError, match="waits for a writer"):
        try:
            at_once_briefly(pipe.read_bytes)
        finally:
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))


def at_once_briefly(call: Callable[[], Any]) -> None:
    """As `at_once`, with less patience."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(0.5)
    assert not thread.is_alive(), "it waits for a writer"


@pytest.mark.parametrize(
    "text",
    ['{"a": {"rows": "9"}}', '{"a": [1]}', "[" * 100_000, '{"a": {"rows": NaN}}', '{"a": {"nll": 1e999}}'],
)
def test_scores_of_other_types_count_as_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    assert Scores(tmp_path / "evaluation.json")._scores == {}
