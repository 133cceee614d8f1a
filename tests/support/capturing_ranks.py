"""Ranks that capture one store, some of them killed, for tests/pipeline/cache/test_ranks.py.

`killed` is called in an interpreter of its own (`children.apart`): torch is imported once, and each rank is a fork
with the environment that torchrun gives.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from logitstore.pipeline.cache import calibrate, stage
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.runtime.ranks import joined
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.backends.local import NewObject
from logitstore.storage.errors import LogitStoreError
from support import experiments
from support.children import Countdown, die, ranks

BLOCK_ROWS = 16


def document(encoding: Any = "float16", head: str | None = None) -> dict[str, Any]:
    """Return a document of ten blocks of three views, and two teachers."""
    content = experiments.document()
    for teacher in content["teacher"]:
        teacher |= {} if head is None else {"head": head}
    content["cache"] |= {"block_rows": BLOCK_ROWS, "encoding": encoding}
    return content


def captured(base: Path, folder: Path, kill_at: int | None, encoding: Any, head: str | None) -> None:
    """Run stage one as the rank of the environment; die before put number `kill_at`."""
    puts = Countdown(kill_at)
    NewObject.publish = puts.counted(NewObject.publish)  # type: ignore[method-assign]
    os.fsync = lambda descriptor: None  # a killed process takes nothing of the page cache with it
    with joined(60.0) as joint:
        cache(
            Workspace.of_folder(
                experiments.parsed(document(encoding, head), base), folder, device="cpu", ranks=joint
            )
        )
    (folder / f"puts-{os.environ['RANK']}").write_text(str(puts.count))


def dies_while_the_basis_is_made(rank: int, victim: int) -> None:
    """Kill a rank: the first once its teacher was run over the calibration rows, another while it waits for it."""
    genuine = calibrate.calibration_logits

    def calibrating(*arguments: Any) -> Any:
        found = genuine(*arguments)
        if victim == 0:
            die()
        time.sleep(1.0)  # the other rank dies meanwhile
        return found

    def waiting(*arguments: Any) -> Any:
        time.sleep(0.3)
        die()

    if rank == 0:
        calibrate.calibration_logits = calibrating
    elif rank == victim:
        stage.calibrate_teachers = waiting


def calibrating_status(rank: int, base: Path, folder: Path, victim: int | None, encoding: Any) -> int:
    """Run a rank in a fork, of which one may die while the basis is made; return its exit status."""
    if victim is not None:
        dies_while_the_basis_is_made(rank, victim)
    return rank_status(rank, base, folder, None, None, encoding, None)


def killed_while_calibrating(base: str, work: str, encoding: Any) -> list[Any]:
    """Kill each of two ranks while the basis is made, then capture again; return what was found.

    For each victim: the exit statuses, the files of captures that were left, the lines of errors, the statuses of the
    second run, and the files that differ from those of one rank.
    """
    torch.set_num_threads(1)
    here, found = Path(base), []
    folders = {name: Path(work) / name for name in ("whole", "first", "second")}
    for folder in folders.values():
        shutil.copytree(here / "out" / "models" / "teachers", folder / "models" / "teachers")
    assert ranks(1, calibrating_status, here, folders["whole"], None, encoding) == [0]
    reference = experiments.contents(folders["whole"] / "store.zarr")
    for victim, name in enumerate(("first", "second")):
        folder = folders[name]
        statuses = ranks(2, calibrating_status, here, folder, victim, encoding)
        left = [key for key in experiments.contents(folder / "store.zarr") if key.startswith("teachers/")]
        said = [path.read_text() for path in folder.glob("said-*")]
        ended = ranks(2 - victim, calibrating_status, here, folder, None, encoding)
        after = experiments.contents(folder / "store.zarr")
        differing = sorted(key for key in {*after, *reference} if after.get(key) != reference.get(key))
        found.append([statuses, left, said, ended, differing])
    return found


def rank_status(
    rank: int,
    base: Path,
    folder: Path,
    victim: int | None,
    kill_at: int | None,
    encoding: Any,
    head: str | None,
) -> int:
    """Run a rank in a fork; return its exit status, and keep the line of its error."""
    try:
        captured(base, folder, kill_at if rank == victim else None, encoding, head)
    except LogitStoreError as error:
        (folder / f"said-{rank}").write_text(str(error))
        return error.exit_code
    except BaseException:
        (folder / f"said-{rank}").touch()
        raise
    return 0


def run(
    base: Path,
    folder: Path,
    number: int,
    victim: int | None = None,
    kill_at: int | None = None,
    encoding: Any = "float16",
    head: str | None = None,
) -> list[int]:
    """Capture in some ranks, of which one may be killed; return the exit status of each, negative for a signal."""
    return ranks(number, rank_status, base, folder, victim, kill_at, encoding, head)


def killed(
    base: str,
    work: str,
    plan: list[tuple[int, int, float, int]],
    encoding: Any = "float16",
    head: str | None = None,
) -> dict[str, Any]:
    """Capture whole by each number of ranks, then with one of them killed; return a report.

    Args:
        base: folder of `experiments.finished()`.
        work: an empty folder.
        plan: for each capture: ranks, which of them is killed, the share of its puts before that, ranks that resume.
        encoding: of the captures.
        head: that is taken off the teachers.
    """
    torch.set_num_threads(1)
    here, there = Path(base), Path(work)
    report: dict[str, Any] = {"whole": {}, "killed": []}
    puts = {}
    for number in sorted({number for number, *_ in plan}):
        folder = there / f"whole-{number}"
        shutil.copytree(here / "out" / "models" / "teachers", folder / "models" / "teachers")
        statuses = run(here, folder, number, encoding=encoding, head=head)
        puts[number] = [int((folder / f"puts-{rank}").read_text()) for rank in range(number)]
        report["whole"][number] = [statuses, experiments.contents(folder / "store.zarr")]
    reference = report["whole"][1][1]
    for index, (number, victim, share, resuming) in enumerate(plan):
        folder = there / f"killed-{index}"
        shutil.copytree(here / "out" / "models" / "teachers", folder / "models" / "teachers")
        statuses = run(
            here, folder, number, victim, max(1, int(puts[number][victim] * share)), encoding, head
        )
        left = len(experiments.contents(folder / "store.zarr"))
        said = {path.name: path.read_text() for path in folder.glob("said-*")}
        ended = run(here, folder, resuming, encoding=encoding, head=head)
        after = experiments.contents(folder / "store.zarr")
        differing = sorted(key for key in {*after, *reference} if after.get(key) != reference.get(key))
        report["killed"].append([statuses, said, left, ended, differing])
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    return report
