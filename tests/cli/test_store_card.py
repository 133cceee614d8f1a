"""The command `card`, the cards that other commands write, and the digests that they print."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import stores
from support.stores import Teacher

from logitstore.cli.main import cli
from logitstore.storage.api import open_store
from logitstore.storage.sharing.store_card import scores_in, states

pytestmark = pytest.mark.usefixtures("without_fsync")


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == code, (result.stderr, result.stdout)
    return result


@pytest.fixture
def store(tmp_path: Path) -> Path:
    stores.make(tmp_path / "store.zarr", rows=14, teachers={"wide": Teacher(), "deep": Teacher()})
    return tmp_path / "store.zarr"


def card_of(store: Path) -> str:
    return (store / "STORE.md").read_text()


def test_the_card_is_written_again(store: Path) -> None:
    digest = open_store(store).digest
    assert call("card", store, "--dry-run").stdout.splitlines() == [
        f"card    {store / 'STORE.md'}: would be written",
        f"digest  {digest}",
    ]
    assert not (store / "STORE.md").exists()
    assert call("card", store).stdout.splitlines()[0] == f"card    {store / 'STORE.md'}: written"
    assert call("card", store).stdout.splitlines()[0].endswith(": nothing to do: unchanged")
    assert call("card", store, "--out", "-").stdout == card_of(store)
    record = json.loads(call("card", store, "--json").stdout)
    assert record == {
        "path": str(store / "STORE.md"),
        "digest": digest,
        "text": card_of(store),
        "changed": False,
        "dry_run": False,
    }


def test_the_card_goes_to_another_file(store: Path, tmp_path: Path) -> None:
    call("card", store, "--out", tmp_path / "README.md", "--location", "hf://datasets/a/b")
    assert 'open_store("hf://datasets/a/b", ' in (tmp_path / "README.md").read_text()
    assert not (store / "STORE.md").exists()
    call("card", tmp_path / "README.md", code=65)
    call("card", tmp_path / "nothing", code=65)


def test_the_digest_is_printed_alone(store: Path) -> None:
    digest = open_store(store).digest
    assert call("inspect", store, "--digest").stdout == f"{digest}\n"
    assert "remove --json" in call("inspect", store, "--digest", "--json", code=64).stderr
    call("inspect", store, "--digest", "--expect", f"sha256:{'0' * 64}", code=65)


@pytest.mark.parametrize(
    "command",
    [
        ["compress", "--teacher", "wide", "--top-k", "2", "--name", "small"],
        ["cluster", "--teacher", "wide", "--clusters", "2", "--classes-per-cluster", "2"],
        ["copy"],
        ["merge"],
    ],
)
def test_a_command_that_makes_a_part_prints_the_digest_and_writes_the_card(
    store: Path, tmp_path: Path, command: list[str]
) -> None:
    made = store
    if command[0] in ("copy", "merge"):
        made = tmp_path / "other.zarr"
        if command[0] == "merge":
            call("copy", store, made, "--teacher", "wide")
            (made / "STORE.md").unlink()
        result = call(command[0], store, made)
    else:
        result = call(command[0], store, *command[1:])
    digest = open_store(made).digest
    assert digest in result.stdout
    assert states(card_of(made), digest)
    # Killed before the card: the same command again, which finds all work done, writes it.
    (made / "STORE.md").unlink()
    again = call(command[0], store, *([made] if made != store else command[1:]))
    assert "nothing to do" in again.stdout
    assert digest in again.stdout
    assert states(card_of(made), digest)
    assert scores_in(card_of(made)) == {}
