"""Good objects in the wrong place: exchanged, of another store, dropped, deleted, or put back.

Each kind of trial changes a store, checks that `verify` and a read of the changed object refuse it, and puts it back.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from support import stores
from support.stores import Teacher

from faults.damage import Case, Shard, unchecked_chunks, unguarded
from logitstore.storage.api import open_store
from logitstore.storage.errors import LogitStoreError, ManifestInvalid, ShardCorrupt, ShardMissing, WrongStore
from logitstore.storage.format.layouts import BASIS
from logitstore.storage.integrity.verify import UNTRUSTED, verify
from logitstore.storage.parts.root import Root

ABSENT = b"\xff" * 16


def unnoticed(
    case: Case, changed: list[str], errors: tuple[type[LogitStoreError], ...], *, read: bool = True
) -> list[str]:
    """Which of the changed files `verify --deep` or, where it is used, a read of them does not refuse."""
    harm = []
    named = {problem.where for problem in verify(case.path, deep=True).problems}
    for key in changed:
        if str(case.path / key) not in named:
            harm.append(f"{key}: verify --deep does not name it")
        try:
            found = case.read(key)
        except errors:
            continue
        if found != case.numbers_of(key):
            harm.append(f"{key}: other numbers are read")
        elif read:
            harm.append(f"{key}: a read notices nothing")
    return harm


def _exchange(case: Case, one: str, other: str) -> None:
    (case.path / one).write_bytes(case.whole[other])
    (case.path / other).write_bytes(case.whole[one])


def _siblings(case: Case, draw: random.Random, keys: list[str]) -> tuple[str, str]:
    """Two objects of one folder, or of one name in two folders, that are not the same bytes."""
    while True:
        one, other = draw.sample(keys, 2)
        same_folder = one.rpartition("/")[0] == other.rpartition("/")[0]
        same_array = one.split("/")[-2] == other.split("/")[-2]
        if (same_folder or same_array) and case.whole[one] != case.whole[other]:
            return one, other


def exchanged_shards(case: Case, draw: random.Random) -> list[str]:
    """Two shards of an array, or of the same array of two teachers."""
    one, other = _siblings(case, draw, sorted(case.shards))
    _exchange(case, one, other)
    return unnoticed(case, [one, other], (ShardCorrupt,))


def exchanged_records(case: Case, draw: random.Random) -> list[str]:
    """Two commit records, of one part or of two: `verify` alone can know."""
    one, other = _siblings(case, draw, sorted(k for k in case.whole if "/commits/" in k))
    _exchange(case, one, other)
    return unnoticed(case, [one, other], (), read=False)


def shard_of_another_store(case: Case, draw: random.Random, other: Case) -> list[str]:
    """A shard of a store of the same shape, made from other logits."""
    keys = [key for key in case.shards if case.whole[key] != other.whole[key]]
    key = draw.choice(keys)
    (case.path / key).write_bytes(other.whole[key])
    return unnoticed(case, [key], (ShardCorrupt,))


def deleted_shard(case: Case, draw: random.Random) -> list[str]:
    """No file where the seal has a shard: an error, never a fill value."""
    key = draw.choice(sorted(case.shards))
    (case.path / key).unlink()
    harm = unnoticed(case, [key], (ShardMissing,))
    if not verify(case.path).problems:
        harm.append(f"{key}: verify finds nothing without --deep")
    return harm


def without_chunk(data: bytes, shard: Shard, chunk: int, *, keep_size: bool) -> bytes:
    """A shard in which a chunk is said to be absent, with an index whose own checksum is right."""
    spans = shard.payload_spans
    index = bytearray(data[spans[-1][1] + 4 : -4])
    pieces, offset = [], 0
    for number, (start, stop) in enumerate(spans):
        entry = ABSENT
        if number != chunk:
            pieces.append(data[start : stop + 4])
            entry = np.array([offset, stop + 4 - start], "<u8").tobytes()
            offset += stop + 4 - start
        index[16 * number : 16 * number + 16] = entry
    body = b"".join(pieces)
    if keep_size:
        body += b"\0" * (spans[-1][1] + 4 - len(body))
    return body + bytes(index) + google_crc32c.value(bytes(index)).to_bytes(4, "little")


def dropped_chunk(case: Case, draw: random.Random) -> list[str]:
    """A whole and valid shard that lacks a chunk, which plain readers fill."""
    key = draw.choice(sorted(case.shards))
    shard = case.shards[key]
    chunk = draw.randrange(len(shard.payload_spans))
    changed = without_chunk(case.whole[key], shard, chunk, keep_size=draw.random() < 0.5)
    (case.path / key).write_bytes(changed)
    return unnoticed(case, [key], (ShardCorrupt,))


def _exchanged_basis(case: Case, draw: random.Random, other: Case) -> list[str]:
    """Put arrays of the basis of another store's capture, one or all that differ; return their keys."""
    keys = [
        key
        for key, data in case.whole.items()
        if key.startswith("teachers/turned/") and key.split("/")[2] in BASIS and "/c." in key
        if data != other.whole[key]
    ]
    assert all(len(case.whole[key]) == len(other.whole[key]) for key in keys) and len(keys) >= 3
    keys = keys if draw.random() < 0.25 else [draw.choice(keys)]
    for key in keys:
        (case.path / key).write_bytes(other.whole[key])
    return keys


