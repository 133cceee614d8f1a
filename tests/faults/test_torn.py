"""Torn, empty and overlong shards of every array are found, thrown away and made again, byte for byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.children import apart

from faults.damage import Case, unchecked_chunks, unguarded
from faults.tally import Tally, scale
from faults.torn import harm_of_mending, harm_of_tear
from logitstore.storage.errors import ShardCorrupt
from logitstore.storage.format.layouts import BASIS
from logitstore.storage.integrity.repair import Repairs

PIECES = 2
ARRAYS = {
    *(f"samples/{name}" for name in ("source", "digest", "label", "id", "input", "class_name")),
    *(f"teachers/{t}/{name}" for t in ("wide", "deep") for name in ("logits", "peak", "seen", "classes")),
    *(f"teachers/codes/{name}" for name in ("logits", "error", "peak", "seen", "classes")),
    *(f"teachers/largest/{n}" for n in ("index", "logits", "tail", "error", "peak", "seen", "classes")),
    *(f"teachers/turned/{n}" for n in ("codes", "refine", "error", "escape", "seen", "classes", *BASIS)),
    *(f"clusters/wide-2x2/{name}" for name in ("covariance", "assignment", "centres", "sets")),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("piece", range(PIECES), ids="part {}".format)
def test_torn_shards_are_found_and_after_repair_and_another_run_the_store_is_the_same_bytes(
    memory_path: Path, tally: Tally, piece: int
) -> None:
    count = scale(100, 800) // PIECES
    done = apart("faults.torn:tears", path=str(memory_path / "store.zarr"), seed=100 + piece, count=count)
    assert set(done["arrays"]) == ARRAYS
    tally.reached("torn", count, "shards", done["harm"], repairs=done["rounds"])


def _tear(case: Case, key: str, change: Callable[[bytes], bytes]) -> None:
    (case.path / key).write_bytes(change(case.whole[key]))


@pytest.mark.parametrize(
    ("guard", "target", "replacement", "change"),
    [
        (
            "checksums of a read",
            "parts.part_reader.check_crc32c",
            unchecked_chunks,
            lambda data: b"\1" * 9 + data[9:],
        ),
        ("shards in verify", "integrity.checks.check_shard", lambda *_, **__: None, lambda data: data[:7]),
    ],
    ids=["checksums of a read", "shards in verify"],
)
def test_a_guard_that_is_taken_out_is_missed(
    memory_path: Path,
    tally: Tally,
    guard: str,
    target: str,
    replacement: Any,
    change: Callable[[bytes], bytes],
) -> None:
    case = Case(memory_path / "store.zarr", teachers={}, clustering=False)
    case.write()
    key = "samples/source/c.1"
    _ = case.whole, case.numbers_of(key)
    _tear(case, key, change)
    assert harm_of_tear(case, key) == []
    with unguarded((target, replacement)):
        tally.control("torn", guard, bool(harm_of_tear(case, key)))


def test_without_repair_the_writer_alone_does_not_make_it_whole(memory_path: Path, tally: Tally) -> None:
    case = Case(memory_path / "store.zarr", teachers={}, clustering=False)
    case.write()
    key = "samples/label/c.1"
    _ = case.whole, case.numbers_of(key)
    _tear(case, key, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with mock.patch("faults.torn.repair", lambda path: Repairs(removed=[key])):
        try:
            harm = harm_of_mending(case, [key])
        except ShardCorrupt as error:  # the writer compares the labels with those that are there
            harm = [str(error)]
        tally.control("torn", "repair", bool(harm))
    assert harm_of_mending(case, [key]) == []
