"""The card of a store: kept, covered by the digest, printed, and changed by nobody."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from faults.forge import Forge
from support import hands
from support.experiments import document, parsed, write_data
from support.messages import Sentences

import logitstore
from logitstore.cli.main import cli
from logitstore.pipeline.cache.todo import find_todo
from logitstore.pipeline.plan.stage import _samples
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.describe import describe
from logitstore.storage.errors import ConfigError, LimitExceeded, ManifestInvalid
from logitstore.storage.format.documents import canonical_json
from logitstore.storage.parts.card import checked_card

pytestmark = pytest.mark.usefixtures("without_fsync")

CARD = {"name": "strokes", "licence": "CC-BY-4.0", "description": "of\nsix classes"}


def make(path: Path, **changes: Any) -> logitstore.Store:
    rows = np.arange(20)
    given = {"num_classes": 3, "labels": rows % 3, "digests": rows.astype(np.uint64), **changes}
    return logitstore.create_store(path, **given)


def cards_kept(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "keeps the card" in record.getMessage()]


def test_a_card_is_kept_and_the_digest_covers_it(tmp_path: Path) -> None:
    store = make(tmp_path / "a", card=CARD)
    assert store.card == logitstore.open_store(tmp_path / "a").card == CARD
    assert store.digest != make(tmp_path / "b").digest
    assert make(tmp_path / "c", card=CARD).digest == store.digest
    # Negative control: without a card the bytes are those of earlier versions.
    assert make(tmp_path / "d", card={}).digest == make(tmp_path / "b", exist_ok=True).digest
    assert logitstore.open_store(tmp_path / "d").card == {}
    spec = json.loads((tmp_path / "d" / "samples" / "__logitstore__" / "spec.json").read_bytes())
    assert spec["notes"] == {}


def test_a_store_keeps_its_card_when_it_is_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    digest = make(tmp_path / "a", card=CARD).digest
    for card in (CARD, None):  # negative control
        assert make(tmp_path / "a", card=card, exist_ok=True).digest == digest
    assert cards_kept(caplog) == []
    again = make(tmp_path / "a", card=CARD | {"licence": "MIT"}, exist_ok=True)
    assert (again.digest, again.card) == (digest, CARD)
    (line,) = cards_kept(caplog)
    assert line.endswith("licence is 'CC-BY-4.0' there, and 'MIT' here")


def test_a_card_that_cannot_be_kept_is_refused(tmp_path: Path, sentence: Sentences) -> None:
    wrong: list[tuple[Any, str]] = [
        ({"license": "MIT"}, "'license'"),
        ({"owner": "me"}, "'owner'"),
        ({"name": 3}, "3"),
        ({"name": ""}, "an empty text"),
        ({"name": "\ud800"}, "half of a surrogate pair, which UTF-8 does not have"),
        ({"description": "x" * 4097}, "4,097 characters"),
        (["MIT"], "a list"),
    ]
    for card, found in wrong:
        with pytest.raises(ConfigError) as caught:
            checked_card(card)
        sentence(caught.value)
        assert caught.value.found == found
    with pytest.raises(ConfigError, match="did you mean 'licence'"):
        make(tmp_path / "a", card={"license": "MIT"})
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "a", card={"description": "x" * 4096})  # negative control


def test_inspect_prints_a_card_of_somebody_else_without_its_control_characters(tmp_path: Path) -> None:
    make(tmp_path / "a", card={"name": "red \x1b[31m", "contact": "b\u202ea", "description": "one\n\ntwo"})
    text, as_json = (
        CliRunner().invoke(cli, ["inspect", str(tmp_path / "a"), *more]) for more in ([], ["--json"])
    )
    assert text.exit_code == as_json.exit_code == 0
    lines = text.output.splitlines()
    at = lines.index("card")
    assert lines[at + 1 : at + 4] == [
        "  name         red \\x1b[31m",
        "  contact      b\\u202ea",
        "  description  one two",
    ]
    assert not {"\x1b", "\u202e"} & set(text.output + as_json.output)
    assert json.loads(as_json.output)["card"]["contact"] == "b\u202ea"


def test_a_store_without_a_card_has_none_in_its_record(tmp_path: Path) -> None:
    assert describe(make(tmp_path / "a"))[0]["card"] is None


@pytest.mark.parametrize(
    ("card", "error"),
    [
        ("MIT", ManifestInvalid),
        ({"name": ["MIT"]}, ManifestInvalid),
        ({"name": "x" * 4097}, LimitExceeded),
        ({"name": "good", "later": [1]}, None),  # negative control: of a later version
    ],
)
def test_a_forged_card_is_refused(tmp_path: Path, card: object, error: type[Exception] | None) -> None:
    make(tmp_path / "a", card=CARD)
    forge = Forge(tmp_path / "a")
    forge.edit("samples/__logitstore__/spec.json", notes={"card": card})
    forge.sign()
    store = logitstore.open_store(tmp_path / "a")
    record, errors = describe(store)
    if error is None:
        assert (store.card, record["card"], errors) == ({"name": "good"}, {"name": "good"}, [])
        return
    with pytest.raises(error):
        _ = store.card
    assert [type(one) for one in errors] == [error]
    assert record["card"] is None


def test_a_card_of_an_experiment_is_in_its_store_and_in_its_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_data(tmp_path)
    content = document()
    content["teacher"] = [content["teacher"][0] | {"train": {**content["teacher"][0]["train"], "epochs": 1}}]
    content = {key: content[key] for key in ("transfer_set", "teacher", "cache")}

    def work(card: dict[str, str]) -> Workspace:
        return Workspace.of_folder(parsed(content | {"card": card}, tmp_path), tmp_path / "out")

    from logitstore.pipeline.cache.stage import cache

    cache(work(CARD))
    store = logitstore.open_store(tmp_path / "out" / "store.zarr")
    assert store.card == CARD
    planned = _samples(work(CARD).experiment, work(CARD).rows, store.grid)
    bare = _samples(work({}).experiment, work({}).rows, store.grid)
    assert planned.bytes - bare.bytes == len(canonical_json({"card": CARD})) - len(canonical_json({}))
    # Another card makes nothing anew.
    assert not find_todo(work(CARD))
    assert cards_kept(caplog) == []
    assert not find_todo(work({"name": "lines"}))
    assert len(cards_kept(caplog)) == 1


def test_a_call_in_python_takes_a_card(tmp_path: Path) -> None:
    assert hands.cached(tmp_path, card=CARD).card == CARD
    with pytest.raises(ConfigError, match="did you mean 'licence'"):
        hands.cached(tmp_path / "other", card={"license": "MIT"})
