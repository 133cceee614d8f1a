"""Real writers that are killed at random and at named points, and started again in another number.

`runs` is called in an interpreter of its own (`children.apart`). One run: writers of one capture are killed, the
blocks that they acknowledged are checked, and another number of them resumes, until all end by themselves.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import stores
from support.children import Child, die

from .points import POINTS, Watch
from .writers import (
    EARLY,
    MUTANTS,
    PART_SEALED,
    PLAN,
    Place,
    Plan,
    acks,
    broken_commits,
    differences,
    golden,
    stamps,
    status_of,
    work,
)

PLANS = (PLAN, replace(PLAN, encoding={"max_kl": 1e-2}), replace(PLAN, encoding={"top_k": 2}))
"""What is captured, run by run: floats, codes that a codec makes smaller, and the largest logits."""
MOST = 60
"""Incarnations after which a run that is not done never will be."""


def writer(
    path: Path, plan: Plan, share: tuple[int, int], pipe: int, aim: tuple[str, int] | None, mutant: str
) -> int:
    """One writer, in a fork; aim: the point at which, and the time for which, it kills itself there."""
    write = os.write
    if mutant:
        MUTANTS[mutant]()
    if aim is not None:
        Watch(*aim, die).start()

    def acknowledged(view: int, block: int) -> None:
        write(pipe, bytes((view, block)))

    return status_of(log_of(path), work, path, plan, share, acknowledged, early=mutant == EARLY)


def log_of(path: Path) -> Path:
    """Where the writers of a store say what ended them."""
    return path.with_suffix(".errors")


def runs(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Runs number `first` and on: what they did, and every violation. Odd ones begin at a named point."""
    total: Counter[str] = Counter()
    violations: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder) as base:
        whole = [golden(Path(base) / f"golden-{number}", plan) for number, plan in enumerate(PLANS)]
        for number in range(first, first + count):
            path = Path(base) / "store"
            aim = _aim(number, number - first)
            # Of the runs that begin at a named point, and of the others, every third is of a kind.
            kind = number // 2 % len(PLANS)
            found = _run(number, path, PLANS[kind], whole[kind], mutant, aim, total)
            violations += [f"run {number}{f' ({mutant})' if mutant else ''}: {line}" for line in found]
            shutil.rmtree(path, ignore_errors=True)
            log_of(path).unlink(missing_ok=True)
    return {"violations": violations, "points": len([p for p in total if ": " in p]), **total}


def _aim(number: int, index: int) -> tuple[str, int] | None:
    """At which point, and the how manieth time there, the first writers of a run end; index: of the run in its test.

    The first time that a test comes to a point it is n = 1: one of the writers is then the first there, whoever it is,
    so that each point is met for certain. A later n is met only by a writer that the others leave so much work.
    """
    if number % 2 == 0:
        return None
    point = POINTS[number // 2 % len(POINTS)]
    repeated = index // 2 >= len(POINTS) and point.startswith(("data", "record"))
    return point, random.Random(number).randint(1, 6) if repeated else 1


def _run(
    number: int,
    path: Path,
    plan: Plan,
    whole: dict[str, bytes],
    mutant: str,
    first_aim: tuple[str, int] | None,
    total: Counter[str],
) -> list[str]:
    chance = random.Random(number)
    part = plan.part(path)
    acknowledged: set[Place] = set()
    written: dict[str, tuple[int, int]] = {}
    for incarnation in range(MOST):
        world = chance.randint(1, 4)
        reading, writing = os.pipe()
        aim = first_aim if incarnation == 0 else None
        children = [Child(writer, path, plan, (rank, world), writing, aim, mutant) for rank in range(world)]
        os.close(writing)
        if aim is None:
            # Where the machine is busy 50 ms are too few to come anywhere: ever longer.
            time.sleep(chance.random() ** 2 * 0.05 * (1 + incarnation / 4))
            statuses = [child.status if child.has_ended() else child.kill() for child in children]
        else:
            statuses = [child.wait(20) for child in children]
            total[aim[0]] += statuses.count(-signal.SIGKILL) > 0
        new = acks(reading)
        os.close(reading)
        total["incarnations"] += 1
        total["kills"] += statuses.count(-signal.SIGKILL)
        bad = [status for status in statuses if status not in (0, PART_SEALED, -signal.SIGKILL)]
        wrong = [f"writers left with {bad}: {log_of(path).read_text()}"] if bad else []
        wrong += [f"acknowledged in vain: {line}" for line in broken_commits(part, acknowledged | new)]
        wrong += [f"a record speaks of what is not there: {line}" for line in broken_commits(part)]
        wrong += [f"{place} was acknowledged and done again" for place in sorted(acknowledged & new)]
        now = stamps(part, acknowledged)
        wrong += [f"{key} was written again" for key, stamp in written.items() if now.get(key) != stamp]
        if wrong:
            return wrong
        acknowledged |= new
        written = stamps(part, acknowledged)
        if not any(statuses) or (set(statuses) == {0, PART_SEALED}):
            return list(differences(stores.tree(path), whole))
    return [f"not sealed after {MOST} incarnations"]
