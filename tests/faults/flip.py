"""Flips of one bit anywhere in a store, which `verify` and the reads that use it must find.

A read uses payloads of shards, the index if a codec made chunks smaller, small arrays, every `zarr.json`, spec, seal,
`seal.bin` and the log. It does not use the index of a shard of raw chunks, the checksums in a shard (the seal has them
in a stronger form), nor the commit records of sealed parts. Only `verify` finds a flip there, and a read gives the right
numbers all the same.
"""

import random
from pathlib import Path
from typing import Any

from support import stores
from support.stores import Teacher

from faults.damage import Case, kind_of
from logitstore.storage.errors import LogitStoreError
from logitstore.storage.format.codec import RAW
from logitstore.storage.integrity.verify import CLEAN, verify

UNUSED_BY_READS = frozenset({"checksum", "index", "record"})
"""Classes of bits that a read does not use."""


def places(case: Case) -> dict[str, list[tuple[str, int, int]]]:
    """Every byte of a store by its class: (key, first byte, byte after the last)."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    shards = case.shards
    for key, data in case.whole.items():
        if key not in shards:
            found.setdefault(kind_of(key, shards), []).append((key, 0, len(data)))
            continue
        spans = shards[key].payload_spans
        found.setdefault("payload", []).extend((key, start, stop) for start, stop in spans)
        found.setdefault("checksum", []).extend((key, stop, stop + 4) for _, stop in spans)
        index = "index" if shards[key].layout.codec == RAW else "index of smaller chunks"
        found.setdefault(index, []).append((key, spans[-1][1] + 4, len(data)))
    return found


def harm_of_flip(case: Case, kind: str, key: str, bit: int) -> list[str]:
    """What goes wrong when one bit is not what it was: nobody notices it, or other numbers are read."""
    truth, everything = case.numbers_of(key), case.numbers
    stores.flip(case.path / key, bit)
    harm = []
    try:
        if not verify(case.path, deep=True).problems:
            harm.append("verify finds nothing")
        try:
            found = case.read(key)
        except LogitStoreError:
            pass
        else:
            if found != truth:
                harm.append("other numbers are read")
            elif kind not in UNUSED_BY_READS:
                harm.append("a read notices nothing")
        try:
            if stores.read_everything(case.path) != everything:
                harm.append("other numbers are read elsewhere")
        except LogitStoreError:
            pass
    finally:
        stores.flip(case.path / key, bit)
    return [f"{key}, bit {bit} ({kind}): {what}" for what in harm]


def flips(path: str, seed: int, count: int) -> dict[str, Any]:
    """Flip bits of a small store, one at a time and each put back: every class of bytes in turn."""
    case = Case(Path(path))
    case.write()
    before = stores.tree_digest(case.path)
    classes = places(case)
    draw = random.Random(seed)
    harm: list[str] = []
    for number in range(count):
        kind = sorted(classes)[number % len(classes)]
        key, start, stop = draw.choice(classes[kind])
        harm += harm_of_flip(case, kind, key, draw.randrange(8 * start, 8 * stop))
    if stores.tree_digest(case.path) != before:
        harm.append("a verifier or a reader changed the store")
    return {"harm": [f"seed {seed}: {what}" for what in harm], "classes": len(classes)}


SHAPES: dict[str, dict[str, Any]] = {
    "everything": {},
    "floats, no names": {"rows": 8, "block_rows": 8, "input_dtype": "float32", "names": False},
    "no inputs, one row": {"rows": 1, "block_rows": 1024, "store_inputs": False, "clustering": False},
    "several chunks a shard": {
        "rows": 2100,
        "block_rows": 2048,
        "classes": 2,
        "names": False,
        "clustering": False,
        "teachers": {"wide": Teacher()},
    },
    "samples alone": {"rows": 9, "block_rows": 2, "teachers": {}, "clustering": False},
}
"""Stores of which none is damaged."""


def clean(folder: str, count: int) -> list[str]:
    """Verify stores that are whole, `count` times in all; the alarms."""
    cases = {
        name: Case(Path(folder) / f"{number}.zarr", **SHAPES[name]) for number, name in enumerate(SHAPES)
    }
    for case in cases.values():
        case.write()
    alarms = []
    for number in range(count):
        name = list(cases)[number % len(cases)]
        report = verify(cases[name].path, deep=number % 4 != 3)
        if (report.exit_code, report.problems, report.strays) != (CLEAN, [], []):
            alarms.append(f"{name}: {[*map(str, report.problems)]} {report.strays} {report.unsealed}")
    return alarms
