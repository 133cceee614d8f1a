"""The log of a store: its sealed parts, in order, and those that were removed.

Record 0 holds the sha256 of the root's own metadata, each other one a part and the sha256 of its predecessor. The sha256 of
the last record is the digest of the store.

    seal     {"part": "teachers/wide", "previous": …, "seal": S}       the part is there from now on
    removal  {"part": "teachers/wide", "previous": …, "removed": S}    it is gone, and its name is not used again
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..backends.place import Place
from ..backends.writable import Writable
from ..errors import LogitStoreError, ManifestInvalid, NameTaken, NotAStoreError, StoreCorrupt, remedied
from ..format.constants import (
    GROUPS,
    LOG,
    MAX_PARTS,
    ROOT_METADATA,
    SAMPLES,
)
from ..format.documents import beyond, canonical_json, invalid, parse_json, sha256_hex
from ..format.metadata import group_metadata
from .journal import read_checked, sha256_in

_RECORD = re.compile(r"(0|[1-9]\d{0,8})\.json")
_REPAIR = "run `logitstore repair`, which finds the damaged record; or restore the log from a copy"
_COPY_OF_LOG = "restore the log from a copy"
"""The remedy of the last record, for which no other one vouches."""
ROOT_FILES = (ROOT_METADATA, *(f"{group}/{ROOT_METADATA}" for group in GROUPS))
"""Keys of the root's own metadata, whose sha256 record 0 of the log holds."""


@dataclass(frozen=True)
class LogRecord:
    """A record of the log: one part that was sealed, or removed."""

    part: str
    """Name of the part: "samples", "teachers/wide", "clusters/wide-8x4"."""
    seal: str
    """sha256 of its seal.json."""
    digest: str
    """Digest of the store from this record on: "sha256:" and the sha256 of the record."""
    removes: bool = False
    """Whether it records that the part of this seal is gone."""


def log_key(number: int) -> str:
    """Return the key of record `number` of the log."""
    return f"{LOG}/{number}.json"


def root_record(files: Mapping[str, bytes]) -> bytes:
    """Return record 0 of the log: the sha256 of the root's own metadata, by key."""
    return canonical_json({"previous": None, "root": {key: sha256_hex(data) for key, data in files.items()}})


def part_record(part: str, previous: str, seal: str) -> bytes:
    """Return the record of a part. previous: sha256 of the record before. seal: sha256 of the part's `seal.json`."""
    return canonical_json({"part": part, "previous": previous, "seal": seal})


def removal_record(part: str, previous: str, seal: str) -> bytes:
    """Return the record that a part is gone. previous, seal: as of `part_record`."""
    return canonical_json({"part": part, "previous": previous, "removed": seal})


def named_seal(value: Mapping[str, object], where: str) -> tuple[str, bool]:
    """Return the seal that a record names, and whether it records a removal. Raises ManifestInvalid."""
    keys = [key for key in ("seal", "removed") if key in value]
    if len(keys) != 1:
        raise invalid(where, "one of the keys seal and removed", ", ".join(keys) or "neither")
    return sha256_in(value[keys[0]], where), keys[0] == "removed"


def parts_of(records: Sequence[LogRecord]) -> list[LogRecord]:
    """Return the records of the parts that are there: sealed, and not removed later."""
    gone = {record.part for record in records if record.removes}
    return [record for record in records if record.part not in gone]


def gone_from(records: Sequence[LogRecord]) -> dict[str, LogRecord]:
    """Return the removals, by the name of the part."""
    return {record.part: record for record in records if record.removes}


def name_gone(where: str) -> NameTaken:
    """Return the error of a name that a part had which was removed. where: store and part, for messages."""
    return NameTaken(
        where,
        expected="a name that no part of this store has had",
        found="the name of a part that `logitstore rm` removed",
        remedy="choose another name: former digests, students and other copies of the store mean the removed part by this one",
    )


def read_log(root: Place) -> tuple[str, list[LogRecord]]:
    """Return the digest of the store without parts, and the records in order. Raises NotAStoreError, ManifestInvalid."""
    previous = check_root(root)
    empty = f"sha256:{sha256_hex(previous)}"
    records: list[LogRecord] = []
    last = last_record(root)
    with root.read_ahead([log_key(number) for number in range(1, last + 1)]):
        found = [_record_bytes(root, number) for number in range(1, last + 1)]
    for number, data in enumerate(found, 1):
        where = str(root.path / log_key(number))
        with remedied(ManifestInvalid, _REPAIR if number < last else _COPY_OF_LOG):
            value = parse_json(data, where)
            seal, removes = named_seal(value, where)
        part = value.get("part")
        if value.get("previous") != sha256_hex(previous) or not isinstance(part, str) or not is_part(part):
            raise ManifestInvalid(
                where,
                expected=f"a record that holds the sha256 of record {number - 1}, {sha256_hex(previous)[:12]}…",
                found=f"{str(value.get('previous'))[:12]}…",
                remedy=_REPAIR,
            )
        records.append(LogRecord(part, seal, f"sha256:{sha256_hex(data)}", removes))
        previous = data
    _check_order(root, records)
    return empty, records


