"""Stores of the day on which format 1.0 was fixed: read bit for bit, and written byte for byte."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import stores
from support.make_golden import DATA, FILES, MAKERS, NEWER
from support.stores import Made

from faults.damage import unchecked_chunks, unguarded
from faults.tally import Tally
from logitstore.storage.api import Store, open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.integrity.verify import CLEAN, verify

DIGESTS = {
    "store-v1.0": "sha256:b4279fa02c2d8fd725af51eae8cc1f2c91904b78421a14610599cbe2b1b7f3f8",
    "plain-v1.0": "sha256:93506e715dc23c81772fd81ede46ded156552bbc7ed4d5da9c5b813588cfb15c",
}
"""What the stores were called on the day they were made: nobody makes them anew and says they are old."""


def differences(store: Store, made: Made) -> Iterator[str]:
    """What is not read as it was written. `made` knows what that was from its arguments, not from a store."""
    pairs = {
        "labels": (store.samples.labels, made.labels),
        "source": (store.samples.source, np.arange(len(made.labels))),
        "digests": (store.samples.digests, digest_rows(made.inputs)),
        "inputs": (np.asarray(store.samples.inputs), made.inputs),
    }
    if set(store.teachers) != set(made.logits):
        yield f"teachers {list(store.teachers)}"
    for name, logits in made.logits.items():
        capture = store.teachers[name]
        dtype = capture.encoding.kind
        for view in range(capture.num_views):
            pairs[f"{name}, view {view}"] = (capture.read(slice(None), view), made.centred(name, dtype)[view])
            pairs[f"{name}, view {view}: peak"] = (capture.peak(slice(None), view), logits[view].max(axis=1))
    for what, (found, wanted) in pairs.items():
        if found.dtype != wanted.dtype or found.shape != wanted.shape or found.tobytes() != wanted.tobytes():
            yield what


@pytest.mark.parametrize("name", MAKERS)
def test_a_golden_store_is_read_bit_for_bit(tmp_path: Path, tally: Tally, name: str) -> None:
    made = MAKERS[name](tmp_path / name)
    path = DATA / name
    store = open_store(path, expect=DIGESTS[name])
    harm = [f"{name}: {what}" for what in differences(store, made)]
    report = verify(path, deep=True, expect=DIGESTS[name])
    if (report.exit_code, report.strays, report.unsealed) != (CLEAN, [], []):
        harm.append(f"{name}: {[*map(str, report.problems)]} {report.strays} {report.unsealed}")
    if stores.tree(made.path) != stores.tree(path):
        harm.append(f"{name}: written today it has other bytes")
    tally.reached("golden", 1, "stores", harm)


def test_golden_stores_are_small() -> None:
    assert {path.name for path in DATA.iterdir()} == {*MAKERS, *NEWER, FILES.name}
    assert set(MAKERS) == set(DIGESTS)
    assert sum(len(data) for name in MAKERS for data in stores.tree(DATA / name).values()) < 100 << 10


@pytest.mark.parametrize("array", ["samples/input/c.1.0.0", "teachers/only/logits/c.0.0.0"])
def test_a_golden_store_of_other_numbers_is_noticed(tmp_path: Path, tally: Tally, array: str) -> None:
    made = MAKERS["plain-v1.0"](tmp_path / "made")
    shutil.copytree(DATA / "plain-v1.0", tmp_path / "copy")
    stores.flip(tmp_path / "copy" / array, 17)
    with unguarded(("parts.part_reader.check_crc32c", unchecked_chunks)):
        tally.control("golden", array, bool(list(differences(open_store(tmp_path / "copy"), made))))