def basis_of_another_store(case: Case, draw: random.Random, other: Case) -> list[str]:
    """A basis of the same shape, made from other logits: no row is decoded by it."""
    keys = _exchanged_basis(case, draw, other)
    harm = unnoticed(case, keys, (ManifestInvalid,))
    try:
        open_store(case.path).teachers["turned"].read([0, 1])
        harm.append(f"{', '.join(keys)}: rows are decoded")
    except ManifestInvalid:
        pass
    return harm


def basis_of_a_begun_capture(case: Case, draw: random.Random, other: Case) -> list[str]:
    """The same before the capture is sealed, when only the notes of its spec vouch for the basis."""
    number = 1 + case.parts.index("teachers/turned")
    for key in case.whole:
        log = (
            key.startswith("__logitstore__/log/") and int(key.split("/")[-1].removesuffix(".json")) >= number
        )
        if log or key.startswith("teachers/turned/__logitstore__/seal."):
            (case.path / key).unlink()
    keys = _exchanged_basis(case, draw, other)
    named = [str(problem) for problem in verify(case.path).problems]
    harm = [] if any("was exchanged" in line for line in named) else [f"verify finds {named}"]
    try:
        case.write()
        harm.append("a writer seals it")
    except ManifestInvalid as error:
        harm += [] if "was exchanged" in str(error) else [str(error)]
    return [f"{', '.join(keys)}: {what}" for what in harm]


def old_seal(case: Case, draw: random.Random, other: Case) -> list[str]:
    """A whole part of another day, seal, log and all: nothing in it is wrong, but it is not what was expected."""
    wanted = open_store(case.path).digest
    part = draw.choice(["teachers/wide", "teachers/deep"])
    for key, data in other.whole.items():
        if key.startswith((f"{part}/", "__logitstore__/log/")):
            (case.path / key).write_bytes(data)
    return _expecting(case, wanted)


def old_log(case: Case, draw: random.Random) -> list[str]:
    """The log as it was before the last parts: what is left is whole, and not what was expected."""
    wanted = open_store(case.path).digest
    last = max(int(key.split("/")[-1].removesuffix(".json")) for key in case.whole if "/log/" in key)
    for number in range(draw.randint(1, last), last + 1):
        (case.path / f"__logitstore__/log/{number}.json").unlink()
    return _expecting(case, wanted)


def _expecting(case: Case, wanted: str) -> list[str]:
    harm = []
    if verify(case.path, deep=True, expect=wanted).exit_code != UNTRUSTED:
        harm.append("verify --expect takes it for the store that was expected")
    try:
        open_store(case.path, expect=wanted)
        harm.append("open_store(expect=…) takes it for the store that was expected")
    except WrongStore:
        pass
    return harm


