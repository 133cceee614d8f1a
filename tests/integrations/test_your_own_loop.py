"""The loops of Lightning and of transformers in docs/guides/your-own-loop.md: they run as they stand, and resume."""

import importlib
import re
from pathlib import Path

import pytest
from support.loops import (  # noqa: F401 - fixtures
    BATCHES,
    EPOCHS,
    PAGE,
    SCRIPTS,
    check_killed,
    expected,
    folder_of_loops,
    original_of_loops,
    run,
    seen,
)


@pytest.mark.parametrize("script", ["with_lightning.py", "with_transformers.py"])
def test_a_loop_that_was_killed_goes_on_as_if_it_had_not(folder: Path, script: str) -> None:
    check_killed(folder, script)


@pytest.mark.parametrize("killed_at", [BATCHES + 1, 2 * BATCHES + 1])
def test_lightning_loses_no_epoch_that_ended_with_a_checkpoint(folder: Path, killed_at: int) -> None:
    source = SCRIPTS["with_lightning.py"].replace("every_n_train_steps=4", "every_n_train_steps=10")
    (folder / "with_lightning.py").write_text(source, encoding="utf-8")
    run(folder, "driver.py", "with_lightning.py", str(killed_at), expect=9)
    run(folder, "driver.py", "with_lightning.py", "0")
    assert seen(folder) == expected(folder)[killed_at - 1 :]


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


def test_two_processes_of_lightning_read_every_row_once(folder: Path) -> None:
    source = SCRIPTS["with_lightning.py"].replace(
        "max_epochs=3,", 'max_epochs=3, accelerator="cpu", devices=2, strategy="ddp",'
    )
    (folder / "with_lightning.py").write_text(source, encoding="utf-8")
    run(folder, *LAUNCH, "driver.py", "with_lightning.py", "0")
    check_two_ranks(folder)


def test_two_processes_of_transformers_read_every_row_once(folder: Path) -> None:
    source = SCRIPTS["with_transformers.py"].replace("report_to=[],", "report_to=[], use_cpu=True,")
    (folder / "with_transformers.py").write_text(source, encoding="utf-8")
    run(folder, *LAUNCH, "driver.py", "with_transformers.py", "0")
    check_two_ranks(folder)


@pytest.mark.parametrize("library", ["lightning", "transformers", "accelerate"])
def test_the_page_says_the_versions_that_were_tried(library: str) -> None:
    said = re.search(rf"{library} (\d+\.\d+\.\d+)", PAGE)
    assert said is not None
    assert importlib.import_module(library).__version__.split(".")[0] == said[1].split(".")[0]
