"""The loops of docs/guides/your-own-loop.md: they run as they stand, and resume without a difference.

Each is taken from the page and run as a script, killed in mid-epoch, and run again. Where lightning, or transformers
and accelerate, are not installed, their loops are skipped.
"""

import importlib.util
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
from support.tree import ROOT

import logitstore
from logitstore.pipeline import TorchStream, losses

PAGE = (ROOT / "docs" / "guides" / "your-own-loop.md").read_text(encoding="utf-8")
SCRIPTS = {
    re.match(r"# (\S+)\n", source)[1]: source  # type: ignore[index]
    for source in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
}
BATCHES, EPOCHS, SAVED_AT, KILLED_AT = 10, 3, 12, 15


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip where a library is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: not a dependency")


LOOPS = [
    "plain.py",
    pytest.param("with_lightning.py", marks=needs("lightning")),
    pytest.param("with_transformers.py", marks=needs("transformers", "accelerate")),
]

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


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scripts of the page lie, and the store that the first of them makes."""
    path = tmp_path_factory.mktemp("loops") / "original"
    path.mkdir()
    for name, source in {**SCRIPTS, "driver.py": DRIVER}.items():
        (path / name).write_text(source, encoding="utf-8")
    assert run(path, "make_store.py") == ""
    return path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
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


@pytest.mark.parametrize("script", LOOPS)
def test_a_loop_that_was_killed_goes_on_as_if_it_had_not(folder: Path, script: str) -> None:
    """Every step gets the batch that it would have got, and the weights are the same bits."""
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


def test_a_loop_that_stops_between_two_epochs_loses_none(folder: Path) -> None:
    """Saved after the last batch of the first epoch: the second is not taken for the rest of the first."""
    source = SCRIPTS["plain.py"].replace("SAVE_EVERY, CHECKPOINT = 3, 4,", "SAVE_EVERY, CHECKPOINT = 3, 10,")
    assert source != SCRIPTS["plain.py"]
    (folder / "plain.py").write_text(source, encoding="utf-8")
    run(folder, "driver.py", "plain.py", str(BATCHES + 1), expect=9)
    run(folder, "driver.py", "plain.py", "0")
    assert seen(folder) == expected(folder)[BATCHES:]


@needs("lightning")
@pytest.mark.parametrize("killed_at", [BATCHES + 1, 2 * BATCHES + 1])
def test_lightning_loses_no_epoch_that_ended_with_a_checkpoint(folder: Path, killed_at: int) -> None:
    source = SCRIPTS["with_lightning.py"].replace("every_n_train_steps=4", "every_n_train_steps=10")
    (folder / "with_lightning.py").write_text(source, encoding="utf-8")
    run(folder, "driver.py", "with_lightning.py", str(killed_at), expect=9)
    run(folder, "driver.py", "with_lightning.py", "0")
    assert seen(folder) == expected(folder)[killed_at - 1 :]


@needs("transformers", "accelerate")
@pytest.mark.parametrize("killed_at", [BATCHES + 1, 2 * BATCHES + 1])
def test_transformers_loses_no_epoch_that_ended_with_a_checkpoint(folder: Path, killed_at: int) -> None:
    source = SCRIPTS["with_transformers.py"].replace("save_steps=4", "save_steps=10")
    (folder / "with_transformers.py").write_text(source, encoding="utf-8")
    run(folder, "driver.py", "with_transformers.py", str(killed_at), expect=9)
    run(folder, "driver.py", "with_transformers.py", "0")
    assert seen(folder) == expected(folder)[killed_at - 1 :]


LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def check_two_ranks(folder: Path) -> None:
    """Both ranks together saw every row of every epoch once, in batches of their own."""
    ranks = [seen(folder, rank) for rank in range(2)]
    steps = BATCHES * EPOCHS // 2
    assert [len(rank) for rank in ranks] == [steps, steps]
    for epoch in range(EPOCHS):
        part = slice(epoch * steps // EPOCHS, (epoch + 1) * steps // EPOCHS)
        rows = [row for rank in ranks for batch in rank[part] for row in batch]
        assert len(rows) == len(set(rows)) == 600


@needs("lightning")
def test_two_processes_of_lightning_read_every_row_once(folder: Path) -> None:
    source = SCRIPTS["with_lightning.py"].replace(
        "max_epochs=3,", 'max_epochs=3, accelerator="cpu", devices=2, strategy="ddp",'
    )
    (folder / "with_lightning.py").write_text(source, encoding="utf-8")
    run(folder, *LAUNCH, "driver.py", "with_lightning.py", "0")
    check_two_ranks(folder)


@needs("transformers", "accelerate")
def test_two_processes_of_transformers_read_every_row_once(folder: Path) -> None:
    source = SCRIPTS["with_transformers.py"].replace("report_to=[],", "report_to=[], use_cpu=True,")
    (folder / "with_transformers.py").write_text(source, encoding="utf-8")
    run(folder, *LAUNCH, "driver.py", "with_transformers.py", "0")
    check_two_ranks(folder)


def test_workers_send_their_batches_to_the_device(folder: Path) -> None:
    assert run(folder, "workers.py") == "(24, 10)\n"


def test_every_script_of_the_page_is_run_here() -> None:
    assert list(SCRIPTS) == [
        "make_store.py",
        "plain.py",
        "workers.py",
        "with_lightning.py",
        "with_transformers.py",
    ]


@pytest.mark.parametrize("library", ["lightning", "transformers", "accelerate"])
def test_the_page_says_the_versions_that_were_tried(library: str) -> None:
    said = re.search(rf"{library} (\d+\.\d+\.\d+)", PAGE)
    assert said is not None
    if importlib.util.find_spec(library) is not None:
        module = importlib.import_module(library)
        assert module.__version__.split(".")[0] == said[1].split(".")[0]
