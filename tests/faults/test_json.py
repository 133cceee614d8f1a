"""Every JSON file that was cut or changed is refused, by one kind of error, at once and in little memory."""

import contextlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import stores

from faults.json_faults import (
    SIGNED,
    UNSIGNED,
    Answers,
    cuts,
    digests_fit,
    mutations,
    read_alone,
    read_through,
)
from faults.tally import Tally, scale
from logitstore.storage.integrity.verify import verify
from logitstore.storage.sharing.removing import remove_parts

SEED = 20_261_121
CHANGED_FILES = 36
"""JSON files of the store below; so many times its share of the mutations are made."""


def small_store(folder: Path) -> Path:
    """A store with every kind of JSON file that there is, in few bytes."""
    made = stores.make(
        folder / "store.zarr",
        rows=5,
        block_rows=4,
        teachers={"wide": stores.Teacher(augmented=True), "gone": stores.Teacher()},
    )
    stores.add_clustering(made.store)
    remove_parts(made.path, teachers=["gone"])
    return made.path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store."""
    return stores.tree(small_store(tmp_path_factory.mktemp("json")))


def json_keys(files: dict[str, bytes]) -> list[str]:
    return [key for key in files if key.endswith(".json")]


def mutated(files: dict[str, bytes], key: str, count: int) -> Any:
    others = [files[other] for other in json_keys(files) if other != key]
    return mutations(files[key], others, count, f"{SEED} {key}")


def said(answers: Answers) -> dict[str, int]:
    """The kinds of errors, for the table."""
    return {name: number for name, number in answers.kinds.most_common() if name != "read"}


def test_the_store_itself_is_read(files: dict[str, bytes]) -> None:
    """Negative control: what is refused below is refused for what was changed."""
    assert len(json_keys(files)) == CHANGED_FILES
    for key in json_keys(files):
        read_alone(files, key)
        read_through(files, key)
        with digests_fit():
            read_through(files, key)


def test_a_cut_file_is_refused(files: dict[str, bytes], tally: Tally) -> None:
    answers = Answers()
    with digests_fit():
        for key in json_keys(files):
            for data in cuts(files[key]):
                answers.ask(files, key, data, "cut", signed=SIGNED)
    tally.reached("json", answers.tried, "files", answers.finish(), cuts=answers.tried, **said(answers))


@pytest.mark.parametrize("quarter", range(4), ids="part {}".format)
@pytest.mark.timeout(3600)
def test_a_changed_file_is_refused_or_read_as_what_it_says(
    files: dict[str, bytes], tally: Tally, quarter: int
) -> None:
    answers = Answers()
    with digests_fit():
        for key in json_keys(files)[quarter::4]:
            for how, data in mutated(files, key, scale(120, 600)):
                answers.ask(files, key, data, how, signed=SIGNED)
    tally.reached("json", answers.tried, "files", answers.finish(), mutations=answers.tried, **said(answers))


@pytest.mark.timeout(3600)
def test_what_is_not_signed_anew_is_never_read(files: dict[str, bytes], tally: Tally) -> None:
    answers = Answers()
    for key in json_keys(files):
        for how, data in mutated(files, key, scale(30, 200)):
            answers.ask(files, key, data, how, signed=UNSIGNED)
    tally.reached("json", answers.tried, "files", answers.finish(), mutations=answers.tried, **said(answers))


@pytest.mark.timeout(3600)
def test_verify_names_what_was_cut_or_changed(tmp_path: Path, tally: Tally) -> None:
    """On a disk, through the door that users take; the last record of the log may go, and is then a shorter store."""
    path = small_store(tmp_path)
    files = stores.tree(path)
    wrong, tried = [], 0
    for number, key in enumerate(json_keys(files)):
        if key == "__logitstore__/log/3.json":
            continue
        faults = [("cut", data) for data in list(cuts(files[key]))[number % 40 :: scale(200, 7)]]
        for how, data in [*faults, *mutated(files, key, scale(2, 20))]:
            (path / key).write_bytes(data)
            tried += 1
            report = verify(path, deep=True)
            if not report.problems or report.exit_code not in (1, 3):
                wrong.append(f"{key}, {how}: exit code {report.exit_code} for {data[:80]!r}")
        (path / key).write_bytes(files[key])
    assert verify(path, deep=True).exit_code == 0
    tally.reached("json", tried, "files", wrong, verified=tried)


# Negative controls: a guard is taken out, and the same judge sees harm.


def harm(files: dict[str, bytes], keys: list[str], *, signed: bool, count: int = 40) -> list[str]:
    answers = Answers()
    with digests_fit() if signed else contextlib.nullcontext():
        for key in keys:
            for how, data in [*(("cut", d) for d in cuts(files[key])), *mutated(files, key, count)]:
                answers.ask(files, key, data, how, signed=signed)
    return answers.finish()


def test_a_parser_that_trusts_is_seen(files: dict[str, bytes], tally: Tally) -> None:
    def trusting(data: bytes, where: str) -> Any:
        return json.loads(data)

    keys = ["teachers/wide/__logitstore__/spec.json", "samples/zarr.json"]
    assert harm(files, keys, signed=SIGNED) == []
    with mock.patch("logitstore.storage.format.documents.parse_json", trusting):
        seen = harm(files, keys, signed=SIGNED)
    tally.control("json", "strict JSON", any("JSONDecodeError" in line for line in seen))
    tally.control("json", "depth of JSON", any("RecursionError" in line for line in seen) or _deep(trusting))


def _deep(parse: Any) -> bool:
    """Whether a parser leaves a deep file to the stack."""
    try:
        parse(b"[" * 200_000, "x")
    except RecursionError:
        return True
    return False


def test_digests_that_are_not_compared_are_seen(files: dict[str, bytes], tally: Tally) -> None:
    keys = ["teachers/wide/__logitstore__/spec.json", "samples/zarr.json"]
    assert harm(files, keys, signed=UNSIGNED) == []
    with digests_fit():
        seen = harm(files, keys, signed=UNSIGNED)
    tally.control("json", "sha256 of metadata", any("nothing was said" in line for line in seen))


def test_a_record_whose_own_digest_is_not_compared_is_seen(files: dict[str, bytes], tally: Tally) -> None:
    """A flipped bit of a commit record, its own digest as it was."""
    key = "samples/__logitstore__/commits/0-0.json"
    data = files[key].replace(b'"block":0', b'"block":1')
    assert data != files[key]

    def refused() -> bool:
        answers = Answers()
        answers.ask(files, key, data, "flip", signed=UNSIGNED)
        return answers.kinds["ManifestInvalid"] == 1

    assert refused()
    own = json_own_digest(data)
    with mock.patch("logitstore.storage.parts.journal.sha256_hex", lambda _: own):
        tally.control("json", "own digest of a record", not refused())


def json_own_digest(record: bytes) -> str:
    return str(json.loads(record)["self"])
