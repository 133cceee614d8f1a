"""`rm` and `concat` that are killed anywhere, or run on a disk that is full, and then run again.

Each function is called in an interpreter of its own (`children.apart`). After every kill the store is verified: a part that
is removed is whole, or gone with bytes left; a store that is concatenated has no damage; and nothing else has changed.
"""

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from support import stores
from support.children import Child, Countdown
from support.stores import Teacher

from logitstore.storage.api import create_store
from logitstore.storage.backends import emptying
from logitstore.storage.backends.local import NewObject
from logitstore.storage.errors import NotAStoreError, StorageFull
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts import removal
from logitstore.storage.sharing import removing
from logitstore.storage.sharing.concatenating import concat_stores
from logitstore.storage.sharing.removing import remove_parts

from .mounts import enter_namespace, resize, tmpfs
from .writers import differences, status_of

REMOVED: Final = "teachers/wide/"
TEACHERS: Final = {"wide": Teacher(views=2), "kl": Teacher(encoding={"max_kl": 1e-2})}
MOST: Final = 60
"""Incarnations after which a run that is not done never will be."""
EARLY: Final = "frees the bytes before the log says so"


def sources(base: Path) -> list[Path]:
    """Make two stores of several blocks, with other ids."""
    paths = [base / f"source-{number}.zarr" for number in range(2)]
    for number, path in enumerate(paths):
        rows = 21 + 10 * number
        inputs = stores.some_inputs(rows + 100 * number)[100 * number :]
        ids = [f"{number}-{row}" for row in range(rows)]
        store = create_store(
            path, num_classes=5, labels=np.arange(rows) % 5, inputs=inputs, ids=ids, block_rows=8
        )
        for name, teacher in TEACHERS.items():
            logits = stores.some_logits(teacher.views, rows, 5, seed=number)
            stores.write_capture(store, name, logits, teacher, inputs)
    return paths


def work(base: Path, verb: str, path: Path, at: int | None = None, mutant: str = "") -> int:
    """Do a verb, in a fork. at: number of the put or removal before which it dies."""
    steps = Countdown(at)
    NewObject.publish = steps.counted(NewObject.publish)  # type: ignore[method-assign]
    emptying._remove = steps.counted(emptying._remove)
    if mutant == EARLY:

        def record_last(store: Any, part: str, seal: str) -> bool:
            removal.free(store, part)
            return append(store, part, seal)

        append, removing.append_removal = removing.append_removal, record_last

    def done() -> None:
        if verb == "rm":
            remove_parts(path, teachers=["wide"])
        else:
            concat_stores([base / f"source-{number}.zarr" for number in range(2)], path)

    return status_of(base / "errors", done)


def runs(first: int, count: int, folder: str, mutant: str = "") -> dict[str, Any]:
    """Runs number `first` and on, of both verbs: kills, and every violation."""
    total, violations = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        base = Path(name)
        paths = sources(base)
        whole = [stores.tree(path) for path in paths]
        shutil.copytree(paths[0], base / "rm.zarr")
        remove_parts(base / "rm.zarr", teachers=["wide"])
        concat_stores(paths, base / "concat.zarr")
        wanted = {verb: stores.tree(base / f"{verb}.zarr") for verb in ("rm", "concat")}
        for number in range(first, first + count):
            verb = ("rm", "concat")[number % 2]
            path = base / "store"
            if verb == "rm":
                shutil.copytree(paths[0], path)
            found = _run(base, verb, path, number, mutant, total)
            found += differences(stores.tree(path), wanted[verb])
            found += [
                line
                for path, tree in zip(paths, whole, strict=True)
                for line in differences(stores.tree(path), tree)
            ]
            violations += [f"run {number}, {verb}: {line}" for line in found]
            shutil.rmtree(path, ignore_errors=True)
            (base / "errors").unlink(missing_ok=True)
    return {"violations": violations, **total}


