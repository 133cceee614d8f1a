"""What was committed, what is sealed, and in which order did the parts come?

1. A `Commit` covers all arrays of one block. The block counts from the moment its record is there.
2. A `Seal` makes a part immutable: `seal.bin` has size, sha256 and chunk checksums of every shard,
   `seal.json` has the sha256 of everything else. The sha256 of `seal.json` is the part's identity.
3. The log names the seals in order. Each record holds the sha256 of the one before; the sha256 of the
   last is the digest of the store.

Records hold no clock, host, process or random number: equal content is equal bytes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.local import Folder
from ..backends.place import Place
from ..errors import LimitExceeded, ManifestInvalid, NotAStoreError, StoreCorrupt
from ..format.constants import (
    COMMITS,
    GROUPS,
    LOG,
    MAX_JSON_BYTES,
    MAX_PARTS,
    MAX_SEAL_TABLE_BYTES,
    ROOT_METADATA,
    SEAL,
    SEAL_TABLE,
)
from ..format.documents import canonical_json, integer, parse_json, sha256_hex
from ..format.metadata import ArrayLayout, group_metadata
from ..format.shard import ShardEncoder

_SHA256 = re.compile(r"[0-9a-f]{64}")


_RECORD = re.compile(r"(0|[1-9]\d{0,8})\.json")


_ARRAY = re.compile(r"[a-z][a-z0-9_]{0,63}")


_COMMIT = re.compile(r"(0|[1-9]\d{0,8})-(0|[1-9]\d{0,8})\.json")


_REMEDY = "run `logitstore verify` and restore the file from a copy"


def _digest(value: object, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ManifestInvalid(where, expected="a sha256", found=repr(value)[:80], remedy=_REMEDY)
    return value


def _array_name(name: object, where: str) -> str:
    if not isinstance(name, str) or not _ARRAY.fullmatch(name):
        raise ManifestInvalid(where, expected="names of arrays", found=repr(name)[:80], remedy=_REMEDY)
    return name


def _file_key(key: str, where: str) -> str:
    """A key that a seal may list: nothing in it leads out of the part."""
    if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise ManifestInvalid(where, expected="keys inside the part", found=repr(key)[:80], remedy=_REMEDY)
    return key


@dataclass(frozen=True)
class StoredShard:
    """What a record says of one shard."""

    size: int
    """Bytes."""
    sha256: str
    """Of the whole shard."""
    crc32c: tuple[int, ...]
    """Of each inner chunk's payload; 0 where the chunk is absent."""

    @classmethod
    def of(cls, shard: ShardEncoder) -> "StoredShard":
        """What a record says of a shard that was encoded to its end."""
        return cls(shard.size, shard.sha256, shard.crc32c)


@dataclass(frozen=True)
class Commit:
    """One committed block: all of its arrays."""

    view: int
    """0 in `samples`."""
    block: int
    """Number of the block in its view."""
    rows: range
    """The rows it holds."""
    spec: str
    """sha256 of the part's spec.json."""
    objects: Mapping[str, StoredShard]
    """By array name."""

    @property
    def key(self) -> str:
        """Key of the record in its part."""
        return commit_key(self.view, self.block)

    def to_bytes(self) -> bytes:
        """The record, its own digest included."""
        body: dict[str, object] = {
            "view": self.view,
            "block": self.block,
            "rows": [self.rows.start, self.rows.stop],
            "spec": self.spec,
            "objects": {
                name: {"size": o.size, "sha256": o.sha256, "crc32c": list(o.crc32c)}
                for name, o in self.objects.items()
            },
        }
        return canonical_json({**body, "self": sha256_hex(canonical_json(body))})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Commit":
        """Read a record back. Raises ManifestInvalid where a single bit of it has changed."""
        body = parse_json(data, where)
        own = body.pop("self", None)
        try:
            intact = own == sha256_hex(canonical_json(body))
            objects = {
                name: StoredShard(
                    integer(o["size"], 0, where, "size"),
                    _digest(o["sha256"], where),
                    tuple(integer(c, 0, where, "crc32c") for c in o["crc32c"]),
                )
                for name, o in body["objects"].items()
            }
            start, stop = (integer(row, 0, where, "rows") for row in body["rows"])
            commit = cls(
                integer(body["view"], 0, where, "view"),
                integer(body["block"], 0, where, "block"),
                range(start, stop),
                _digest(body["spec"], where),
                objects,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ManifestInvalid):
                raise
            intact = False
        if not intact:
            raise ManifestInvalid(
                where, expected="an intact commit record", found="one that was changed", remedy=_REMEDY
            )
        return commit


