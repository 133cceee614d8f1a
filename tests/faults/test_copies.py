"""A copy that is killed anywhere and run again is complete and identical, and sends nothing twice that had arrived."""

from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.copies import MUTANTS
from faults.tally import Tally, scale


def test_a_copy_that_is_killed_anywhere_ends_in_the_same_bytes_and_sends_nothing_twice(
    tmp_path: Path, tally: Tally
) -> None:
    count = scale(10, 50)
    folder = memory_folder(tmp_path)
    found = apart("faults.copies:runs", seconds=120 + 10 * count, first=0, count=count, folder=folder)
    assert found["kills"] >= count
    tally.reached("copy", count, "runs", found["violations"], kills=found["kills"])


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_copy_without_a_guard_is_seen_to_do_harm(tmp_path: Path, tally: Tally, mutant: str) -> None:
    folder = memory_folder(tmp_path)
    found = apart("faults.copies:runs", seconds=240, first=0, count=4, folder=folder, mutant=mutant)
    tally.control("copy", mutant, bool(found["violations"]))
