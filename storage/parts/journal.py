"""Journal of a store: records of committed blocks, and seals of parts, which the log (`log`) orders.

1. A `Commit` covers all arrays of one block. The block counts from the moment that its record is there.
2. A `Seal` makes a part immutable: `seal.bin` has size, sha256 and chunk checksums of every shard,
   `seal.json` has the sha256 of every other file. The sha256 of `seal.json` is the part's identity.
3. The log names the seals in order. Each record holds the sha256 of its predecessor; the sha256 of the
   last one is the digest of the store.

Records hold no clock, host, process or random number: equal content is equal bytes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.place import Place
from ..backends.pointers import naming_pointer, naming_pointer_at
from ..backends.writable import Writable
from ..errors import LimitExceeded, ManifestInvalid, StoreCorrupt
from ..format.constants import (
    COMMITS,
    MAX_CHUNKS_PER_SHARD,
    MAX_JSON_BYTES,
    MAX_SEAL_TABLE_BYTES,
    SEAL,
    SEAL_TABLE,
    SPEC,
)
from ..format.documents import beyond, canonical_json, integer, invalid, parse_json, sha256_hex
from ..format.metadata import ArrayLayout
from ..format.shard import COPY, COPY_OF_SEAL, REMAKE, ShardEncoder

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ARRAY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_COMMIT = re.compile(r"(0|[1-9]\d{0,8})-(0|[1-9]\d{0,8})\.json")


def sha256_in(value: object, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise invalid(where, "a sha256 in 64 hexadecimal digits", repr(value)[:80])
    return value


def _array_name(name: object, where: str) -> str:
    if not isinstance(name, str) or not _ARRAY.fullmatch(name):
        raise invalid(where, "the name of an array", repr(name)[:80])
    return name


def _file_key(key: str, where: str) -> str:
    """Return a key that a seal may list: no component of it leads out of the part."""
    if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise invalid(where, "a key inside the part", repr(key)[:80])
    return key


@dataclass(frozen=True)
class StoredShard:
    """Size and checksums of one shard, as a record holds them."""

    size: int
    """Bytes."""
    sha256: str
    """Of the whole shard."""
    crc32c: tuple[int, ...]
    """Of each inner chunk's payload; 0 where the chunk is absent."""

    @classmethod
    def of(cls, shard: ShardEncoder) -> "StoredShard":
        """Return size and checksums of a shard that was encoded to its end."""
        return cls(shard.size, shard.sha256, shard.crc32c)


@dataclass(frozen=True)
class Commit:
    """A committed block: the shards of all its arrays."""

    view: int
    """0 in `samples`."""
    block: int
    """Number of the block in its view."""
    rows: range
    """Rows of the store."""
    spec: str
    """sha256 of the part's spec.json."""
    objects: Mapping[str, StoredShard]
    """By array name."""

    @property
    def key(self) -> str:
        """Key of the record, in its part."""
        return commit_key(self.view, self.block)

    def to_bytes(self) -> bytes:
        """Return the record, which ends in its own sha256."""
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
        """Read a record. Raises ManifestInvalid if a single bit of it has changed."""
        body = parse_json(data, where)
        own = body.pop("self", None)
        try:
            intact = own == sha256_hex(canonical_json(body))
            objects = {
                _array_name(name, where): StoredShard(
                    integer(o["size"], 0, where, "size"),
                    sha256_in(o["sha256"], where),
                    tuple(integer(c, 0, where, "crc32c") for c in o["crc32c"]),
                )
                for name, o in body["objects"].items()
            }
            start, stop = (integer(row, 0, where, "rows") for row in body["rows"])
            commit = cls(
                integer(body["view"], 0, where, "view"),
                integer(body["block"], 0, where, "block"),
                range(start, stop),
                sha256_in(body["spec"], where),
                objects,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ManifestInvalid):
                raise
            intact = False
        if not intact:
            raise invalid(where, "a commit record of its own sha256", "a record that was changed")
        return commit


def commit_key(view: int, block: int) -> str:
    """Return the key, in its part, of the record of a block."""
    return f"{COMMITS}/{view}-{block}.json"


def committed_blocks(part: Place) -> set[tuple[int, int]]:
    """Return (view, block) of every commit record in `part`, by name alone."""
    matches = (_COMMIT.fullmatch(name) for name in part.names(COMMITS))
    return {(int(m[1]), int(m[2])) for m in matches if m}


