"""Torn shards, which a read and `verify` find, and which `repair` and their writer make whole.

Power cuts, full disks and interrupted copies tear a file: cut anywhere, empty, with something after its end, or of the
right size with zeros in place of data.
"""

import random
from pathlib import Path
from typing import Any
from unittest import mock

from support import stores

from faults.damage import Case
from logitstore.storage.errors import LimitExceeded, LogitStoreError, StoreCorrupt
from logitstore.storage.integrity.repair import repair
from logitstore.storage.integrity.verify import CLEAN, verify

TEARS = ("cut", "empty", "overlong", "zeros at the end", "zeros in the middle", "zeros at the start")
SAME_SIZE = frozenset(TEARS[3:])


def arrays_of(case: Case) -> dict[str, list[str]]:
    """Keys of the shards and chunks of every array that is stored, by array: "teachers/wide/logits" …"""
    found: dict[str, list[str]] = {}
    for key in case.whole:
        folder, _, name = key.rpartition("/")
        if name.startswith("c."):
            found.setdefault(folder, []).append(key)
    return found


def torn(data: bytes, how: str, draw: random.Random, used: int) -> bytes:
    """A file as it may be found after a crash; never what it was.

    used: bytes from the start that a read uses; what is damaged is among them.
    """
    if how == "empty":
        return b""
    if how == "cut":
        return data[: draw.randrange(len(data))]
    if how == "overlong":
        return data + draw.randbytes(draw.randint(1, 64))
    for _ in range(100):
        first = draw.randrange(used)
        start, stop = {
            "zeros at the end": (first, len(data)),
            "zeros in the middle": (first, min(used, first + draw.randint(1, 16))),
            "zeros at the start": (0, first + 1),
        }[how]
        found = data[:start] + b"\0" * (stop - start) + data[stop:]
        if found[:used] != data[:used]:
            return found
    return bytes(byte ^ 0xFF for byte in data)


def harm_of_tear(case: Case, key: str) -> list[str]:
    """What goes wrong where a file is torn: a read or a verification that does not notice."""
    harm = []
    try:
        found = case.read(key)
        harm.append("a read notices nothing" if found == case.numbers_of(key) else "other numbers are read")
    except (StoreCorrupt, LimitExceeded):
        pass
    except LogitStoreError as error:
        harm.append(f"a read raises {type(error).__name__}")
    deep = {problem.where for problem in verify(case.path, deep=True).problems}
    if str(case.path / key) not in deep:
        harm.append("verify --deep does not name it")
    of_another_size = (case.path / key).stat().st_size != len(case.whole[key])
    if of_another_size and not verify(case.path).problems:
        harm.append("verify finds nothing though the size is another")
    return [f"{key}: {what}" for what in harm]


def harm_of_mending(case: Case, keys: list[str]) -> list[str]:
    """What goes wrong when torn files are repaired and written again."""
    harm = []
    with mock.patch("os.fsync"):
        done = repair(case.path)
    if done.exit_code or set(done.removed) != set(keys) or done.strays:
        harm.append(f"repair removed {done.removed}, beyond it {[*map(str, done.beyond)]}")
    case.write()
    there = stores.tree(case.path)
    if there != case.whole:
        other = sorted(k for k in {*there, *case.whole} if there.get(k) != case.whole.get(k))
        harm.append(f"not the same bytes afterwards: {other}")
    report = verify(case.path, deep=True)
    if report.exit_code != CLEAN:
        harm.append(f"not clean afterwards: {[*map(str, report.problems)]}")
    return harm


def tears(path: str, seed: int, count: int) -> dict[str, Any]:
    """Tear `count` files of a store, one to three at a time, and make it whole again each time."""
    case = Case(Path(path))
    case.write()
    arrays = arrays_of(case)
    for key in (key for keys in arrays.values() for key in keys):
        case.numbers_of(key)  # before anything is torn
    draw = random.Random(seed)
    names, harm, number, rounds = sorted(arrays), [], 0, 0
    while number < count:
        keys: list[str] = []
        for _ in range(min(draw.randint(1, 3), count - number)):
            key = draw.choice(arrays[names[number % len(names)]])
            how = draw.choice(TEARS)
            number += 1
            if key in keys:
                continue
            keys.append(key)
            data = case.whole[key]
            used = case.shards[key].payload_spans[-1][1] if key in case.shards else len(data)
            (case.path / key).write_bytes(torn(data, how, draw, used))
        for key in keys:
            harm += [f"seed {seed}, tear {number}: {what}" for what in harm_of_tear(case, key)]
        mended = harm_of_mending(case, keys)
        rounds += 1
        if mended:
            harm += [f"seed {seed}, tear {number} of {keys}: {what}" for what in mended]
            case.put_back()
    return {"harm": harm, "arrays": names, "rounds": rounds}
