"""Every good object in the wrong place is refused, and every old one if a newer is expected."""

from pathlib import Path

import pytest
from support.children import apart

from faults.swap import CONTROLS, KINDS
from faults.tally import Tally

COUNTS = {kind: 10 if kind.startswith(("old", "basis")) else 50 for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_the_wrong_place_is_refused(memory_path: Path, tally: Tally, kind: str) -> None:
    harm = apart("faults.swap:swaps", folder=str(memory_path), kind=kind, seed=5, count=COUNTS[kind])
    tally.reached("swap", COUNTS[kind], "objects", harm)


@pytest.mark.parametrize("guard", CONTROLS)
def test_a_guard_that_is_taken_out_is_missed(tmp_path: Path, tally: Tally, guard: str) -> None:
    with_guard, without = apart("faults.swap:with_and_without", folder=str(tmp_path), guard=guard)
    assert with_guard == []
    tally.control("swap", guard, bool(without))
