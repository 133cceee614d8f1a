"""Lost folders and files: gone, empty, or with a file in the place of the folder.

A store that `repair` calls mended must be the same bytes after its writers ran again. One that it does not call mended
must have lost a file that follows from no other.
"""

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

from support import stores

from faults.damage import Case
from logitstore.storage.errors import NotAStoreError
from logitstore.storage.integrity.repair import BEYOND, repair
from logitstore.storage.integrity.verify import CLEAN, verify

LOSSES: Final = ("gone", "empty", "a file in its place")
_COPIED: Final = ("__logitstore__/spec.json", "__logitstore__/seal.json")
"""Files that follow from no other."""
_VOUCHING: Final = (*_COPIED, "__logitstore__/seal.bin")
"""Files from which others follow: where one is lost, another may be beyond repair."""
CONTROLS: Final[dict[str, tuple[str, Any, str, str]]] = {
    "a file in the way": (
        "backends.local.Folder.file_on_the_way",
        lambda *_: None,
        "teachers/wide/logits",
        "a file in its place",
    ),
    "records of seal.bin": (
        "integrity.checks.check_sealed_record",
        lambda *_: None,
        "teachers/codes/__logitstore__/commits",
        "gone",
    ),
    "metadata that a writer puts back": (
        "parts.part_writer.put_same",
        lambda *_: None,
        "samples/class_name",
        "empty",
    ),
}
"""Guards of repair and writers: target, replacement, the folder that shows it, and how it is lost."""


def folders_of(path: Path) -> list[str]:
    """Return the key of every folder of a store."""
    return sorted(item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_dir())


def lose(path: Path, how: str) -> None:
    """Lose a folder, or a file: `LOSSES` of a folder, "gone" of a file."""
    if path.is_file():
        path.unlink()
        return
    shutil.rmtree(path)
    if how == "empty":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(b"no folder")


def may_be_beyond(whole: dict[str, bytes], keys: list[str]) -> bool:
    """Return whether so much is lost that a file may follow from no other."""
    lost = [key for key in whole if any(key == one or key.startswith(f"{one}/") for one in keys)]
    log = [key for key in lost if key.startswith("__logitstore__/log/")]
    if len(keys) == 1:
        return len(log) > 1 or any(key.endswith(_COPIED) for key in lost)
    return bool(log) or any(key.endswith(_VOUCHING) for key in lost) or "zarr.json" in lost


def is_clean(path: Path) -> bool:
    """Return whether `verify` finds nothing. A store without a log is none at all."""
    try:
        return verify(path).exit_code == CLEAN
    except NotAStoreError:
        return False


def harm_of_loss(
    path: Path, whole: dict[str, bytes], keys: list[str], write: Callable[[], object]
) -> list[str]:
    """Return what goes wrong when lost folders are repaired and written again."""
    if is_clean(path):
        return ["verify does not notice"]
    try:
        with mock.patch("os.fsync"):
            done = repair(path)
        if done.exit_code == BEYOND:
            return [] if may_be_beyond(whole, keys) else [f"repair gives up: {done.beyond[0]}"]
        write()
        report = verify(path, deep=True)
    except Exception as error:  # noqa: BLE001 - whatever a user would see is harm
        return [f"{type(error).__name__}: {error}"]
    there = stores.tree(path)
    harm = sorted(key for key in {*there, *whole} if there.get(key) != whole.get(key))
    return ([f"other bytes: {harm}"] if harm else []) + [str(one) for one in report.problems]


def losses(path: str, seed: int, pairs: int) -> dict[str, Any]:
    """Lose each folder of a store in three ways, each file, and `pairs` of two of them; make it whole each time."""
    case = Case(Path(path))
    case.write()
    whole, copy = case.whole, case.path.with_name("copy.zarr")
    shutil.copytree(case.path, copy)
    folders = folders_of(case.path)
    trials = [([key], how) for key in folders for how in LOSSES]
    trials += [([key], "gone") for key in whole]
    draw = random.Random(seed)
    trials += [(draw.sample([*folders, *whole], 2), draw.choice(LOSSES)) for _ in range(pairs)]
    harm: list[str] = []
    mended = 0
    for keys, how in trials:
        for key in keys:
            if (case.path / key).exists():  # or it went with the other
                lose(case.path / key, how)
        found = harm_of_loss(case.path, whole, keys, case.write)
        harm += [f"{' and '.join(keys)}, {how}: {one}" for one in found]
        mended += is_clean(case.path)
        shutil.rmtree(case.path)
        shutil.copytree(copy, case.path)
    return {"harm": harm, "tried": len(trials), "folders": len(folders), "mended": mended}


def with_and_without(path: str, guard: str) -> list[list[str]]:
    """Return the harm of a lost folder with a guard, and without it."""
    target, replacement, key, how = CONTROLS[guard]
    found = []
    for name in ("with", "without"):
        case = Case(Path(path) / f"{name}.zarr")
        case.write()
        whole = case.whole
        lose(case.path / key, how)
        taken_out = mock.patch(f"logitstore.storage.{target}", replacement)
        with taken_out if name == "without" else contextlib.nullcontext():
            found.append(harm_of_loss(case.path, whole, [key], case.write))
    return found
