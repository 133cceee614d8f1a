"""No order of writes, kills, damage and repairs gives other numbers, or loses any unnoticed."""

from pathlib import Path

import pytest
from support.children import apart

from faults.machine import SCRIPTS, harm_of_script
from faults.tally import Tally, scale

PIECES = 4


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("piece", range(PIECES), ids="part {}".format)
def test_no_order_of_events_loses_or_changes_what_was_acknowledged(
    memory_path: Path, tally: Tally, piece: int
) -> None:
    count, steps = scale(100, 1_000) // PIECES, scale(50, 500)
    harm = []
    try:
        apart("faults.machine:examples", folder=str(memory_path), number=piece, count=count, steps=steps)
    except AssertionError as error:
        harm.append(error)
    tally.reached("machine", count, "examples", harm, steps_at_most=count * steps)


@pytest.mark.parametrize("name", SCRIPTS)
def test_known_orders_of_events(tmp_path: Path, tally: Tally, name: str) -> None:
    harm = harm_of_script(tmp_path / "guarded", name)
    tally.reached("machine", 1, "examples", [harm] if harm else [])
    if SCRIPTS[name][1]:
        tally.control("machine", name, bool(harm_of_script(tmp_path / "unguarded", name, guarded=False)))
