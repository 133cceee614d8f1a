"""Nothing is lost, and nothing else written, when real writers are killed anywhere and started again."""

from pathlib import Path
from typing import Any

import pytest
from support.children import apart, memory_folder

from faults.killing import AIMS
from faults.tally import Tally, scale
from faults.writers import MUTANTS

PARTS = 4
"""Tests that the runs are spread over."""


def runs(tmp_path: Path, first: int, count: int, mutant: str = "") -> dict[str, Any]:
    folder = memory_folder(tmp_path)
    result: dict[str, Any] = apart(
        "faults.killing:runs", seconds=60 + 3 * count, first=first, count=count, folder=folder, mutant=mutant
    )
    return result


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS), ids="part {}".format)
def test_nothing_acknowledged_is_lost_and_the_bytes_are_those_of_an_uninterrupted_writer(
    tmp_path: Path, tally: Tally, part: int
) -> None:
    count = scale(200, 2000) // PARTS
    found = runs(tmp_path, part * count, count)
    tally.reached("kill", count, "runs", found["violations"], kills=found["kills"])
    assert found["incarnations"] > 1.5 * count
    missed = [point for point in AIMS if not found.get(point)]
    assert not missed, f"no writer was killed at {missed}"


def test_a_writer_that_is_killed_at_any_put_keeps_the_basis_that_is_there(
    tmp_path: Path, tally: Tally
) -> None:
    found = apart("faults.killing:at_every_put", seconds=300, folder=memory_folder(tmp_path))
    assert set(found["states"]) == {"nothing", "a part of the basis", "the basis", "a block"}
    tally.reached("kill", found["kills"], "runs", found["violations"], kills=found["kills"])


def test_a_writer_that_replaces_the_basis_is_seen(tmp_path: Path, tally: Tally) -> None:
    folder = memory_folder(tmp_path)
    found = apart("faults.killing:at_every_put", seconds=300, folder=folder, step=9, mutant=True)
    taken = [line for line in found["violations"] if "a block: other rows" in line]
    tally.control("kill", "the basis that is there is used", bool(taken))


@pytest.mark.timeout(1200)
def test_the_command_is_killed_and_ends_with_the_same_bytes(tmp_path: Path, tally: Tally) -> None:
    count = scale(10, 100)
    folder = memory_folder(tmp_path)
    found = apart("faults.commands:killed", seconds=60 + 5 * count, first=0, count=count, folder=folder)
    tally.reached("kill", count, "runs", found["violations"], kills=found["kills"])
    assert found["kills"] >= count // 2


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_writer_without_a_guard_is_seen_to_lose_or_tear(tmp_path: Path, tally: Tally, mutant: str) -> None:
    """Negative controls: the same runs, with writers that are wrong, until one of them does harm."""
    batches = (runs(tmp_path, 16 * batch, 16, mutant)["violations"] for batch in range(6))
    tally.control("kill", mutant, caught=any(batches))
