"""The log of a store: its sealed parts, in order.

Record 0 holds the sha256 of the root's own metadata, each other one a part and the sha256 of its predecessor. The sha256 of
the last record is the digest of the store.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..backends.place import Place
from ..backends.writable import Writable
from ..errors import ManifestInvalid, NotAStoreError, StoreCorrupt, remedied
from ..format.constants import (
    GROUPS,
    LOG,
    MAX_PARTS,
    ROOT_METADATA,
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
    """A record of the log: one sealed part."""

    part: str
    """Name of the part: "samples", "teachers/wide", "clusters/wide-8x4"."""
    seal: str
    """sha256 of its seal.json."""
    digest: str
    """Digest of the store from this record on: "sha256:" and the sha256 of the record."""


def log_key(number: int) -> str:
    """Return the key of record `number` of the log."""
    return f"{LOG}/{number}.json"


def root_record(files: Mapping[str, bytes]) -> bytes:
    """Return record 0 of the log: the sha256 of the root's own metadata, by key."""
    return canonical_json({"previous": None, "root": {key: sha256_hex(data) for key, data in files.items()}})


def part_record(part: str, previous: str, seal: str) -> bytes:
    """Return the record of a part. previous: sha256 of the record before. seal: sha256 of the part's `seal.json`."""
    return canonical_json({"part": part, "previous": previous, "seal": seal})


def read_log(root: Place) -> tuple[str, list[LogRecord]]:
    """Return the digest of the store without parts, and the parts in order. Raises NotAStoreError, ManifestInvalid."""
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
            seal = sha256_in(value.get("seal"), where)
        part = value.get("part")
        if value.get("previous") != sha256_hex(previous) or not isinstance(part, str) or not is_part(part):
            raise ManifestInvalid(
                where,
                expected=f"a record that holds the sha256 of record {number - 1}, {sha256_hex(previous)[:12]}…",
                found=f"{str(value.get('previous'))[:12]}…",
                remedy=_REPAIR,
            )
        records.append(LogRecord(part, seal, f"sha256:{sha256_hex(data)}"))
        previous = data
    names = [record.part for record in records]
    if len(set(names)) != len(names):
        raise invalid(str(root.path / LOG), "each part once", f"{max(names, key=names.count)} twice")
    return empty, records


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
    with remedied(ManifestInvalid, _REPAIR if last_record(root) else _COPY_OF_LOG):
        files = parse_json(record, where).get("root")
        if not isinstance(files, dict) or set(files) != set(ROOT_FILES):
            raise invalid(where, f"the sha256 of {', '.join(ROOT_FILES)}", repr(files)[:80])
        digests = {key: sha256_in(digest, where) for key, digest in files.items()}
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


def append_log(root: Writable, part: str, seal: str) -> None:
    """Add a part to the log, unless it is there with this seal. Raises StoreCorrupt if it is there with another.

    If another writer takes the next number first, the record is made anew for the number after it.
    """
    while True:
        empty, records = read_log(root)
        there = {record.part: record.seal for record in records}
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
