"""The commands `rm` and `concat`: their lines, their exit codes, and calls that are wrong."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import stores
from support.stores import Teacher

from logitstore.cli.main import cli
from logitstore.storage.api import open_store


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """Output is looked at here, not power cuts."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two captures and a clustering of one of them."""
    path = tmp_path / "store.zarr"
    stores.add_clustering(stores.make(path, rows=14, teachers={"wide": Teacher(), "deep": Teacher()}).store)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_rm_prints_what_it_frees_and_the_digest(path: Path) -> None:
    before = stores.tree(path)
    planned = call("rm", path, "--teacher", "wide", "--dry-run")
    assert (planned.exit_code, planned.stderr, stores.tree(path)) == (0, "", before)
    done = call("rm", path, "--teacher", "wide")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["part", "state"], ["teachers/wide", "sealed"]]
    assert lines[3] == "stays   clusters/wide-2x2, made from teachers/wide"
    assert lines[4] == f"store   {path}" and lines[5].startswith("freed   ")
    assert lines[-1] == planned.stdout.splitlines()[-1] == f"digest  {open_store(path).digest}"
    assert open_store(path).digest in (path / "STORE.md").read_text()
    again = call("rm", path, "--teacher", "wide")
    assert again.exit_code == 0 and again.stdout.splitlines()[1].split() == [
        "teachers/wide",
        "gone",
        "0",
        "0",
        "bytes",
    ]


def test_other_commands_tell_of_the_removal(path: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.zarr"
    call("copy", path, old)
    former = open_store(path).digest
    call("rm", path, "--teacher", "wide")
    assert "teachers/wide: removed" in call("inspect", path).stdout.splitlines()
    copied = call("merge", old, path)
    assert copied.exit_code == 0
    assert f"not copied  teachers/wide: removed from {path}" in copied.stdout.splitlines()
    refused = call("inspect", path, "--expect", former)
    assert (
        refused.exit_code == 65
        and "without teachers/wide, which `logitstore rm` has removed" in refused.stderr
    )
    (path / "teachers/wide/peak").mkdir(parents=True)
    (path / "teachers/wide/peak/c.0.0").write_bytes(b"left by a removal that was killed")
    verified = call("verify", path)
    assert verified.exit_code == 0
    left = (
        f"{path}: teachers/wide: removed, but files of it are left; `logitstore rm` or `repair` removes them"
    )
    assert verified.stdout.splitlines()[0] == left
    repaired = call("repair", path)
    assert repaired.stdout.splitlines() == [
        f"{path}/teachers/wide: the rest of a removed part, removed",
        f"{path}: mended",
    ]
    assert not (path / "teachers/wide").exists()


def test_concat_prints_its_parts_and_the_digest(tmp_path: Path) -> None:
    for number in range(2):
        stores.make(tmp_path / f"{number}.zarr", rows=9 + number, teachers={"wide": Teacher()}, names=False)
    sources, new = (tmp_path / "0.zarr", tmp_path / "1.zarr"), tmp_path / "both.zarr"
    planned = call("concat", *sources, new, "--dry-run")
    assert (planned.exit_code, planned.stderr) == (0, "") and not new.exists()
    assert "rows    19: 9 + 10" in planned.stdout.splitlines() and "digest" not in planned.stdout
    done = call("concat", *sources, new)
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["part", "samples", "teachers/wide"]
    assert done.stdout.splitlines()[-1] == f"digest  {open_store(new).digest}"
    assert open_store(new).digest in (new / "STORE.md").read_text()
    again = call("concat", *sources, new)
    assert again.stdout.splitlines()[0] == f"nothing to do: {new} has these rows"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("rm", "{path}"), 64, "name at least one capture or clustering"),
        (("rm", "{path}", "--teacher", "nobody"), 65, "expected one of the sealed parts"),
        (("rm", "{nothing}", "--teacher", "wide"), 65, "expected a store, found nothing"),
        (("rm", "https://host/new.zarr", "--teacher", "wide"), 64, "a store that is read through Zarr"),
        (("concat", "{path}", "{new}"), 64, "expected two stores or more, and the new one, found 2 paths"),
        (("concat", "{path}", "{path}", "{new}"), 65, "found the same samples"),
        (("concat", "{path}", "{nothing}", "{new}"), 65, "expected a store, found nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    path: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    before = stores.tree(tmp_path)
    places = {"path": path, "new": tmp_path / "new.zarr", "nothing": tmp_path / "nothing.zarr"}
    done = call(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == code and said in done.stderr
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert stores.tree(tmp_path) == before
