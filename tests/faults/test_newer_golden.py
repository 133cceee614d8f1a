"""A store of the day on which format 1.1 was fixed: read as it was then, and its uncompressed files written byte for byte.

The bytes behind a codec may differ with another version of its library, and the last bits of a recorded error with another
processor; these are compared by what they decode to.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support import stores, transformed
from support.make_golden import DATA, NEWER, TRANSFORMED

from faults.damage import unchecked_chunks, unguarded
from faults.tally import Tally
from logitstore.storage.api import Store, open_store
from logitstore.storage.integrity.verify import CLEAN, verify

DIGESTS = {"transform-v1.1": "sha256:0bbe73a978d8138e6338465ada10106fb6a5f93676e6be5fc9b7917703a0305a"}
"""What the store was called on the day it was made."""
COMPRESSED = ("codes/c.", "refine/c.", "error/c.", "escape/c.", "__logitstore__/")


def differences(store: Store) -> Iterator[str]:
    """What is not read as it was written."""
    if list(store.teachers) != ["peaked", "turned"]:
        yield f"teachers {list(store.teachers)}"
    wanted = transformed.centred()
    for name, capture in store.teachers.items():
        for view in range(transformed.VIEWS):
            far = [row for where, row in transformed.FAR if where == view]
            near = np.setdiff1d(np.arange(transformed.ROWS), far)
            found = capture.read(slice(None), view)
            if found[near].tobytes() != wanted[view][near].tobytes():
                yield f"{name}, view {view}"
            if np.abs(found - wanted[view])[far].max() > np.sqrt(2 * 1e-2):
                yield f"{name}, view {view}: escaped rows"
            if (capture.divergence(slice(None), view) > 1e-2).any():
                yield f"{name}, view {view}: error"
            if not np.array_equal(capture.seen(slice(None), view), np.arange(transformed.ROWS)):
                yield f"{name}, view {view}: seen"
    if not np.array_equal(
        store.teachers["peaked"].peak(slice(None)), transformed.known_logits()[0].max(axis=1)
    ):
        yield "peak"


def plain_files(path: Path) -> dict[str, bytes]:
    """The files whose bytes follow from the settings and the logits alone."""
    return {
        key: data for key, data in stores.tree(path).items() if not any(part in key for part in COMPRESSED)
    }


@pytest.mark.parametrize("name", NEWER)
def test_a_golden_store_of_format_1_1_is_read_as_it_was_made(tmp_path: Path, tally: Tally, name: str) -> None:
    path = DATA / name
    store = open_store(path, expect=DIGESTS[name])
    harm = [f"{name}: {what}" for what in differences(store)]
    report = verify(path, deep=True, expect=DIGESTS[name])
    if (report.exit_code, report.strays, report.unsealed) != (CLEAN, [], []):
        harm.append(f"{name}: {[*map(str, report.problems)]} {report.strays} {report.unsealed}")
    made = NEWER[name](tmp_path / name)
    if plain_files(made.path) != plain_files(path):
        harm.append(f"{name}: written today its files differ")
    for capture in store.teachers:
        today, then = made.store.teachers[capture], store.teachers[capture]
        for view in range(transformed.VIEWS):
            for array in ("codes", "refine", "escape"):
                if not np.array_equal(*(one.reader.read(array, slice(None), view) for one in (today, then))):
                    harm.append(f"{name}: written today {capture} has other {array}")
    tally.reached("golden", 1, "stores", harm)


def test_the_golden_stores_are_small() -> None:
    assert set(NEWER) == set(DIGESTS) == {TRANSFORMED.name}
    assert sum(len(data) for name in NEWER for data in stores.tree(DATA / name).values()) < 60 << 10


@pytest.mark.parametrize("array", ["basis/c.0.0", "codes/c.0.1.0", "seen/c.1.2"])
def test_a_golden_store_of_other_numbers_is_noticed(tmp_path: Path, tally: Tally, array: str) -> None:
    shutil.copytree(TRANSFORMED, tmp_path / "copy")
    stores.flip(tmp_path / "copy/teachers/peaked" / array, 150)
    caught = False
    with unguarded(("parts.part_reader.check_crc32c", unchecked_chunks)), mock.patch("os.fsync"):
        try:
            caught = bool(list(differences(open_store(tmp_path / "copy"))))
        except Exception:  # noqa: BLE001 - an error is notice, too
            caught = True
    tally.control("golden", array, caught)
