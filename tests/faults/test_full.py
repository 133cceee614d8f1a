"""A really full disk costs nothing but time: a warning, nothing half visible, a resume to the same bytes."""

import functools
from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.filling import MUTANTS
from faults.tally import Tally, scale


@functools.cache
def why_not() -> str:
    """Why nothing can be mounted here."""
    return str(apart("faults.mounts:may_mount"))


@pytest.fixture(autouse=True)
def may_mount() -> None:
    """Skip where no disk of a chosen size can be had."""
    if why_not():
        pytest.skip(why_not())


@pytest.mark.timeout(600)
def test_a_full_disk_is_warned_of_and_what_fits_is_kept(tmp_path: Path, tally: Tally) -> None:
    count = scale(25, 100)
    folder = memory_folder(tmp_path)
    found = apart("faults.filling:trials", seconds=60 + 5 * count, first=0, count=count, folder=folder)
    tally.reached("full", count, "sizes", found["violations"], blocks_kept=found["blocks"])
    assert found["without_samples"] >= count // 25
    assert found["warned"] > 0.8 * count
    assert found["blocks"] > 3 * count


def test_the_command_warns_leaves_with_75_and_goes_on(tmp_path: Path, tally: Tally) -> None:
    found = apart("faults.commands:full", folder=memory_folder(tmp_path))
    tally.reached("full", 1, "sizes", found["violations"])


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_writer_without_a_guard_is_seen(tmp_path: Path, tally: Tally, mutant: str) -> None:
    """Negative controls: the same disks, with writers that are wrong."""
    found = apart("faults.filling:trials", first=4, count=4, folder=memory_folder(tmp_path), mutant=mutant)
    tally.control("full", mutant, caught=bool(found["violations"]))