class SealTable:
    """`seal.bin`: size, sha256 and chunk checksums of every shard, by view, block and array."""

    def __init__(
        self, arrays: Sequence[tuple[str, int]], views: int, blocks: int, data: bytes | None = None
    ) -> None:
        """Make an empty table, or read `data`.

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
        """Return the bytes of `seal.bin`."""
        return self._table.tobytes()

    def record(self, commit: Commit) -> None:
        """Enter a block. Raises KeyError, ValueError or OverflowError for a record of other arrays or chunks."""
        entry = self._table[commit.view, commit.block]
        for name, _ in self.arrays:
            stored = commit.objects[name]
            entry[name]["size"] = stored.size
            entry[name]["sha256"] = np.frombuffer(bytes.fromhex(stored.sha256), np.uint8)
            entry[name]["crc32c"] = stored.crc32c

    def shard(self, array: str, view: int, block: int) -> StoredShard:
        """Return size and checksums of one shard."""
        entry = self._table[view, block][array]
        return StoredShard(
            int(entry["size"]), entry["sha256"].tobytes().hex(), tuple(entry["crc32c"].tolist())
        )

    def size(self, array: str, view: int, block: int) -> int:
        """Return the bytes of one shard."""
        return int(self._table[view, block][array]["size"])

    def sha256(self, array: str, view: int, block: int) -> str:
        """Return the sha256 of one shard, in hexadecimal digits."""
        digest: bytes = self._table[view, block][array]["sha256"].tobytes()
        return digest.hex()

    def checksums(self, array: str, view: int, block: int) -> NDArray[np.uint32]:
        """Return the crc32c of each inner chunk of one shard."""
        checksums: NDArray[np.uint32] = self._table[view, block][array]["crc32c"]
        return checksums

    def differing_blocks(self, array: str, view: int, other: "SealTable") -> list[int]:
        """Return the blocks of a view whose shards of an array have another size or checksum in `other`.

        other: of another part of the same store, which has as many blocks.
        """
        records = [np.ascontiguousarray(table._table[array][view]) for table in (self, other)]
        ours, theirs = (record.view(np.uint8).reshape(len(record), -1) for record in records)
        if ours.shape != theirs.shape:  # other chunks
            return list(range(len(ours)))
        return [int(block) for block in np.flatnonzero((ours != theirs).any(axis=1))]

    def total_bytes(self) -> int:
        """Return the bytes of all shards."""
        return sum(int(self._table[name]["size"].sum()) for name, _ in self.arrays)


@dataclass(frozen=True)
class Seal:
    """`seal.json`: the sha256 of every file of a complete part, which is immutable from then on."""

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
    """sha256 of every file that is no shard and no record, by key in the part."""
    samples: str | None
    """sha256 of the seal of `samples`; None in `samples` itself."""

    def to_bytes(self) -> bytes:
        """Return the bytes of `seal.json`."""
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
        """Read a seal. Raises ManifestInvalid, LimitExceeded."""
        value = parse_json(data, where)
        try:
            table = value["seal_bin"]
            arrays = tuple(
                (_array_name(name, where), integer(chunks, 1, where, "arrays", MAX_CHUNKS_PER_SHARD))
                for name, chunks in value["arrays"]
            )
            if len(dict(arrays)) != len(arrays) or (table is None) != (not arrays):
                raise KeyError
            return cls(
                arrays,
                integer(value["views"], 0, where, "views"),
                integer(value["blocks"], 0, where, "blocks"),
                None if table is None else sha256_in(table["sha256"], where),
                0 if table is None else integer(table["size"], 0, where, "seal_bin"),
                {_file_key(key, where): sha256_in(digest, where) for key, digest in value["files"].items()},
                None if value["samples"] is None else sha256_in(value["samples"], where),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ManifestInvalid):
                raise
            raise invalid(where, "a seal", "other JSON") from None


def seal_blocks(
    part: Writable,
    layouts: Sequence[ArrayLayout],
    commits: Sequence[Commit],
    shape: tuple[int, int],
    files: Mapping[str, str],
    samples: str | None,
) -> str:
    """Write `seal.bin` and `seal.json` of a part whose blocks are all committed; return the sha256 of `seal.json`.

    shape: (views, blocks). files, samples: as in `Seal`. A second call changes nothing. A part without block arrays has
    no `seal.bin`.
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
    """Read `seal.bin`. Raises ManifestInvalid if it is not the sealed one, LimitExceeded."""
    where = str(part.path / SEAL_TABLE)
    expected = seal.views * seal.blocks * SealTable(seal.arrays, 0, 0).record_bytes
    if expected > MAX_SEAL_TABLE_BYTES:
        found = f"{expected} ({seal.views} views of {seal.blocks} blocks)"
        raise beyond(where, MAX_SEAL_TABLE_BYTES, "bytes", found)
    data = read_checked(part, SEAL_TABLE, seal.table_sha256 or "", MAX_SEAL_TABLE_BYTES)
    if len(data) != expected:
        raise invalid(where, f"{expected} bytes", f"{len(data)} bytes")
    return SealTable(seal.arrays, seal.views, seal.blocks, data)


def put_same(folder: Writable, key: str, data: bytes) -> None:
    """Write an object whose bytes follow from the settings: every writer writes the same ones.

    Raises StoreCorrupt if other bytes have the name.
    """
    if not folder.put_new(key, data) and folder.read(key, most=max(len(data), MAX_JSON_BYTES)) != data:
        raise StoreCorrupt(
            str(folder.path / key),
            expected=f"the bytes of these settings, sha256 {sha256_hex(data)[:12]}…",
            found="other bytes",
            remedy="run `logitstore repair`; or remove the unfinished part, or begin it under another name",
        )


def read_checked(folder: Place, key: str, digest: str, most: int = MAX_JSON_BYTES) -> bytes:
    """Read an object of a known sha256 and at most `most` bytes.

    Raises ManifestInvalid if it is missing or differs, LimitExceeded if it is larger.
    """
    where = str(folder.path / key)
    remedy = {SPEC: COPY, SEAL: COPY_OF_SEAL}.get(key, REMAKE)
    try:
        data = folder.read(key, most)
    except FileNotFoundError:
        raise ManifestInvalid(
            where, expected=f"a file of sha256 {digest[:12]}…", found="no file", remedy=remedy
        ) from None
    except LimitExceeded as error:
        raise naming_pointer_at(error, folder, key) from None
    found = sha256_hex(data)
    if found != digest:
        differs = ManifestInvalid(
            where,
            expected=f"sha256 {digest[:12]}…",
            found=f"{found[:12]}… ({len(data)} bytes)",
            remedy=remedy,
        )
        raise naming_pointer(differs, data)
    return data