def commit_key(view: int, block: int) -> str:
    """Key, in its part, of the record of a block."""
    return f"{COMMITS}/{view}-{block}.json"


def committed_blocks(part: Place) -> set[tuple[int, int]]:
    """(view, block) of every commit record in `part`, by name alone."""
    matches = (_COMMIT.fullmatch(name) for name in part.names(COMMITS))
    return {(int(m[1]), int(m[2])) for m in matches if m}


class SealTable:
    """`seal.bin`: size, sha256 and checksums of every shard, by array, view and block."""

    def __init__(
        self, arrays: Sequence[tuple[str, int]], views: int, blocks: int, data: bytes | None = None
    ) -> None:
        """An empty table, or the one that `data` holds.

        arrays: (name, inner chunks a shard), in the order of the records.
        """
        fields = [
            (name, np.dtype([("size", "<u8"), ("sha256", "u1", (32,)), ("crc32c", "<u4", (chunks,))]))
            for name, chunks in arrays
        ]
        dtype = np.dtype(fields)
        self.arrays = tuple(arrays)
        self.shape = (views, blocks)
        if data is None:
            self._table = np.zeros(self.shape, dtype)
        else:
            self._table = np.frombuffer(data, dtype).reshape(self.shape)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return int(self._table.dtype.itemsize)

    def to_bytes(self) -> bytes:
        """The bytes of `seal.bin`."""
        return self._table.tobytes()

    def record(self, commit: Commit) -> None:
        """Enter a block."""
        entry = self._table[commit.view, commit.block]
        for name, _ in self.arrays:
            stored = commit.objects[name]
            entry[name]["size"] = stored.size
            entry[name]["sha256"] = np.frombuffer(bytes.fromhex(stored.sha256), np.uint8)
            entry[name]["crc32c"] = stored.crc32c

    def shard(self, array: str, view: int, block: int) -> StoredShard:
        """What the seal says of one shard."""
        entry = self._table[view, block][array]
        return StoredShard(
            int(entry["size"]), entry["sha256"].tobytes().hex(), tuple(entry["crc32c"].tolist())
        )

    def size(self, array: str, view: int, block: int) -> int:
        """Bytes of one shard."""
        return int(self._table[view, block][array]["size"])

    def checksums(self, array: str, view: int, block: int) -> NDArray[np.uint32]:
        """crc32c of each inner chunk of one shard."""
        checksums: NDArray[np.uint32] = self._table[view, block][array]["crc32c"]
        return checksums

    def total_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(int(self._table[name]["size"].sum()) for name, _ in self.arrays)


