"""The winner of a name is known by its file: a hard-link snapshot of a staged file makes no loser a winner."""

from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.snapshots import MUTANTS
from faults.tally import Tally, scale


@pytest.mark.timeout(600)
def test_snapshots_beside_two_writers_cost_no_block(tmp_path: Path, tally: Tally) -> None:
    count = scale(12, 240)
    found = apart(
        "faults.snapshots:trials",
        seconds=60 + 3 * count,
        first=0,
        count=count,
        folder=memory_folder(tmp_path),
    )
    tally.reached("snapshots", found["contested"], "blocks", found["violations"])
    assert found["contested"] == count


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_writer_that_counts_names_is_seen(tmp_path: Path, tally: Tally, mutant: str) -> None:
    """Negative control: the same trials, with a writer that is wrong."""
    found = apart("faults.snapshots:trials", first=0, count=3, folder=memory_folder(tmp_path), mutant=mutant)
    tally.control("snapshots", mutant, caught=bool(found["violations"]))
