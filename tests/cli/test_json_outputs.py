"""JSON output has the keys and types of docs/reference/json.md; exit codes are those of docs/reference/exit-codes.md.

A key that is added, renamed or dropped in a command fails here, until the table has it.
"""

import doctest
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import click
import pytest
from click.testing import CliRunner
from support import experiments
from support.json_schema import problems
from support.tree import ROOT

from logitstore.cli import errors as cli_errors
from logitstore.cli.main import COMMANDS, cli
from logitstore.pipeline.runtime.stopping import SIGNALS, Stopped
from logitstore.storage import errors
from logitstore.storage.api import open_store
from logitstore.storage.integrity import doctor, repair, verify

REFERENCE = ROOT / "docs" / "reference"
PAGE = (REFERENCE / "json.md").read_text(encoding="utf-8")
CODES = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
SCHEMAS = {path.stem: json.loads(path.read_text("utf-8")) for path in (REFERENCE / "schemas").glob("*.json")}
STORE = "out/store.zarr"


def toml(value: Any) -> str:
    """Write a value of a document as TOML, inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def printed(*arguments: object, code: int = 0) -> Any:
    """Return the JSON that a command prints."""
    with mock.patch("os.fsync"):
        result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == code, (result.stderr, result.stdout)
    return json.loads(result.stdout)


def spoil(folder: Path, name: str) -> None:
    """Cut a file below a folder to one byte."""
    next(folder.rglob(name)).write_bytes(b"x")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return real outputs by schema: of a whole experiment, of a damaged store and of an unfinished one."""
    folder = tmp_path_factory.mktemp("json")
    experiments.write_data(folder)
    lines = [f"{key} = {toml(value)}" for key, value in experiments.whole_document().items()]
    found: dict[str, list[Any]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("e.toml").write_text("\n".join(lines))
        run = "run", "e.toml", "--out", "out"
        found["dry-run"] = [printed(*run, "--dry-run")]
        found["run"] = [printed(*run), printed(*run)]
        found["plan"] = [printed("plan", "e.toml", "--store", STORE, "--rows", 64, "--device", "cpu")]
        found["evaluate-experiment"] = [printed("evaluate", "e.toml", STORE)]
        found["evaluate-store"] = [printed("evaluate", STORE)]
        sets = "--teacher", "wide", "--clusters", 2, "--classes-per-cluster", 2, "--name", "other"
        found["dry-run"].append(printed("cluster", STORE, *sets, "--dry-run"))
        found["cluster"] = [printed("cluster", STORE, *sets)]
        new = "--generalist", "wide", "--specialist", "spec-*", "--name", "new"
        found["combine"] = [printed("combine", STORE, *new), printed("combine", STORE, *new)]
        kinds = ("--transform-kl", 1e-2), ("--top-k", 2), ("--max-kl", 0.1)
        found["compress"] = [
            printed("compress", STORE, "--teacher", "new", *kind, "--name", f"small-{number}")
            for number, kind in enumerate(kinds)
        ]
        clean = printed("inspect", STORE)
        copies = ("copy", STORE, "c/store.zarr"), ("merge", STORE, "c/store.zarr")
        found["copy"] = [printed(*copies[0], "--dry-run"), printed(*copies[0], "--teacher", "wide")]
        found["merge"] = [printed(*copies[1])]
        concat = "concat", STORE, "c/store.zarr", "both.zarr", "--teacher", "wide", "--allow-duplicates"
        found["concat"] = [printed(*concat, "--dry-run"), printed(*concat)]
        removed = "rm", "c/store.zarr", "--teacher", "small-1", "--clustering", "other"
        found["rm"] = [printed(*removed, "--dry-run"), printed(*removed), printed(*removed)]
        export, moved = ("export", STORE, "--teacher", "wide", "wide.npy"), ("wide.npy", "--out", "m.zarr")
        found["export"] = [printed(*export, "--dry-run"), printed(*export), printed(*export)]
        taken = "import", *moved, "--teacher", "wide", "--view", 0
        found["import"] = [printed(*taken, "--dry-run"), printed(*taken), printed(*taken)]
        found["card"] = [printed("card", STORE, "--dry-run"), printed("card", STORE, "--out", "-")]
        found["verify"], found["repair"] = [printed("verify", STORE, "--deep")], [printed("repair", STORE)]
        store = open_store(STORE)
        with pytest.raises(KeyboardInterrupt), store.capture("begun", provenance={}) as capture:
            block = next(iter(capture.missing_blocks()))
            capture.write(block, store.teachers["wide"].read(block))
            raise KeyboardInterrupt
        found["verify"].append(printed("verify", STORE, code=5))
        shutil.copytree(STORE, "bad.zarr")
        spoil(Path("bad.zarr/teachers/wide/logits"), "c.*")
        spoil(Path("bad.zarr/teachers/new"), "seal.json")
        found["list"] = [printed("list", "c"), printed("list", ".", code=65)]
        found["inspect"] = [clean, printed("inspect", "bad.zarr", code=65)]
        found["verify"].append(printed("verify", "bad.zarr", code=1))
        found["repair"].append(printed("repair", "bad.zarr", "--dry-run", code=1))
        found["doctor"] = [printed("doctor", ".", "--rounds", 2)]
    return found


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_output_has_the_keys_and_types_of_the_table(name: str, outputs: dict[str, list[Any]]) -> None:
    assert outputs[name]
    for output in outputs[name]:
        assert problems(output, SCHEMAS[name]) == []


def test_the_outputs_show_what_is_rare(outputs: dict[str, list[Any]]) -> None:
    """The records that an ordinary run leaves empty are among those that were checked."""
    whole, bad = outputs["inspect"]
    assert {capture["encoding"] for capture in whole["captures"]} == {
        "error-budget",
        "float16",
        "transform",
        "top-k",
    }
    assert bad["unreadable"] and bad["unsealed"]
    assert any(verified["problems"] for verified in outputs["verify"])
    assert outputs["repair"][1]["beyond"] and outputs["repair"][1]["removed"]
    assert outputs["evaluate-store"][0]["comparisons"][0]["specialists"]


def test_a_changed_key_or_type_is_noticed(outputs: dict[str, list[Any]]) -> None:
    """Negative control: keys and types are changed on every level."""
    output, schema = outputs["verify"][0], SCHEMAS["verify"]
    assert problems(output | {"more": 1}, schema) == ["$: the key 'more' is in no table"]
    less = {key: value for key, value in output.items() if key != "digest"}
    assert problems(less, schema) == ["$: the key 'digest' is missing"]
    assert problems(output | {"objects": 1.5}, schema) == ["$.objects: expected integer, found 1.5"]
    assert problems(output | {"deep": 1}, schema) == ["$.deep: expected boolean, found 1"]
    assert problems(output | {"objects": True}, schema) == ["$.objects: expected integer, found True"]
    assert len(problems(output | {"verdict": "well"}, schema)) == 1
    inner = json.loads(json.dumps(outputs["inspect"][0]))
    inner["captures"][1]["divergence"] = [{"temperature": 1.0}]
    assert "$.captures[1].divergence[0]: the key 'bound' is missing" in problems(inner, SCHEMAS["inspect"])


def script() -> ModuleType:
    """Return the script that writes the schemas."""
    spec = importlib.util.spec_from_file_location("schemas", ROOT / "docs" / "site" / "schemas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schemas_are_those_of_the_tables() -> None:
    made = {name.removesuffix(".json"): schema for name, schema in script().schemas(PAGE).items()}
    assert made == SCHEMAS, "run `python docs/site/schemas.py`"


def test_a_type_is_read_as_the_tables_write_it() -> None:
    failed, tried = doctest.testmod(script())
    assert (failed, tried > 1) == (0, True)
    with pytest.raises(ValueError, match="expected a type, found 'strings'"):
        script().schema_of("list of strings")


def test_every_command_with_json_has_a_schema() -> None:
    context = click.Context(cli)
    group: Any = cli
    with_json = {
        name
        for name in COMMANDS
        if any("--json" in getattr(one, "opts", ()) for one in group.get_command(context, name).params)
    }
    described = {schema["title"].split()[1] for schema in SCHEMAS.values()} - {"--dry-run"}
    assert described == with_json


# Exit codes


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading of the page of exit codes."""
    text = CODES[CODES.index(heading) :]
    table = text[text.index("\n| ---") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table]


def test_every_error_has_its_code_in_the_table() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    tree = [one for one in kinds if issubclass(one, errors.LogitStoreError)]
    assert rows("## Errors") == [[one.__name__, one.code, str(one.exit_code)] for one in tree]


def test_every_exit_code_has_its_row() -> None:
    constants = {
        value
        for module in (errors, cli_errors)
        for name, value in vars(module).items()
        if name.startswith("EX_") and isinstance(value, int)
    }
    signals = {Stopped(number).exit_code for number in SIGNALS}
    assert {int(code) for code, *_ in rows("# Exit codes")} == {0} | constants | signals


def test_the_commands_with_codes_of_their_own_have_them_in_the_table() -> None:
    found = {(name, int(code)) for name, code, _ in rows("## Commands with more codes")}
    theirs = {
        "verify": (verify.CLEAN, verify.CORRUPT, verify.UNTRUSTED, verify.IO_ERROR, verify.INCOMPLETE),
        "repair": (repair.DONE, repair.BEYOND),
        "doctor": (doctor.SAFE, doctor.UNSAFE, doctor.IO_ERROR),
        "inspect": (errors.EX_DATAERR, errors.EX_TEMPFAIL),
        "list": (errors.EX_DATAERR, errors.EX_TEMPFAIL),
    }
    assert found == {(name, code) for name, codes in theirs.items() for code in codes}
