"""Exports and imports lose nothing: killed anywhere, or on a full disk, they are whole when they are run again."""

import functools
from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.exchange import MUTANTS
from faults.tally import Tally, scale


@functools.cache
def why_not() -> str:
    """Why nothing can be mounted here."""
    return str(apart("faults.mounts:may_mount"))


def test_exports_and_imports_that_are_killed_are_whole_when_run_again(tmp_path: Path, tally: Tally) -> None:
    count = scale(20, 400)
    found = apart("faults.exchange:runs", first=0, count=count, folder=memory_folder(tmp_path))
    tally.reached("exchange", found["kills"], "kills", found["violations"])
    assert found["kills"] > count


@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_exchange_without_a_guard_is_seen(tmp_path: Path, tally: Tally, mutant: str) -> None:
    """Negative controls."""
    found = apart("faults.exchange:runs", first=0, count=8, folder=memory_folder(tmp_path), mutant=mutant)
    tally.control("exchange", mutant, caught=bool(found["violations"]))


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, tally: Tally) -> None:
    if why_not():
        pytest.skip(why_not())
    count = scale(3, 30)
    found = apart("faults.exchange:fillings", count=count, folder=memory_folder(tmp_path))
    tally.reached("full", 4 * count, "sizes", found["violations"])
    assert found["full"] > count
