"""The commands `copy`, `merge` and `list`: their lines, their exit codes, and calls that are wrong."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import stores
from support.stores import Teacher
from support.web import serving

from logitstore.cli.main import cli
from logitstore.storage.api import open_store


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """Output is looked at here, not power cuts."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two captures; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=14, teachers={"wide": Teacher(), "deep": Teacher()})
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_copy_prints_its_parts_its_bytes_and_its_digest(whole: Path, tmp_path: Path) -> None:
    path, digest = tmp_path / "new.zarr", open_store(whole).digest
    planned = call("copy", whole, path, "--dry-run")
    assert (planned.exit_code, planned.stderr) == (0, "") and not path.exists()
    heading, *parts = planned.stdout.splitlines()
    assert heading.split("  ")[0] == "part" and heading.endswith("to copy")
    assert [line.split()[0] for line in parts[:3]] == ["samples", "teachers/wide", "teachers/deep"]
    assert planned.stdout.splitlines()[-1] == f"digest  {digest}"
    done = call("copy", whole, path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-3:][::2] == [f"store   {path}", f"digest  {digest}"]
    again = call("copy", whole, path)
    assert again.stdout.splitlines() == [
        f"nothing to do: {path} has all 3 parts",
        f"store   {path}",
        "copied  0 bytes",
        f"digest  {digest}",
    ]


def test_a_capture_is_copied_from_a_server_and_the_rest_is_merged(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.zarr"
    with serving(whole.parent) as web:
        done = call("copy", f"{web.url}/store.zarr", path, "--teacher", "deep")
    assert done.exit_code == 0, done.stderr
    assert list(open_store(path).teachers) == ["deep"]
    merged = call("merge", whole, path)
    assert merged.exit_code == 0, merged.stderr
    assert list(open_store(path).teachers) == ["deep", "wide"]
    assert merged.stdout.splitlines()[-1] == f"digest  {open_store(path).digest}"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("copy", "{whole}", "{other}"), 65, "expected nothing, or a store of the samples sha256:"),
        (("copy", "{nothing}", "{new}"), 65, "expected a store, found nothing"),
        (("copy", "{whole}", "{new}", "--teacher", "nobody"), 65, "choose one of these, or make it first"),
        (("copy", "{whole}", "{new}", "--expect", "sha256:00"), 65, "expected the store sha256:00"),
        (("copy", "{whole}", "https://host/new.zarr"), 64, "expected a store that can be written to"),
        (("merge", "{whole}", "{new}"), 64, "use `logitstore copy` to begin a store there"),
        (("list", "{nothing}"), 64, "expected a folder, or a URL that lists its files, found nothing"),
        (("list", "{whole}", "--depth", "-1"), 64, "depth: expected 0 or more, found -1"),
        (("list",), 64, "missing argument 'PREFIX'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    whole: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    other = stores.make(tmp_path / "other.zarr", rows=14, teachers={}, names=False).path
    before = stores.tree(tmp_path)
    places = {"whole": whole, "other": other, "nothing": tmp_path / "nothing", "new": tmp_path / "new.zarr"}
    done = call(*(argument.format_map(places) for argument in arguments))
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert stores.tree(tmp_path) == before


def test_a_list_is_a_table_with_the_reason_of_a_damaged_store_below_it(whole: Path, tmp_path: Path) -> None:
    call("copy", whole, tmp_path / "good.zarr")
    assert call("list", tmp_path).stdout.splitlines()[1].split()[:3] == ["good.zarr", "14", "5"]
    call("copy", whole, tmp_path / "team/bad.zarr")
    (tmp_path / "team/bad.zarr/__logitstore__/log/2.json").write_bytes(b"x")
    done = call("list", tmp_path)
    assert done.exit_code == 65 and done.stderr == ""
    heading, good, bad, reason = done.stdout.splitlines()
    assert heading.split() == ["store", "rows", "classes", "teachers", "size", "sealed", "digest", "title"]
    assert "wide (float16), deep (float16)" in good and open_store(whole).digest[:19] in good
    assert bad.split() == ["team/bad.zarr", *"———————"]
    assert reason.startswith(f"team/bad.zarr: {tmp_path}/team/bad.zarr/__logitstore__/log/2.json: expected")
    assert call("list", tmp_path, "--depth", 0).stdout == f"no store under {tmp_path}, down to 0 levels\n"
