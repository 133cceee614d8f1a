"""The loops of docs/guides/your-own-loop.md: taken from the page, run as scripts, killed in mid-epoch, and run again."""

import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from itertools import chain
from pathlib import Path

import pytest
import torch

import logitstore
from logitstore.pipeline import TorchStream, losses

from .tree import ROOT

PAGE = (ROOT / "docs" / "guides" / "your-own-loop.md").read_text(encoding="utf-8")
SCRIPTS = {
    re.match(r"# (\S+)\n", source)[1]: source  # type: ignore[index]
    for source in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
}
BATCHES, EPOCHS, SAVED_AT, KILLED_AT = 10, 3, 12, 15


DRIVER = """
import json, os, runpy, sys, zlib
import torch
from logitstore.pipeline import losses

script, stop = sys.argv[1], int(sys.argv[2])
forward, seen = losses.Distillation.forward, []

def watched(self, logits, targets, labels=None):
    seen.append([zlib.crc32(row.tobytes()) for row in targets.numpy()])
    if len(seen) == stop:
        os._exit(9)
    return forward(self, logits, targets, labels)

losses.Distillation.forward = watched
names = runpy.run_path(script, run_name="__main__")
rank = os.environ.get("LOCAL_RANK", "0")
with open(f"seen-{rank}.json", "w") as file:
    json.dump(seen, file)
torch.save(names["student"].state_dict(), f"weights-{rank}.pt")
"""
"""Runs a script, notes which targets every step got, and kills it at one of them, as a power cut would."""


@pytest.fixture(scope="module", name="original")
def original_of_loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scripts of the page lie, and the store that the first of them makes."""
    path = tmp_path_factory.mktemp("loops") / "original"
    path.mkdir()
    for name, source in {**SCRIPTS, "driver.py": DRIVER}.items():
        (path / name).write_text(source, encoding="utf-8")
    assert run(path, "make_store.py") == ""
    return path


@pytest.fixture(name="folder")
def folder_of_loops(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def run(folder: Path, *arguments: str, expect: int = 0) -> str:
    """What a script says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,  # below, with what it said
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def seen(folder: Path, rank: int = 0) -> list[list[int]]:
    """A number for each row of the targets of each step."""
    found: list[list[int]] = json.loads((folder / f"seen-{rank}.json").read_text())
    return found


def expected(folder: Path) -> list[list[int]]:
    """The same of a stream that nobody disturbs."""
    stream = TorchStream(logitstore.open_store(folder / "small.zarr").stream(batch_size=64, views=0, seed=1))
    return [
        [zlib.crc32(row.tobytes()) for row in losses.soft_targets(batch.logits, 4.0).numpy()]
        for _ in range(EPOCHS)
        for batch in stream
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a student ended with."""
    found: dict[str, torch.Tensor] = torch.load(folder / "weights-0.pt", weights_only=True)
    return found


def check_killed(folder: Path, script: str) -> None:
    """Kill a loop and run it again: every step gets the batch that it would have got, and the weights the same bits."""
    steps = expected(folder)
    assert len(steps) == BATCHES * EPOCHS and len(set(chain(*steps))) == 600
    assert steps[:BATCHES] != steps[BATCHES : 2 * BATCHES]

    run(folder, "driver.py", script, str(KILLED_AT), expect=9)
    assert not (folder / "weights-0.pt").exists()
    assert f"{len(steps)} steps" in run(folder, "driver.py", script, "0")
    assert seen(folder) == steps[SAVED_AT:]
    resumed = weights(folder)

    for made in ("plain.pt", "lightning", "transformers"):
        if (folder / made).exists():
            (folder / made).rename(folder / f"old-{made}")
    run(folder, "driver.py", script, "0")
    assert seen(folder) == steps
    whole = weights(folder)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
