"""A store that lost folders or files is made whole by `repair` and its writers, or repair does not say so."""

from pathlib import Path

import pytest
from support.children import apart

from faults.lost import CONTROLS, LOSSES
from faults.tally import Tally, scale


@pytest.mark.timeout(3600)
def test_lost_folders_and_files_are_made_again_or_called_lost(memory_path: Path, tally: Tally) -> None:
    pairs = scale(20, 600)
    done = apart("faults.lost:losses", path=str(memory_path / "store.zarr"), seed=7, pairs=pairs)
    assert done["tried"] > len(LOSSES) * done["folders"] + pairs
    # What cannot be mended has lost a seal, a spec or the log: a fifth of the folders, and two files a part.
    assert done["mended"] > done["tried"] * 2 // 3
    tally.reached("lost", done["tried"], "losses", done["harm"], mended=done["mended"])


@pytest.mark.parametrize("guard", CONTROLS)
def test_a_guard_that_is_taken_out_is_missed(memory_path: Path, tally: Tally, guard: str) -> None:
    with_guard, without = apart("faults.lost:with_and_without", path=str(memory_path), guard=guard)
    assert with_guard == []
    tally.control("lost", guard, bool(without))
