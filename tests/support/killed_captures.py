"""Captures that are killed at a put or while a teacher runs, and resumed, for tests/pipeline/cache/test_stage.py.

`killed` is called in an interpreter of its own (`children.apart`): torch is imported once, and each capture is a fork.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from logitstore.pipeline.cache import capture as capture_pass
from logitstore.pipeline.cache import stage
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.backends.local import NewObject
from support import experiments
from support.children import Child, Countdown, die

Point = dict[str, Any]
"""{"put": n, "after": bool}: die before or after put n; {"logits": n}: while a teacher runs for time n (0: is tried out)."""


def capture(
    base: Path,
    folder: Path,
    put: int | None = None,
    logits: int | None = None,
    after: bool = False,
    encoding: Any = "float16",
) -> None:
    """Run stage one in this process and note the number of puts and of a teacher's calls; die at a point of it."""
    puts, runs = Countdown(put), Countdown(logits)
    os.fsync = lambda descriptor: None  # a killed process takes nothing of the page cache with it
    NewObject.publish = puts.counted(NewObject.publish, after=after)  # type: ignore[method-assign]
    capture_pass.teacher_logits = runs.counted(capture_pass.teacher_logits)
    if logits == 0:
        stage.try_out = lambda *arguments: die()
    content = experiments.document()
    content["cache"]["encoding"] = encoding
    experiment = experiments.parsed(content, base)
    stage.cache(Workspace.of_store(experiment, folder / "store.zarr", folder / "models", device="cpu"))
    (folder / "counts.json").write_text(json.dumps({"put": puts.count, "logits": runs.count}))


def _run(base: Path, folder: Path, point: Point | None = None) -> int:
    """Run `capture` in a fork; return its exit status."""
    return Child(lambda: capture(base, folder, **(point or {}))).wait()


def killed(
    base: str, folder: str, encoding: Any = "float16", puts: list[int] | None = None
) -> dict[str, Any]:
    """Capture whole twice, then killed at points that are spread over the work; return a report.

    Args:
        base: folder of `experiments.finished()`.
        folder: an empty folder to work in.
        encoding: of the captures.
        puts: the puts at which they are killed, before and after in turn; by default some, and while teachers run.
    """
    torch.set_num_threads(1)
    here, work = Path(base), Path(folder)
    whole, fresh = work / "whole", work / "fresh"
    shutil.copytree(here / "out" / "models" / "teachers", whole / "models" / "teachers")
    shutil.copytree(whole, fresh)
    statuses = [_run(here, whole, {"encoding": encoding}), _run(here, fresh, {"encoding": encoding})]
    total = json.loads((whole / "counts.json").read_text())
    expected = experiments.contents(whole / "store.zarr")
    same_twice = expected == experiments.contents(fresh / "store.zarr")
    points: list[Point] = [
        {"put": n, "after": bool(n % 2)} for n in puts or (1, 2, 4, *range(9, total["put"], 13), total["put"])
    ]
    points += [] if puts else [{"logits": n} for n in (0, 1, 3, total["logits"] // 2, total["logits"])]
    results = []
    for number, point in enumerate(points):
        again = work / f"killed-{number}"
        shutil.copytree(whole / "models", again / "models")
        status = _run(here, again, {**point, "encoding": encoding})
        left = experiments.contents(again / "store.zarr")
        if number % 2:  # killed once more on the way
            _run(here, again, {"put": 5, "encoding": encoding})
        resumed = _run(here, again, {"encoding": encoding})
        after = experiments.contents(again / "store.zarr")
        differing = sorted(k for k in {*after, *expected} if after.get(k) != expected.get(k))
        results.append([point, status, len(left), resumed, differing])
        shutil.rmtree(again)
    return {"statuses": statuses, "same_twice": same_twice, "files": len(expected), "results": results}
