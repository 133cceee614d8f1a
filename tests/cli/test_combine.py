"""Tests of `logitstore combine`: its output, a single run, and refusals in one line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import combinations, stores
from support.combinations import ROWS, SETS, VIEWS

from logitstore.cli.main import cli
from logitstore.pipeline.combine import reference as combination_reference
from logitstore.pipeline.combine import stage
from logitstore.storage.api import open_store


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with captures to combine, not to be changed."""
    return combinations.make(tmp_path_factory.mktemp("combine") / "store.zarr").path


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it."""
    shutil.copytree(prepared, tmp_path / "store.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda *_: None)
        yield tmp_path / "store.zarr"


def run(store: Path, *more: object) -> Result:
    wish = ["--generalist", "wide", "--specialist", "s-*", "--name", "combined"]
    return CliRunner().invoke(cli, ["combine", str(store), *wish, *map(str, more)])


def printed(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_it_says_how_many_specialists_were_asked(store: Path) -> None:
    result = run(store)
    assert result.exit_code == 0, result.stderr
    # On a busy machine a task that lasts has lines of progress.
    assert all(line.startswith("combine combined: ") for line in result.stderr.splitlines())
    first, heading, *rows, last = result.stdout.splitlines()
    assert first == "teachers/combined: wide with 3 specialists"
    assert heading.split("  ")[0] == "active specialists"
    assert sum(int(row.split()[1].replace(",", "")) for row in rows) == VIEWS * ROWS
    assert last == f"digest  {open_store(store).digest}"


def test_what_is_done_is_not_done_again(store: Path) -> None:
    first = printed(run(store, "--json"))
    assert first["made"]
    assert first["specialists"] == list(SETS)
    assert sum(first["rows_by_active"].values()) == VIEWS * ROWS
    before = stores.tree(store)
    again = run(store)
    assert again.stdout.splitlines()[0] == "nothing to do: teachers/combined is made and unchanged"
    assert stores.tree(store) == before
    assert printed(run(store, "--json")) == {**first, "made": False, "rows_by_active": {}}


def test_what_is_combined_now_is_said_where_it_is_not_everything(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = stage.combine_rows, []

    def dying(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "combine_rows", dying)
        assert run(store).exit_code != 0
    _, title, _, *rows, _ = run(store).stdout.splitlines()
    now = sum(int(row.split()[1]) for row in rows)
    assert 0 < now < VIEWS * ROWS
    assert title == f"of the {now} rows combined now, of {VIEWS * ROWS}"


def test_a_dry_run_says_it_and_writes_nothing(store: Path) -> None:
    before = stores.tree(store)
    result = run(store, "--dry-run")
    assert "make capture combined from wide and 3 specialists" in result.stdout
    assert stores.tree(store) == before
    run(store)
    assert "make" not in run(store, "--dry-run").stdout


def test_every_option_reaches_the_capture(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combination_reference, "STEPS", 1)
    run(store, "--top", 2, "--method", "gradient_descent", "--max-kl", 1e-2, "--min-temperature", 2)
    identity = open_store(store).teachers["combined"].part.spec.identity
    assert identity["combination"]["top"] == 2
    assert identity["combination"]["method"] == "gradient_descent"
    assert identity["encoding"]["max_kl"] == 1e-2
    assert identity["encoding"]["min_temperature"] == 2
    other = run(store, "--name", "other", "--specialist", "d-*", "--direction", "qp", "--encoding", "float32")
    assert other.exit_code == 64  # s-* overlap


def test_the_calibration_rows_of_a_transform_are_chosen(store: Path) -> None:
    wish = ("--transform-kl", 1e-2, "--calibration-rows", 30, "--calibration-seed", 5)
    assert printed(run(store, *wish, "--json"))["made"]
    identity = open_store(store).teachers["combined"].part.spec.identity
    assert identity["encoding"]["calibration"] == {"rows": 30, "seed": 5}
    assert not printed(run(store, *wish, "--json"))["made"]
    other = run(store, *wish[:-1], 6)
    assert other.exit_code == 65
    assert "expected encoding.calibration.seed = 5, with which it was combined, found 6" in other.stderr


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--name", "wide"], 65, "teachers/wide: expected a name that is free"),
        (["--generalist", "no"], 65, "teachers/no: expected one of the sealed parts"),
        (["--specialist", "no"], 65, "teachers/no: expected one of the sealed parts"),
        (
            ["--specialist", "s-0"],
            64,
            "specialists: expected one or more captures, each once, found s-0 twice",
        ),
        (["--direction", "qp"], 64, "direction 'qp': expected disjoint sets and top = 1"),
        (["--direction", "gq"], 64, "invalid value for '--direction'"),
        (["--top", "0"], 64, "top: expected a number of classes from 1 to 9, found 0"),
        (["--min-temperature", "2"], 64, "found --min-temperature without --max-kl"),
        (["--max-kl", "0.1", "--encoding", "float32"], 64, "found --encoding and --max-kl"),
        (["--max-kl", "-1"], 64, "encoding: max_kl: expected a positive number of nats"),
        (["--calibration-rows", "9"], 64, "found --calibration-rows without --transform-kl"),
        (["--calibration-seed", "9", "--max-kl", "1"], 64, "found --calibration-seed with --max-kl"),
        (["--calibration-rows", "1", "--transform-kl", "1"], 64, "rows: expected an integer of at least 2"),
    ],
)
def test_bad_input_is_a_line_and_an_exit_code(store: Path, more: list[str], code: int, said: str) -> None:
    before = stores.tree(store)
    result = run(store, *more)
    assert result.exit_code == code, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("logitstore: ")
    assert said in line
    assert result.stdout == ""
    assert stores.tree(store) == before
