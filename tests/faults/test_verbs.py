"""`rm` and `concat` change nothing else and end in the same bytes, wherever they are killed, and on a full disk."""

from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.tally import Tally, scale
from faults.verbs import EARLY


@pytest.mark.timeout(3600)
def test_verbs_that_are_killed_end_in_the_same_bytes(tmp_path: Path, tally: Tally) -> None:
    count = scale(12, 200)
    folder = memory_folder(tmp_path)
    found = apart("faults.verbs:runs", seconds=120 + 5 * count, first=0, count=count, folder=folder)
    tally.reached("kill", count, "runs", found["violations"], kills=found["kills"])
    assert found["kills"] >= count // 2


@pytest.mark.timeout(600)
def test_verbs_on_a_full_disk_change_nothing_and_are_completed(tmp_path: Path, tally: Tally) -> None:
    if why_not := str(apart("faults.mounts:may_mount")):
        pytest.skip(why_not)
    count = scale(4, 25)
    found = apart("faults.verbs:full", seconds=60 + 5 * count, count=count, folder=memory_folder(tmp_path))
    tally.reached("full", count + 1, "sizes", found["violations"])
    assert found["full"] > count // 2


def test_a_removal_whose_record_comes_last_is_seen(tmp_path: Path, tally: Tally) -> None:
    """Negative control: the same runs, with a removal in the wrong order."""
    found = apart("faults.verbs:runs", first=0, count=6, folder=memory_folder(tmp_path), mutant=EARLY)
    tally.control("kill", EARLY, caught=any("verify" in line for line in found["violations"]))
