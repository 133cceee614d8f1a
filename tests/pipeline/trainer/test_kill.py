"""SIGKILL at any point of a training that keeps checkpoints: the next one resumes, and ends in the same bytes."""

import signal
from pathlib import Path

import pytest
from support import trainings
from support.children import apart


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(20, id="20 kills"),
        pytest.param(400, id="400 kills", marks=[pytest.mark.deep, pytest.mark.timeout(1300)]),
    ],
)
def test_a_training_that_was_killed_anywhere_ends_in_the_same_bytes(tmp_path: Path, kills: int) -> None:
    trainings.plain_store(tmp_path / "store.zarr")
    whole, others = apart("support.killed_training:killed", seconds=1200, base=str(tmp_path), kills=kills)
    assert whole["calls"] > 60
    assert len(others) == kills
    for other in others:
        assert other["killed"] == -signal.SIGKILL, other
        assert other["ended"] == 0, other
        assert other["weights"] == whole["weights"], other
        assert other["files"] == ["a-seed0.json", "a-seed0.metrics.jsonl", "a-seed0.safetensors"], other
    # Some were killed before a first checkpoint, some between two, some with the record written.
    left = [other["left"] for other in others]
    assert [] in left
    assert any("000000000002.json" in names for names in left)
    assert any("a-seed0.json" in names for names in left)
