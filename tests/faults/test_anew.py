"""A writer that wakes after its store was deleted and begun anew, or moved away, writes nothing into the other one."""

from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.anew import MUTANTS, POINTS, WAYS
from faults.tally import Tally, scale


@pytest.mark.timeout(900)
def test_a_writer_that_wakes_in_a_store_begun_anew_writes_nothing_and_says_why(
    tmp_path: Path, tally: Tally
) -> None:
    count = scale(22, 220)
    found = apart(
        "faults.anew:trials", seconds=60 + 3 * count, first=0, count=count, folder=memory_folder(tmp_path)
    )
    tally.reached("anew", count, "writers", found["violations"])
    assert found["stopped"] == count


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_writer_that_is_not_bound_to_its_store_is_seen(tmp_path: Path, tally: Tally, mutant: str) -> None:
    """Negative controls: the same trials, with a writer that is wrong."""
    found = apart("faults.anew:trials", first=0, count=6, folder=memory_folder(tmp_path), mutant=mutant)
    tally.control("anew", mutant, caught=bool(found["violations"]))


def test_every_point_meets_every_way_in_the_deep_count() -> None:
    met = {(number % len(POINTS), number // 2 % len(WAYS)) for number in range(220)}
    assert len(met) == len(POINTS) * len(WAYS)
