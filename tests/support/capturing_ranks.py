"""How do several ranks capture, and what happens when one of them is killed? Started by tests/pipeline/cache/test_ranks.py.

    capturing_ranks.py BASE WORK PLAN    ->  a line of JSON

Ranks are forked children with the environment that torchrun gives: torch is imported once. PLAN lists
[ranks, who is killed, the share of its puts before which it is, ranks that go on]. BASE holds `experiments.finished()`.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.runtime.ranks import joined
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.backends.local import NewObject
from logitstore.storage.errors import LogitStoreError
from support import experiments

BLOCK_ROWS = 16


def document() -> dict[str, Any]:
    """Ten blocks of three views, two teachers."""
    content = experiments.document()
    content["cache"]["block_rows"] = BLOCK_ROWS
    return content


def captured(base: Path, folder: Path, kill_at: int | None) -> None:
    """Stage one as the rank that the environment says; killed before its put number `kill_at`."""
    puts = 0
    genuine = NewObject.publish

    def publish(self: NewObject) -> bool:
        nonlocal puts
        puts += 1
        if puts == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return genuine(self)

    NewObject.publish = publish  # type: ignore[method-assign]
    os.fsync = lambda descriptor: None  # a killed process takes nothing of the page cache with it
    with joined(60.0) as ranks:
        cache(Workspace.of_folder(experiments.parsed(document(), base), folder, device="cpu", ranks=ranks))
    (folder / f"puts-{os.environ['RANK']}").write_text(str(puts))


def child(base: Path, folder: Path, rank: int, kill_at: int | None) -> int:
    """Start a rank."""
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    status = 70
    said = io.StringIO()
    try:
        captured(base, folder, kill_at)
        status = 0
    except LogitStoreError as error:
        said.write(str(error))
        status = error.exit_code
    except BaseException:  # noqa: BLE001 - the child ends here
        traceback.print_exc()
    finally:
        if status:
            (folder / f"said-{rank}").write_text(said.getvalue())
        os._exit(status)


def run(
    base: Path, folder: Path, ranks: int, victim: int | None = None, kill_at: int | None = None
) -> list[int]:
    """Capture in some ranks; the exit status of each, negative for a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= world
    pids = [child(base, folder, rank, kill_at if rank == victim else None) for rank in range(ranks)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main(base: Path, work: Path, plan: list[tuple[int, int, float, int]]) -> None:
    """A whole capture by each number of ranks, then killed ones."""
    torch.set_num_threads(1)
    report: dict[str, Any] = {"whole": {}, "killed": []}
    puts = {}
    for ranks in sorted({ranks for ranks, *_ in plan}):
        folder = work / f"whole-{ranks}"
        shutil.copytree(base / "out" / "models" / "teachers", folder / "models" / "teachers")
        statuses = run(base, folder, ranks)
        puts[ranks] = [int((folder / f"puts-{rank}").read_text()) for rank in range(ranks)]
        report["whole"][ranks] = [statuses, experiments.contents(folder / "store.zarr")]
    reference = report["whole"][1][1]
    for number, (ranks, victim, share, going_on) in enumerate(plan):
        folder = work / f"killed-{number}"
        shutil.copytree(base / "out" / "models" / "teachers", folder / "models" / "teachers")
        statuses = run(base, folder, ranks, victim, max(1, int(puts[ranks][victim] * share)))
        left = len(experiments.contents(folder / "store.zarr"))
        said = {path.name: path.read_text() for path in folder.glob("said-*")}
        ended = run(base, folder, going_on)
        after = experiments.contents(folder / "store.zarr")
        differing = sorted(key for key in {*after, *reference} if after.get(key) != reference.get(key))
        report["killed"].append([statuses, said, left, ended, differing])
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
