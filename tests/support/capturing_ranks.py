"""Ranks that capture one store, some of them killed, for tests/pipeline/cache/test_ranks.py.

`killed` is called in an interpreter of its own (`children.apart`): torch is imported once, and each rank is a fork
with the environment that torchrun gives.
"""

import contextlib
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import torch

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.runtime.ranks import joined
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.backends.local import NewObject
from logitstore.storage.errors import LogitStoreError
from support import experiments
from support.children import Child, Countdown

BLOCK_ROWS = 16


def document() -> dict[str, Any]:
    """Return a document of ten blocks of three views, and two teachers."""
    content = experiments.document()
    content["cache"]["block_rows"] = BLOCK_ROWS
    return content


def captured(base: Path, folder: Path, kill_at: int | None) -> None:
    """Run stage one as the rank of the environment; die before put number `kill_at`."""
    puts = Countdown(kill_at)
    NewObject.publish = puts.counted(NewObject.publish)  # type: ignore[method-assign]
    os.fsync = lambda descriptor: None  # a killed process takes nothing of the page cache with it
    with joined(60.0) as ranks:
        cache(Workspace.of_folder(experiments.parsed(document(), base), folder, device="cpu", ranks=ranks))
    (folder / f"puts-{os.environ['RANK']}").write_text(str(puts.count))


def rank_status(base: Path, folder: Path, kill_at: int | None) -> int:
    """Run a rank in a fork; return its exit status, and keep the line of its error."""
    try:
        captured(base, folder, kill_at)
    except LogitStoreError as error:
        (folder / f"said-{os.environ['RANK']}").write_text(str(error))
        return error.exit_code
    except BaseException:
        (folder / f"said-{os.environ['RANK']}").touch()
        raise
    return 0


def run(
    base: Path, folder: Path, ranks: int, victim: int | None = None, kill_at: int | None = None
) -> list[int]:
    """Capture in some ranks; return the exit status of each, negative for a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(ranks):
        place = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        at = kill_at if rank == victim else None
        children.append(Child(rank_status, base, folder, at, environment=place))
    return [child.wait(120) for child in children]


def killed(base: str, work: str, plan: list[tuple[int, int, float, int]]) -> dict[str, Any]:
    """Capture whole by each number of ranks, then with one of them killed; return a report.

    Args:
        base: folder of `experiments.finished()`.
        work: an empty folder.
        plan: for each capture: ranks, which of them is killed, the share of its puts before that, ranks that resume.
    """
    torch.set_num_threads(1)
    here, there = Path(base), Path(work)
    report: dict[str, Any] = {"whole": {}, "killed": []}
    puts = {}
    for ranks in sorted({ranks for ranks, *_ in plan}):
        folder = there / f"whole-{ranks}"
        shutil.copytree(here / "out" / "models" / "teachers", folder / "models" / "teachers")
        statuses = run(here, folder, ranks)
        puts[ranks] = [int((folder / f"puts-{rank}").read_text()) for rank in range(ranks)]
        report["whole"][ranks] = [statuses, experiments.contents(folder / "store.zarr")]
    reference = report["whole"][1][1]
    for number, (ranks, victim, share, resuming) in enumerate(plan):
        folder = there / f"killed-{number}"
        shutil.copytree(here / "out" / "models" / "teachers", folder / "models" / "teachers")
        statuses = run(here, folder, ranks, victim, max(1, int(puts[ranks][victim] * share)))
        left = len(experiments.contents(folder / "store.zarr"))
        said = {path.name: path.read_text() for path in folder.glob("said-*")}
        ended = run(here, folder, resuming)
        after = experiments.contents(folder / "store.zarr")
        differing = sorted(key for key in {*after, *reference} if after.get(key) != reference.get(key))
        report["killed"].append([statuses, said, left, ended, differing])
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    return report
