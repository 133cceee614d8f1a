"""The commands `export` and `import`: their lines, their exit codes, and calls that are wrong."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import stores
from support.stores import Teacher

from logitstore.cli.main import cli
from logitstore.storage.api import open_store

ROWS = 14


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """Output is looked at here, not power cuts."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two captures; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=ROWS, teachers={"wide": Teacher(), "deep": Teacher(encoding="float32")})
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_an_export_prints_its_file_and_the_digest_of_the_store(whole: Path, tmp_path: Path) -> None:
    path, digest = tmp_path / "wide.npy", open_store(whole).digest
    arguments = "export", whole, "--teacher", "wide", path, "--rows", "2:9", "--dtype", "float16"
    planned = call(*arguments, "--dry-run")
    assert (planned.exit_code, planned.stderr) == (0, "") and list(tmp_path.iterdir()) == []
    assert planned.stdout.splitlines()[0] == f"write {path}: teachers/wide of {whole}"
    done = call(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"file    {path}" and lines[-1] == f"digest  {digest}"
    assert lines[1] == "logits  7 rows of 5 columns in float16"
    assert np.load(path).shape == (7, 5)
    assert call(*arguments).stdout.splitlines()[0] == f"nothing to do: {path} is this export already"
    other = call(*arguments[:-1], "float32")
    assert other.exit_code == 65 and "--force" in other.stderr and len(other.stderr.splitlines()) == 1
    assert call(*arguments[:-1], "float32", "--force").exit_code == 0
    assert np.load(path).dtype == np.float32


def test_an_import_prints_its_files_and_the_digest_of_the_store(whole: Path, tmp_path: Path) -> None:
    file, path = tmp_path / "deep.safetensors", tmp_path / "new.zarr"
    assert call("export", whole, "--teacher", "deep", file).exit_code == 0
    (tmp_path / "card.toml").write_text('[card]\nname = "strokes"\n')
    arguments = "import", file, "--out", path, "--teacher", "deep", "--card", tmp_path / "card.toml"
    planned = call(*arguments, "--dry-run")
    assert (planned.exit_code, planned.stderr) == (0, "") and not path.exists()
    assert planned.stdout.splitlines()[0].endswith(f"new store {path}; all values were checked")
    done = call(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    store = open_store(path)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("from    deep.safetensors: 14 rows, sha256:")
    assert lines[1] == "logits  14 rows of 5 columns in float32, stored as float32"
    labelled = int((store.samples.labels >= 0).sum())
    assert lines[2] == f"rows    {labelled} labelled, with ids"
    assert lines[-1] == f"digest  {store.digest}" and store.card == {"name": "strokes"}
    assert call(*arguments).stdout.startswith("nothing to do: teachers/deep of ")
    assert f"'file': '{file.name}'" in call("inspect", path).stdout
    added = call("import", file, "--out", whole, "--teacher", "copy", "--dry-run")
    assert added.stdout.splitlines()[0] == f"import teachers/copy of {whole}; all values were checked"


def test_log_probabilities_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.log(stores.softmax(stores.some_logits(1, ROWS, 5)[0], 1.0)))
    arguments = "import", file, "--out", tmp_path / "new.zarr", "--teacher", "a"
    refused = call(*arguments)
    assert refused.exit_code == 65 and "pass --log-probabilities" in refused.stderr
    done = call(*arguments, "--log-probabilities")
    line = "values  log-probabilities: logits but for a constant of each row, which serve every temperature"
    assert line in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ("export", "{whole}", "--teacher", "wide", "{new}.csv"),
            64,
            "expected a name that ends in .parquet",
        ),
        (("export", "{whole}", "--teacher", "nobody", "{new}.npy"), 65, "choose one of these"),
        (("export", "{whole}", "--teacher", "wide", "{new}.npy", "--rows", "3"), 64, "write --rows 0:1000"),
        (("export", "{whole}", "--teacher", "wide", "s3://b/a.npy"), 64, "export to a local file"),
        (("export", "{nothing}", "--teacher", "wide", "{new}.npy"), 65, "expected a store, found nothing"),
        (("export", "{whole}", "--teacher", "wide", "{new}.npy", "--expect", "sha256:00"), 65, "sha256:00"),
        (("import", "{nothing}.npy", "--out", "{new}", "--teacher", "a"), 65, "no such file or directory"),
        (("import", "{file}", "--out", "{new}", "--teacher", "a", "--encoding", "{{ x = "), 64, "encoding"),
        (("import", "{file}", "--out", "{new}", "--teacher", "a", "--encoding", "int8"), 64, "encoding"),
        (("import", "{file}", "--out", "{new}", "--teacher", "a", "--card", "{file}"), 64, "UTF-8"),
        (("import", "{file}", "--out", "{whole}", "--teacher", "a"), 64, "--ids or --labels or --inputs"),
        (("import", "--out", "{new}", "--teacher", "a"), 64, "missing argument 'FILES'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    whole: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    np.save(tmp_path / "file.npy", stores.some_logits(1, ROWS, 5)[0])
    places = {
        "whole": whole,
        "file": tmp_path / "file.npy",
        "nothing": tmp_path / "nothing",
        "new": tmp_path / "new",
    }
    before = stores.tree(tmp_path), stores.tree(whole)
    done = call(*(argument.format_map(places) for argument in arguments))
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert (stores.tree(tmp_path), stores.tree(whole)) == before
