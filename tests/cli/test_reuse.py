"""`--reuse` of `cache`, `run` and `plan`: the rows of an earlier store, for an experiment in a file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import small_experiment as small

from logitstore.cli.main import cli
from logitstore.storage.api import open_store

pytestmark = pytest.mark.usefixtures("without_fsync")
GROWN = 330


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small experiment, its store, and a data file with more rows."""
    folder = tmp_path_factory.mktemp("made")
    result = call("cache", small.lay_out(folder), folder / "old.zarr", "--device", "cpu")
    assert result.exit_code == 0, result.output
    with np.load(folder / "data.npz") as held:
        inputs, labels, names = held["inputs"], held["labels"], held["class_names"]
    more = np.random.default_rng(1).normal(size=(GROWN - small.ROWS, 4)).astype(np.float32)
    np.savez(
        folder / "data.npz",
        inputs=np.concatenate([inputs, more]),
        labels=np.concatenate([labels, more[:, :3].argmax(axis=1)]),
        class_names=names,
    )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "grown")


def test_a_plan_counts_the_rows_that_are_run_and_cache_says_the_same(folder: Path) -> None:
    file, old = folder / "small.toml", folder / "old.zarr"
    planned = call("plan", file, "--reuse", old, "--rows", 16, "--device", "cpu")
    assert planned.exit_code == 0, planned.output
    line = f"reuse           line: 300 of 330 rows from {old}: teachers/line; the teacher runs on 30"
    assert line in planned.stdout.splitlines()
    record = json.loads(call("plan", file, "--reuse", old, "--rows", 16, "--device", "cpu", "--json").stdout)
    (reuse,) = record["reuse"]
    assert (reuse["teacher"], reuse["reused"], reuse["rows"], reuse["reasons"]) == ("line", 300, 330, [])
    result = call("cache", file, folder / "new.zarr", "--reuse", old, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "captured  line  (reused 300 of 330 rows, " in result.stdout
    again = call("cache", file, folder / "new.zarr", "--device", "cpu")
    assert again.exit_code == 0 and "nothing to do: line captured already" in again.stdout
    inspected = call("inspect", folder / "new.zarr").stdout
    assert "reused_from" in inspected and open_store(old).digest_of("teachers/line") in inspected


def test_run_passes_it_to_stage_one(folder: Path) -> None:
    result = call(
        "run",
        folder / "small.toml",
        "--out",
        folder / "out",
        "--reuse",
        folder / "old.zarr",
        "--device",
        "cpu",
    )
    assert result.exit_code == 0, result.output
    store = open_store(folder / "out" / "store.zarr")
    assert store.teachers["line"].provenance["reused_from"]
    assert call("run", folder / "small.toml", "--out", folder / "out", "--dry-run").stdout.startswith(
        "nothing"
    )


def test_code_that_changed_is_another_teacher(folder: Path, sentence: Any) -> None:
    """The old half would come from other code, as in a capture that is resumed."""
    with (folder / "faulty.py").open("a") as source:
        source.write("\n\nMORE = 1\n")
    for command in (["cache", folder / "small.toml", folder / "new.zarr"], ["run", folder / "small.toml"]):
        out = ["--out", folder / "out"] if command[0] == "run" else []
        result = call(*command, *out, "--reuse", folder / "old.zarr", "--device", "cpu")
        assert result.exit_code == 64
        sentence(result.stderr.splitlines()[-1])
    planned = call(
        "plan", folder / "small.toml", "--reuse", folder / "old.zarr", "--rows", 16, "--device", "cpu"
    )
    assert "reuse           line: 0 of 330 rows; the teacher runs on 330" in planned.stdout
    assert f"line takes no rows of {folder / 'old.zarr'}: teachers/line: source." in planned.stdout


def test_a_store_that_is_not_there(folder: Path, sentence: Any) -> None:
    result = call("cache", folder / "small.toml", folder / "new.zarr", "--reuse", folder / "none.zarr")
    assert result.exit_code != 0 and not (folder / "new.zarr").exists()
    sentence(result.stderr.splitlines()[-1])