KINDS: dict[str, Callable[..., list[str]]] = {
    "exchanged shards": exchanged_shards,
    "exchanged records": exchanged_records,
    "shard of another store": shard_of_another_store,
    "deleted shard": deleted_shard,
    "dropped chunk": dropped_chunk,
    "basis of another store": basis_of_another_store,
    "basis of a begun capture": basis_of_a_begun_capture,
    "old seal": old_seal,
    "old log": old_log,
}
_OF_TWO_STORES = (
    "shard of another store",
    "basis of another store",
    "basis of a begun capture",
    "old seal",
)


def cases(folder: Path) -> Iterator[Case]:
    """A store, one of the same shape with other logits, and one of several chunks a shard."""
    case = Case(folder / "store.zarr")
    chunks = Case(  # raw ones, and smaller ones
        folder / "chunks.zarr",
        rows=2500,
        block_rows=2048,
        classes=2,
        names=False,
        store_inputs=False,
        clustering=False,
        teachers={"wide": Teacher(views=2), "codes": Teacher(encoding={"max_kl": 1e-2})},
    )
    for made in (case, replace(case, path=folder / "other.zarr", seed=9), chunks):
        made.write()
        yield made


def trial(case: Case, other: Case, kind: str, draw: random.Random) -> list[str]:
    """One trial; the store is then what it was."""
    _ = case.whole, case.shards, case.parts, other.whole
    for key in case.whole if not case._affected else ():
        case.numbers_of(key)
    try:
        more = (other,) if kind in _OF_TWO_STORES else ()
        return KINDS[kind](case, draw, *more)
    finally:
        case.put_back()


def swaps(folder: str, kind: str, seed: int, count: int) -> list[str]:
    """So many trials of a kind, every other of dropped chunks in shards of several; what was not refused."""
    case, other, chunks = cases(Path(folder))
    before = stores.tree_digest(case.path)
    harm = []
    for number in range(count):
        store = chunks if kind == "dropped chunk" and number % 2 else case
        draw = random.Random(1000 * seed + number)
        harm += [f"seed {seed}, trial {number}, {kind}: {what}" for what in trial(store, other, kind, draw)]
    shutil.rmtree(chunks.path)
    return harm if stores.tree_digest(case.path) == before else [*harm, "the store was changed"]


def _expecting_nothing(self: Root, folder: Any, attributes: Any, expect: str | None = None) -> None:
    _INIT(self, folder, attributes, None)


_INIT = Root.__init__

CONTROLS: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    "checksums of the seal": ("exchanged shards", [("parts.part_reader.check_crc32c", unchecked_chunks)]),
    "shards in verify": (
        "shard of another store",
        [("integrity.checks.check_shard", lambda *_, **__: None)],
    ),
    "records in verify": (
        "exchanged records",
        [("integrity.checks.check_sealed_record", lambda *_: None)],
    ),
    "sha256 of a basis": (
        "basis of another store",
        [
            ("parts.sealed_part.read_checked", lambda folder, key, *_: folder.read(key)),
            ("parts.stored_basis.check_digest", lambda *_: None),
        ],
    ),
    "digest of a begun basis": (
        "basis of a begun capture",
        [
            ("parts.stored_basis.check_digest", lambda *_: None),
            ("parts.writer.CaptureWriter.compare_notes", lambda *_: None),
        ],
    ),
    "expect=": ("old log", [("parts.root.Root.__init__", _expecting_nothing)]),
    "expect= of a whole part": ("old seal", [("parts.root.Root.__init__", _expecting_nothing)]),
}
"""A guard -> the kind of trial that needs it, and what it is replaced by for a negative control."""


def with_and_without(folder: str, guard: str) -> tuple[list[str], list[str]]:
    """What is not refused in the same few trials, with a guard and where it is taken out.

    A few, since other guards see some exchanges too: of chunks that a codec made smaller, their index.
    """
    kind, guards = CONTROLS[guard]
    case, other = islice(cases(Path(folder)), 2)

    def trials() -> list[str]:
        return [harm for seed in range(1, 7) for harm in trial(case, other, kind, random.Random(seed))]

    with_guard = trials()
    with unguarded(*guards):
        return with_guard, trials()
