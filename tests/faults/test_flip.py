"""Every flipped bit is found, and a clean store raises no alarm."""

from pathlib import Path
from typing import Any

import pytest
from support.children import apart

from faults.damage import Case, unchecked_chunks, unguarded
from faults.flip import clean, harm_of_flip, places
from faults.tally import Tally, scale
from logitstore.storage.errors import ShardCorrupt

PIECES = 4


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("piece", range(PIECES), ids="part {}".format)
def test_a_flipped_bit_is_found_by_verify_and_by_the_reads_that_use_it(
    memory_path: Path, tally: Tally, piece: int
) -> None:
    count = scale(1_000, 20_000) // PIECES
    done = apart("faults.flip:flips", path=str(memory_path / "store.zarr"), seed=piece, count=count)
    assert done["classes"] == 11
    tally.reached("flip", count, "bits", done["harm"])


@pytest.mark.timeout(3600)
def test_a_whole_store_raises_no_alarm(memory_path: Path, tally: Tally) -> None:
    count = scale(200, 1_000)
    alarms = apart("faults.flip:clean", folder=str(memory_path), count=count)
    tally.reached("flip", 0, "bits", alarms, clean_verifies=count)


def test_an_alarm_would_be_noticed(memory_path: Path, tally: Tally) -> None:
    with unguarded(("integrity.checks.check_shard", _always_corrupt)):
        tally.control("flip", "a verifier that cries wolf", bool(clean(str(memory_path), 1)))


def _always_corrupt(folder: object, key: str, *_: object) -> None:
    raise ShardCorrupt(key, expected="a", found="b", remedy="c")


Guards = list[tuple[str, Any]]
CONTROLS: dict[str, tuple[str, Guards]] = {
    "checksums of a read": ("payload", [("parts.part_reader.check_crc32c", unchecked_chunks)]),
    "sha256 of shards in verify": ("payload", [("integrity.checks.check_shard", lambda *_, **__: None)]),
    "records in verify": ("record", [("integrity.checks.check_sealed_record", lambda *_: None)]),
    "sha256 of what a seal lists": (
        "spec",
        [
            ("integrity.checks.check_file", lambda *_: None),
            ("parts.root.read_checked", lambda folder, key, *_: folder.read(key)),
            ("parts.sealed_part.read_checked", lambda folder, key, *_: folder.read(key)),
        ],
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_guard_that_is_taken_out_is_missed(memory_path: Path, tally: Tally, name: str) -> None:
    kind, guards = CONTROLS[name]
    case = Case(memory_path / "store.zarr", teachers={}, clustering=False)
    case.write()
    key, start, _ = places(case)[kind][0]
    # Of a spec: in the middle of a word, so that it is still JSON.
    bit = 8 * (case.whole[key].index(b"as_is") if kind == "spec" else start) + 1
    assert harm_of_flip(case, kind, key, bit) == []
    with unguarded(*guards):
        tally.control("flip", name, bool(harm_of_flip(case, kind, key, bit)))
