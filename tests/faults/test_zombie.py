"""A stopped writer that wakes after another has sealed its job changes nothing, and reports the reason."""

from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.tally import Tally, scale
from faults.waking import MUTANTS
from logitstore.storage.errors import PartSealed


@pytest.mark.timeout(600)
def test_a_writer_that_wakes_after_the_seal_changes_nothing_and_says_why(
    tmp_path: Path, tally: Tally
) -> None:
    count = scale(20, 100)
    found = apart(
        "faults.waking:trials", seconds=60 + 3 * count, first=0, count=count, folder=memory_folder(tmp_path)
    )
    tally.reached("zombie", count, "writers", found["violations"])
    assert found["stopped"] == count
    assert (PartSealed.code, PartSealed.exit_code) == ("part-sealed", 65)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_writer_without_the_guard_is_seen(tmp_path: Path, tally: Tally, mutant: str) -> None:
    """Negative controls: the same trials, with a writer that is wrong."""
    found = apart("faults.waking:trials", first=1, count=9, folder=memory_folder(tmp_path), mutant=mutant)
    tally.control("zombie", mutant, caught=bool(found["violations"]))