@dataclass(frozen=True)
class Seal:
    """`seal.json`: what makes a part complete and immutable."""

    arrays: tuple[tuple[str, int], ...]
    """(name, inner chunks a shard) of the block arrays."""
    views: int
    """Views; 0 for a part without blocks."""
    blocks: int
    """Blocks of one view."""
    table_sha256: str | None
    """sha256 of seal.bin; None for a part without blocks."""
    table_size: int
    """Bytes of seal.bin."""
    files: Mapping[str, str]
    """sha256 by key, relative to the part, of every object that is not a shard."""
    samples: str | None
    """sha256 of the seal of `samples`; None in `samples` itself."""

    def to_bytes(self) -> bytes:
        """The bytes of `seal.json`."""
        table = {"sha256": self.table_sha256, "size": self.table_size}
        return canonical_json(
            {
                "views": self.views,
                "blocks": self.blocks,
                "arrays": [list(a) for a in self.arrays],
                "seal_bin": table if self.table_sha256 else None,
                "files": dict(self.files),
                "samples": self.samples,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Seal":
        """Read it back. Raises ManifestInvalid."""
        value = parse_json(data, where)
        try:
            table = value["seal_bin"]
            arrays = tuple(
                (_array_name(name, where), integer(chunks, 1, where, "arrays"))
                for name, chunks in value["arrays"]
            )
            if len(dict(arrays)) != len(arrays) or (table is None) != (not arrays):
                raise KeyError
            return cls(
                arrays,
                integer(value["views"], 0, where, "views"),
                integer(value["blocks"], 0, where, "blocks"),
                None if table is None else _digest(table["sha256"], where),
                0 if table is None else integer(table["size"], 0, where, "seal_bin"),
                {_file_key(key, where): _digest(digest, where) for key, digest in value["files"].items()},
                None if value["samples"] is None else _digest(value["samples"], where),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ManifestInvalid):
                raise
            raise ManifestInvalid(where, expected="a seal", found="other JSON", remedy=_REMEDY) from None


def seal_blocks(
    part: Folder,
    layouts: Sequence[ArrayLayout],
    commits: Sequence[Commit],
    shape: tuple[int, int],
    files: Mapping[str, str],
    samples: str | None,
) -> str:
    """Write `seal.bin` and `seal.json` of a part whose blocks are all committed; the sha256 of the latter.

    shape: (views, blocks). files: as in `Seal`. Writing it twice is writing it once. A part without block
    arrays has no `seal.bin`.
    """
    if not layouts:
        seal = Seal((), 0, 0, None, 0, files, samples).to_bytes()
        put_same(part, SEAL, seal)
        return sha256_hex(seal)
    arrays = tuple((layout.name, layout.chunks_per_shard) for layout in layouts)
    table = SealTable(arrays, *shape)
    for commit in commits:
        table.record(commit)
    data = table.to_bytes()
    put_same(part, SEAL_TABLE, data)
    seal = Seal(arrays, *shape, sha256_hex(data), len(data), files, samples).to_bytes()
    put_same(part, SEAL, seal)
    return sha256_hex(seal)


def read_table(part: Place, seal: Seal) -> SealTable:
    """`seal.bin` of a sealed part. Raises ManifestInvalid where it is not the one that was sealed."""
    where = str(part.path / SEAL_TABLE)
    expected = seal.views * seal.blocks * SealTable(seal.arrays, 0, 0).record_bytes
    if expected > MAX_SEAL_TABLE_BYTES:
        raise LimitExceeded(
            where,
            expected=f"at most {MAX_SEAL_TABLE_BYTES} bytes",
            found=f"{seal.views} views of {seal.blocks} blocks, {expected} bytes",
            remedy="do not use this store: logitstore writes no such part",
        )
    data = read_checked(part, SEAL_TABLE, seal.table_sha256 or "", MAX_SEAL_TABLE_BYTES)
    if len(data) != expected:
        raise ManifestInvalid(where, expected=f"{expected} bytes", found=f"{len(data)}", remedy=_REMEDY)
    return SealTable(seal.arrays, seal.views, seal.blocks, data)


def put_same(folder: Folder, key: str, data: bytes) -> None:
    """Write an object whose bytes are settled: who comes second must find the same ones there.

    Raises StoreCorrupt where other bytes have the name.
    """
    if not folder.put_new(key, data) and folder.read(key, most=max(len(data), MAX_JSON_BYTES)) != data:
        raise StoreCorrupt(
            str(folder.path / key),
            expected="the bytes that this store's settings lead to",
            found="others",
            remedy="run `logitstore verify`; remove the unfinished part, or begin it under another name",
        )


@dataclass(frozen=True)
class LogRecord:
    """One part, as the log has it."""

    part: str
    """Name of the part: "samples", "teachers/wide", "clusters/wide-8x4"."""
    seal: str
    """sha256 of its seal.json."""
    digest: str
    """Digest of the store from this record on: "sha256:" and the sha256 of the record."""


def log_key(number: int) -> str:
    """Key of record `number` of the log."""
    return f"{LOG}/{number}.json"


def root_record(files: Mapping[str, bytes]) -> bytes:
    """Record 0 of the log: the sha256 of the root's own metadata."""
    return canonical_json({"previous": None, "root": {key: sha256_hex(data) for key, data in files.items()}})


def part_record(part: str, previous: str, seal: str) -> bytes:
    """The record of a part. previous: sha256 of the record before it. seal: sha256 of the part's seal.json."""
    return canonical_json({"part": part, "previous": previous, "seal": seal})


def read_log(root: Place) -> tuple[str, list[LogRecord]]:
    """The digest of the empty store, and the parts in order. Raises NotAStoreError or ManifestInvalid."""
    previous = check_root(root)
    empty = f"sha256:{sha256_hex(previous)}"
    records: list[LogRecord] = []
    for number in range(1, last_record(root) + 1):
        where = str(root.path / log_key(number))
        try:
            data = root.read(log_key(number))
        except FileNotFoundError:
            raise ManifestInvalid(
                where, expected="a log without gaps", found="no such record", remedy=_REMEDY
            ) from None
        value = parse_json(data, where)
        part = value.get("part")
        if value.get("previous") != sha256_hex(previous) or not isinstance(part, str) or not is_part(part):
            raise ManifestInvalid(
                where,
                expected="a record that follows the one before",
                found="one of another chain",
                remedy="run `logitstore repair`, which finds out whether it or the one before was changed; "
                "or restore both from a copy",
            )
        records.append(LogRecord(part, _digest(value.get("seal"), where), f"sha256:{sha256_hex(data)}"))
        previous = data
    names = [record.part for record in records]
    if len(set(names)) != len(names):
        raise ManifestInvalid(
            str(root.path / LOG), expected="each part once", found="one that is there twice", remedy=_REMEDY
        )
    return empty, records


def last_record(root: Place) -> int:
    """The largest number in the log. Files of other names are no records."""
    numbers = [int(name.removesuffix(".json")) for name in root.names(LOG) if _RECORD.fullmatch(name)]
    if len(numbers) > MAX_PARTS:
        raise LimitExceeded(
            str(root.path / LOG),
            expected=f"at most {MAX_PARTS} records",
            found=str(len(numbers)),
            remedy="do not use this store: logitstore writes no such log",
        )
    return max(numbers, default=0)


def check_root(root: Place) -> bytes:
    """Record 0 of the log, with whose digests the root's own metadata agree.

    Raises NotAStoreError where there is no log, ManifestInvalid where they do not agree.
    """
    try:
        record = root.read(log_key(0))
    except FileNotFoundError:
        raise NotAStoreError(
            str(root.path),
            expected="a store",
            found="another Zarr group, or a store without its log",
            remedy="name the folder of a store, or make one with `logitstore cache`",
        ) from None
    where = str(root.path / log_key(0))
    files = parse_json(record, where).get("root")
    if not isinstance(files, dict) or set(files) != {ROOT_METADATA, *(f"{g}/zarr.json" for g in GROUPS)}:
        raise ManifestInvalid(where, expected="the digests of the root", found="others", remedy=_REMEDY)
    for key, digest in files.items():
        data = read_checked(root, key, _digest(digest, where))
        if key != ROOT_METADATA and data != group_metadata():
            raise ManifestInvalid(
                str(root.path / key),
                expected="a group without attributes",
                found="other metadata",
                remedy=_REMEDY,
            )
    return record


def is_part(name: str) -> bool:
    """Whether `name` may name a part.

    >>> is_part("teachers/wide"), is_part("../wide"), is_part("samples")
    (True, False, True)
    """
    return bool(re.fullmatch(r"samples|(teachers|clusters)/[a-z0-9][a-z0-9._-]{0,63}", name))


def append_log(root: Folder, part: str, seal: str) -> None:
    """Add a part to the log. A part that is there already, with this seal, is left as it is.

    Where another writer takes the next number first, the record is made anew on the number after it.
    """
    while True:
        empty, records = read_log(root)
        there = {record.part: record.seal for record in records}
        if part in there:
            if there[part] != seal:
                raise StoreCorrupt(
                    f"{root.path}: {part}",
                    expected=f"the seal {there[part]}, which the log has",
                    found=seal,
                    remedy="run `logitstore verify`",
                )
            return
        previous = (records[-1].digest if records else empty).removeprefix("sha256:")
        record = part_record(part, previous, seal)
        if root.put_new(log_key(len(records) + 1), record):
            return


def read_checked(folder: Place, key: str, digest: str, most: int = MAX_JSON_BYTES) -> bytes:
    """An object whose sha256 is known, of at most `most` bytes.

    Raises ManifestInvalid where it is missing or another one, LimitExceeded where it is larger.
    """
    where = str(folder.path / key)
    try:
        data = folder.read(key, most)
    except FileNotFoundError:
        raise ManifestInvalid(
            where, expected=f"a file of sha256 {digest[:12]}…", found="no file", remedy=_REMEDY
        ) from None
    found = sha256_hex(data)
    if found != digest:
        raise ManifestInvalid(
            where,
            expected=f"sha256 {digest[:12]}…",
            found=f"{found[:12]}… ({len(data)} bytes)",
            remedy=_REMEDY,
        )
    return data
