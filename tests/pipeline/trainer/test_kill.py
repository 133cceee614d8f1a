"""SIGKILL at any point of a training that keeps checkpoints: the next one goes on, and ends in the same bytes."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import experiments, killed_training, trainings


def killed(folder: Path, kills: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the whole training gave, and what each killed one did."""
    trainings.plain_store(folder / "store.zarr")
    done = subprocess.run(
        [sys.executable, killed_training.__file__, str(folder), str(kills)],
        env=experiments.python_environment(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole, *others = map(json.loads, done.stdout.splitlines())
    return whole, others


@pytest.mark.parametrize(
    "kills", [20, pytest.param(400, marks=[pytest.mark.deep, pytest.mark.timeout(1300)])]
)
def test_a_training_that_was_killed_anywhere_ends_in_the_same_bytes(tmp_path: Path, kills: int) -> None:
    whole, others = killed(tmp_path, kills)
    assert whole["calls"] > 60
    assert len(others) == kills
    for other in others:
        assert other["killed"] == signal.SIGKILL, other
        assert other["ended"] == 0, other
        assert other["weights"] == whole["weights"], other
        assert other["files"] == ["a-seed0.json", "a-seed0.metrics.jsonl", "a-seed0.safetensors"], other
    # Some were killed before a first checkpoint, some between two, some with the record written.
    left = [other["left"] for other in others]
    assert [] in left
    assert any("000000000002.json" in names for names in left)
    assert any("a-seed0.json" in names for names in left)
