"""The advice of `inspect` and `verify` for each damaged file of metadata, followed to its end.

Advice names `logitstore repair`, with the command that wrote the store after it, or a copy of the file. The first must
make the store whole, without a copy; the second must stand for files that `repair` cannot bring back, and only for them.
"""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from faults.damage import Case
from support import stores

from logitstore.storage.api import create_store
from logitstore.storage.backends.remote import folder_at
from logitstore.storage.describe import describe
from logitstore.storage.errors import LogitStoreError
from logitstore.storage.format.shard import COPY, REMAKE
from logitstore.storage.integrity import checks
from logitstore.storage.integrity.repair import BEYOND, DONE, repair
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts import journal

pytestmark = pytest.mark.usefixtures("without_fsync")


KEYS = (
    *("zarr.json", "teachers/zarr.json"),
    *("__logitstore__/log/0.json", "__logitstore__/log/1.json", "__logitstore__/log/3.json"),
    *("samples/zarr.json", "samples/input/zarr.json", "samples/__logitstore__/commits/0-0.json"),
    *(
        "samples/__logitstore__/spec.json",
        "samples/__logitstore__/seal.bin",
        "samples/__logitstore__/seal.json",
    ),
    *("teachers/wide/__logitstore__/spec.json", "teachers/wide/logits/zarr.json"),
    *("clusters/wide-2x2/__logitstore__/spec.json", "clusters/wide-2x2/__logitstore__/seal.json"),
)
"""A file of each kind of metadata, in each kind of part where a part has its own; log/3.json is the last record."""


def advice_of_inspect(folder: Path) -> list[str]:
    try:
        return [error.remedy for error in describe(str(folder))[1]]
    except LogitStoreError as error:
        return [error.remedy]


def advice_of_verify(folder: Path) -> list[str]:
    try:
        return [error.remedy for error in verify(folder_at(str(folder)), deep=True).problems]
    except LogitStoreError as error:
        return [error.remedy]


def follow(case: Case, advice: list[str], damaged: dict[str, bytes]) -> None:
    """Follow advice: the one command that it names, or else the copy. damaged: the files as a copy has them."""
    if any("logitstore repair" in remedy for remedy in advice):
        assert repair(case.path).exit_code == DONE, advice
        case.write()
        return
    assert all("copy" in remedy for remedy in advice), advice
    assert repair(case.path, dry_run=True).exit_code == BEYOND, f"{advice}, and no copy is needed"
    for key, data in damaged.items():
        assert "/log/" not in key or any("restore the log" in remedy for remedy in advice), advice
        (case.path / key).write_bytes(data)


def damage(path: Path, kind: str) -> None:
    if kind == "missing":
        path.unlink()
    elif kind == "flipped":
        stores.flip(path, 155)
    else:
        path.write_bytes(b"{")


def test_every_kind_of_metadata_is_tried(written: Case) -> None:
    """By their names: the arrays of a part have one file each, the blocks one record each."""
    found = (path for path in written.path.rglob("*") if path.suffix == ".json" or path.name == "seal.bin")
    kinds = {path.name if path.parent.name != "commits" else "record" for path in found}
    tried = {"record" if "/commits/" in key else key.rpartition("/")[2] for key in KEYS}
    assert kinds - tried <= {"2.json"}


CASES = [
    *((key, "flipped") for key in KEYS),
    *((key, "missing") for key in KEYS if key.count("/") != 2 or "spec" in key),
    *((key, "torn") for key in KEYS if "/log/" in key or "seal" in key),
]


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_the_advice_makes_the_store_whole(case: Case, key: str, kind: str) -> None:
    original = (case.path / key).read_bytes()
    damage(case.path / key, kind)
    advice = [advice for ask in (advice_of_inspect, advice_of_verify) for advice in ask(case.path)]
    if key.endswith("log/3.json") and kind == "missing":
        # A store of one part less.
        assert not advice
        return
    assert advice
    by_repair = {"logitstore repair" in remedy for remedy in advice}
    assert len(by_repair) == 1, f"advice of two kinds: {advice}"
    follow(case, advice, {key: original})
    assert stores.tree(case.path) == case.whole, advice


@pytest.mark.parametrize("kind", ["missing", "torn"])
def test_the_advice_for_an_unfinished_part_is_true(case: Case, kind: str) -> None:
    """Its spec comes back from a copy, or its writer begins it anew once the folder is gone."""
    store = create_store(
        case.path.parent / "begun.zarr",
        num_classes=3,
        labels=[0, 1, 2] * 4,
        inputs=np.zeros((12, 2), np.uint8),
        block_rows=4,
    )
    with store.capture("begun", provenance={}) as capture:
        rows = next(iter(capture.missing_blocks()))
        capture.write(rows, np.eye(4, 3, dtype=np.float32))
    part = Path(store.path) / "teachers" / "begun"
    damage(part / "__logitstore__" / "spec.json", kind)
    advice = advice_of_verify(Path(store.path))
    assert any(f"delete {part}" in remedy for remedy in advice), advice
    assert repair(Path(store.path)).exit_code == BEYOND
    shutil.rmtree(part)
    assert repair(Path(store.path)).exit_code == DONE


@pytest.mark.parametrize("key", ["__logitstore__/spec.json", "__logitstore__/seal.json"])
def test_advice_that_does_not_help_is_noticed(case: Case, key: str) -> None:
    """Negative control: with the remedy of other files."""
    path = case.path / "samples" / key
    original = path.read_bytes()
    damage(path, "flipped")
    names = {"COPY": REMAKE, "COPY_OF_SEAL": REMAKE}
    with (
        mock.patch.multiple(journal, **names),
        pytest.raises(AssertionError, match="logitstore repair"),
    ):
        follow(case, advice_of_inspect(case.path), {f"samples/{key}": original})


def test_a_copy_that_is_not_needed_is_noticed(case: Case) -> None:
    """Negative control."""
    key = "samples/__logitstore__/commits/0-0.json"
    original = (case.path / key).read_bytes()
    damage(case.path / key, "flipped")
    with pytest.raises(AssertionError, match="no copy is needed"):
        follow(case, [COPY], {key: original})
    assert checks.COPY == COPY