def _check_order(root: Place, records: Sequence[LogRecord]) -> None:
    """Refuse a log that seals or removes a part twice, or removes one that it has not sealed. Raises ManifestInvalid."""
    seals, gone = dict[str, str](), set[str]()
    for number, record in enumerate(records, 1):
        where = str(root.path / log_key(number))
        if not record.removes:
            if record.part in seals:
                raise invalid(str(root.path / LOG), "each part once", f"{record.part} twice")
            seals[record.part] = record.seal
            continue
        sealed = seals.get(record.part)
        if record.part == SAMPLES or record.part in gone or sealed != record.seal:
            found = f"{record.seal[:12]}…"
            if record.part == SAMPLES or record.part in gone:
                found = "samples" if record.part == SAMPLES else f"{record.part} a second time"
            expected = f"the removal of a part that is there, {record.part} of seal {(sealed or 'none')[:12]}"
            if record.part == SAMPLES:
                expected = "the removal of a capture or a clustering"
            with remedied(ManifestInvalid, _REPAIR if number < len(records) else _COPY_OF_LOG):
                raise invalid(where, expected, found)
        gone.add(record.part)


def _record_bytes(root: Place, number: int) -> bytes:
    try:
        return root.read(log_key(number))
    except FileNotFoundError:
        where, expected = str(root.path / log_key(number)), f"record {number} of the log"
        raise ManifestInvalid(where, expected=expected, found="no file", remedy=_REPAIR) from None


def last_record(root: Place) -> int:
    """Return the largest number in the log. Files of other names are no records."""
    numbers = [int(name.removesuffix(".json")) for name in root.names(LOG) if _RECORD.fullmatch(name)]
    if len(numbers) > MAX_PARTS:
        raise beyond(str(root.path / LOG), MAX_PARTS, "records", len(numbers))
    return max(numbers, default=0)


def check_root(root: Place) -> bytes:
    """Compare the root's own metadata with record 0 of the log, and return that record.

    Raises NotAStoreError if there is no log, ManifestInvalid if they differ.
    """
    try:
        record = root.read(log_key(0))
    except FileNotFoundError:
        raise NotAStoreError(
            str(root.path),
            expected="a store",
            found="a Zarr group without a log",
            remedy="name the folder of a store, or make one with `logitstore cache`; if it is a store, run `logitstore repair`",
        ) from None
    where = str(root.path / log_key(0))
    try:
        files = parse_json(record, where).get("root")
        if not isinstance(files, dict) or set(files) != set(ROOT_FILES):
            raise invalid(where, f"the sha256 of {', '.join(ROOT_FILES)}", repr(files)[:80])
        digests = {key: sha256_in(digest, where) for key, digest in files.items()}
    except ManifestInvalid as error:  # only then are the records listed, which takes a request
        raise error.with_remedy(_REPAIR if last_record(root) else _COPY_OF_LOG) from None
    for key, digest in digests.items():
        data = read_checked(root, key, digest)
        if key != ROOT_METADATA and data != group_metadata():
            raise invalid(str(root.path / key), "a group without attributes", "other metadata")
    return record


def is_part(name: str) -> bool:
    """Return whether `name` may name a part.

    >>> is_part("teachers/wide"), is_part("../wide"), is_part("samples")
    (True, False, True)
    """
    return bool(re.fullmatch(r"samples|(teachers|clusters)/[a-z0-9][a-z0-9._-]{0,63}", name))


def is_gone(root: Place, part: str) -> bool:
    """Return whether the log says by now that a part is gone; False for a log that cannot be read."""
    try:
        return part in gone_from(read_log(root)[1])
    except (LogitStoreError, OSError):
        return False


def append_log(root: Writable, part: str, seal: str) -> None:
    """Add a part to the log, unless it is there with this seal. Raises StoreCorrupt if it is there with another.

    If another writer takes the next number first, the record is made anew for the number after it.
    """
    while True:
        empty, records = read_log(root)
        there = {record.part: record.seal for record in records}
        if part in gone_from(records):
            raise name_gone(f"{root.path}: {part}")
        if part in there:
            if there[part] != seal:
                raise StoreCorrupt(
                    f"{root.path}: {part}",
                    expected=f"the seal of the log, {there[part]}",
                    found=seal,
                    remedy="run `logitstore verify`",
                )
            return
        previous = (records[-1].digest if records else empty).removeprefix("sha256:")
        record = part_record(part, previous, seal)
        if root.put_new(log_key(len(records) + 1), record):
            return


def append_removal(root: Writable, part: str, seal: str) -> bool:
    """Add to the log that a part is gone; return False if that is there. Raises StoreCorrupt if it has another seal.

    As `append_log`, if another writer takes the next number first.
    """
    while True:
        _, records = read_log(root)
        if part in gone_from(records):
            return False
        sealed = {record.part: record.seal for record in records}.get(part)
        if sealed != seal:
            raise StoreCorrupt(
                f"{root.path}: {part}",
                expected=f"a log that names it with seal {seal[:12]}…",
                found="another log" if sealed is None else f"seal {sealed[:12]}…",
                remedy="run `logitstore verify`",
            )
        record = removal_record(part, records[-1].digest.removeprefix("sha256:"), seal)
        if root.put_new(log_key(len(records) + 1), record):
            return True
