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
from itertools import count
from pathlib import Path
from typing import Any, Final

from support import stores
from support.children import Child, Countdown, die

from logitstore.storage.backends.local import NewObject
from logitstore.storage.errors import SpecMismatch
from logitstore.storage.format.layouts import BASIS
from logitstore.storage.parts import chosen_basis
from logitstore.storage.parts.writer import CaptureWriter

from .points import BASIS_POINTS, POINTS, Watch
from .writers import (
    EARLY,
    MUTANTS,
    PART_SEALED,
    PLAN,
    Place,
    Plan,
    acks,
    begin,
    broken_commits,
    differences,
    golden,
    stamps,
    status_of,
    work,
)

TRANSFORM: Final = replace(PLAN, encoding={"transform": {"max_kl": 1e-2}})
"""A capture whose blocks rest on a basis."""
PLANS = (
    PLAN,
    replace(PLAN, encoding={"max_kl": 1e-2}),
    replace(PLAN, encoding={"top_k": 2}),
    TRANSFORM,
)
"""What is captured, run by run: floats, codes that a codec makes smaller, the largest logits, codes in a basis."""
AIMS: Final = (*POINTS, *BASIS_POINTS)
"""Points at which runs begin; those of the basis with `TRANSFORM`."""
SHORT: Final = replace(TRANSFORM, rows=11, views=1)
"""The shortest capture of several blocks that rest on a basis."""
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
            # Of the runs that begin at a named point, and of the others, every fourth is of a kind; a point meets all.
            kind = (number // 2 + number // 2 // len(AIMS)) % len(PLANS)
            kind = PLANS.index(TRANSFORM) if aim and aim[0] in BASIS_POINTS else kind
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
    point = AIMS[number // 2 % len(AIMS)]
    repeated = index // 2 >= len(AIMS) and point.startswith(("data", "record"))
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


def dying(path: Path, at: int, after: bool) -> int:
    """Write `SHORT`, in a fork, and die before or after the put of that number."""
    puts = Countdown(at)
    NewObject.publish = puts.counted(NewObject.publish, after=after)  # type: ignore[method-assign]
    return status_of(log_of(path), work, path, SHORT)


def resuming(path: Path, own: bool, mutant: bool) -> int:
    """Resume `SHORT`, in a fork. own: with the calibration rows of the plan, or with others. mutant: see `at_every_put`."""
    if mutant:
        chosen_basis._held_basis = lambda root, part: None
        CaptureWriter.compare_notes = lambda self, begun: None  # type: ignore[method-assign]
    return status_of(log_of(path), work, path, SHORT, calibration=None if own else 2 * SHORT.logits[0, 5:9])


def at_every_put(folder: str, step: int = 1, mutant: bool = False) -> dict[str, Any]:
    """Kill a writer before and after each put of a capture with a basis, and resume it; return every violation.

    First it is resumed with other calibration rows: a basis that is there is used, one of which files are missing is not
    replaced by another. step: of the places before and after puts, from one to the next. mutant: writers make a basis of
    their own rows, whatever is there.
    """
    violations, states = list[str](), Counter[str]()
    with tempfile.TemporaryDirectory(dir=folder) as base:
        begun = Path(base) / "begun"
        begin(begun, SHORT)
        whole = Path(base) / "whole"
        shutil.copytree(begun, whole)
        work(whole, SHORT)
        wanted = stores.tree(whole)
        for number in count(0, step):
            path, place = Path(base) / "store", f"{'after' if number % 2 else 'before'} put {number // 2 + 1}"
            shutil.copytree(begun, path)
            if Child(dying, path, number // 2 + 1, bool(number % 2)).wait() == 0:
                break
            state = state_of(SHORT.part(path))
            states[state] += 1
            if state != "nothing":
                left = stores.tree(path)
                status = Child(resuming, path, False, mutant).wait()
                if state == "a part of the basis":
                    kept = {key: data for key, data in stores.tree(path).items() if key in left} == left
                    if status != SpecMismatch.exit_code or not kept:
                        violations.append(
                            f"{place}, {state}: other rows were taken, or files lost ({status})"
                        )
                elif status or stores.tree(path) != wanted:
                    violations.append(f"{place}, {state}: other rows end with {status} and other bytes")
            if status := Child(resuming, path, True, False).wait():
                violations.append(f"{place}, {state}: the same rows end with {status}")
            violations += [f"{place}, {state}: {line}" for line in differences(stores.tree(path), wanted)]
            shutil.rmtree(path)
            log_of(path).unlink(missing_ok=True)
    return {"violations": violations, "kills": states.total(), "states": states}


def state_of(part: Path) -> str:
    """Return how far the basis of a capture is there, and whether a block is."""
    if not (part / "__logitstore__/spec.json").exists():
        return "nothing"
    if not all((part / name / "zarr.json").exists() and any((part / name).glob("c.*")) for name in BASIS):
        return "a part of the basis"
    return "a block" if any((part / "__logitstore__/commits").glob("*")) else "the basis"
