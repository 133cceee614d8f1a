"""Workspaces of the commands: ranks that were called otherwise are found before an experiment is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from logitstore.cli.main import cli
from logitstore.pipeline.runtime import ranks
from logitstore.pipeline.runtime.ranks import Ranks

CALL = ("cache", "a.toml", "a.zarr")


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Statements of the second of two ranks, one for each call."""
    said: list[Any] = []

    @contextmanager
    def joined() -> Iterator[Ranks]:
        yield Ranks(1, 2)

    monkeypatch.setattr(ranks, "joined", joined)
    monkeypatch.setattr(Ranks, "agree", lambda self, value: said.append(value))
    monkeypatch.chdir(tmp_path)
    return said


@pytest.mark.parametrize(
    ("call", "is_other"),
    [
        (("cache", "b.toml", "b.zarr"), False),  # controls: places and devices differ between hosts
        ((*CALL, "--models", "m", "--device", "cpu"), False),
        ((*CALL, "--stop-below", "0.5"), True),
        ((*CALL, "--dry-run"), True),
        (("train", *CALL[1:]), True),
    ],
    ids=lambda call: " ".join(call) if isinstance(call, tuple) else "",
)
def test_a_rank_that_would_do_something_else_states_something_else(
    compared: list[Any], call: tuple[str, ...], is_other: bool
) -> None:
    """One rank that stops below an accuracy, or only lists its work, leaves the others waiting at a collective."""
    for arguments in (CALL, call):
        assert CliRunner().invoke(cli, list(arguments)).exit_code == 64  # there is no such experiment
    one, other = compared
    assert (one != other) is is_other