def _run(base: Path, verb: str, path: Path, number: int, mutant: str, total: Counter[str]) -> list[str]:
    chance, kept = random.Random(number), stores.tree(path)
    for incarnation in range(MOST):
        at = chance.randint(1, 40) if number % 4 < 2 and incarnation < 3 else None
        child = Child(work, base, verb, path, at, mutant)
        if at is None:
            time.sleep(chance.random() ** 2 * 0.05 * (1 + incarnation / 4))
            status = child.status if child.has_ended() else child.kill()
        else:
            status = child.wait(60)
        total["incarnations"] += 1
        total["kills"] += bool(status is not None and status < 0)
        if status is not None and status > 0:
            return [f"left with {status}: {(base / 'errors').read_text()}"]
        if wrong := _wrong(verb, path, kept):
            return wrong
        if status == 0:
            return []
    return [f"not done after {MOST} incarnations"]


def _wrong(verb: str, path: Path, kept: dict[str, bytes]) -> list[str]:
    """Return what is wrong with a store after a kill."""
    try:
        report = verify(path, deep=True)
    except NotAStoreError:
        return [] if verb == "concat" else ["no store is left"]
    wrong = [f"verify: {problem}" for problem in report.problems]
    if verb == "rm":
        wrong += [f"verify: {part} seems to be begun" for part in report.unsealed]
        now = stores.tree(path)
        wrong += [
            f"{key} has changed"
            for key, data in kept.items()
            if not key.startswith(REMOVED) and now.get(key) != data
        ]
    return wrong


def full(count: int, folder: str) -> dict[str, Any]:
    """Concatenate onto disks of several sizes, and remove from a disk without a free byte; then again, with room."""
    enter_namespace()
    violations, totals = list[str](), Counter[str]()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        base = Path(name)
        concat_stores(sources(base), base / "concat.zarr")
        wanted = stores.tree(base / "concat.zarr")
        needed = sum(-(-len(data) // 4096) * 4096 for data in wanted.values())
        for number in range(count):
            with tmpfs(base / "disk", max(1 << 17, needed * (number + 1) // (count + 1))) as disk:
                violations += [
                    f"size {number}: {line}" for line in _on_full(base, disk, "concat", wanted, totals)
                ]
        shutil.copytree(base / "source-0.zarr", base / "rm.zarr")
        remove_parts(base / "rm.zarr", teachers=["wide"])
        with tmpfs(base / "disk", 1 << 24) as disk:
            shutil.copytree(base / "source-0.zarr", disk / "store")
            _fill(disk)
            wanted = stores.tree(base / "rm.zarr")
            violations += [f"rm: {line}" for line in _on_full(base, disk, "rm", wanted, totals)]
    return {"violations": violations, **totals}


def _fill(disk: Path) -> None:
    handle = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(handle, bytes(4096)):
            pass
    os.close(handle)


def _on_full(base: Path, disk: Path, verb: str, wanted: dict[str, bytes], totals: Counter[str]) -> list[str]:
    path = disk / "store"
    kept = stores.tree(path)
    status = Child(_blind, base, verb, path).wait(60)
    said = (base / "errors").read_text() if (base / "errors").exists() else ""
    (base / "errors").unlink(missing_ok=True)
    totals["full"] += status == StorageFull.exit_code and StorageFull.__name__ in said
    wrong = [] if status == StorageFull.exit_code else [f"left with {status}: {said}"]
    wrong += _wrong(verb, path, kept)
    resize(disk, 1 << 26)
    if status := Child(work, base, verb, path).wait(60):
        wrong.append(f"with room it left with {status}: {(base / 'errors').read_text()}")
    return [*wrong, *differences(stores.tree(path), wanted)]


def _blind(base: Path, verb: str, path: Path) -> int:
    """Do a verb without a look at the free bytes, as if another process took them meanwhile."""
    from logitstore.storage.backends.local import Folder

    Folder.free_bytes = lambda self: 1 << 60  # type: ignore[method-assign]
    return work(base, verb, path)
