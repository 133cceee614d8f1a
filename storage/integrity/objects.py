"""Checks of one object of a store against its seal or record."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from ..backends.place import Place
from ..errors import LimitExceeded, ManifestInvalid, ShardCorrupt, ShardMissing
from ..format.constants import (
    MAX_CHUNK_BYTES,
    MAX_JSON_BYTES,
    MAX_SEAL_TABLE_BYTES,
    ROOT_METADATA,
    SEAL,
    SEAL_TABLE,
    SPEC,
)
from ..format.metadata import ArrayLayout
from ..format.shard import CRC_BYTES, crc32c, is_shard_size
from ..parts.journal import Commit, Seal, SealTable, StoredShard, read_checked
from ..parts.root import Root
from ..parts.sealed_part import part_metadatas

PIECE: Final = 8 << 20
"""Most bytes of a shard that are in memory at a time."""


_COPY = "restore the file from a copy"


_REPAIR = "run `logitstore repair`, and then again what wrote it; or restore the file from a copy"


# Files and their digests


def file_digest(folder: Place, key: str, most: int) -> tuple[int, str]:
    """Size and sha256 of an object, read piece by piece; of one larger than `most` bytes, its size alone.

    Raises FileNotFoundError.
    """
    total, offset = sha256(), 0
    while True:
        piece, size = folder.read_range(key, offset, PIECE)
        if size > most:
            return size, ""
        total.update(piece)
        offset += len(piece)
        if offset >= size or not piece:
            return offset, total.hexdigest()


def check_shard(folder: Place, key: str, expected: StoredShard, deep: bool) -> None:
    """Compare a shard with what a seal or a record says of it. Raises ShardMissing or ShardCorrupt."""
    where = str(folder.path / key)
    try:
        if deep:
            size, found = file_digest(folder, key, expected.size)
        else:
            size, found = folder.size(key), expected.sha256
    except FileNotFoundError:
        raise ShardMissing(
            where, expected=f"a shard of {expected.size} bytes", found="no file", remedy=_REPAIR
        ) from None
    if size != expected.size or found != expected.sha256:
        raise ShardCorrupt(
            where,
            expected=f"{expected.size} bytes of sha256 {expected.sha256[:12]}…",
            found=f"{size} bytes" + (f" of sha256 {found[:12]}…" if size == expected.size else ""),
            remedy=_REPAIR,
        )


def check_file(folder: Place, key: str, digest: str) -> None:
    """Compare a file that a seal lists by name. Raises ManifestInvalid, or LimitExceeded for what is far too large."""
    where = str(folder.path / key)
    most = MAX_JSON_BYTES if key.endswith(".json") else MAX_CHUNK_BYTES + CRC_BYTES
    remedy = _COPY if key == SPEC else _REPAIR
    try:
        size, found = file_digest(folder, key, most)
    except FileNotFoundError:
        raise ManifestInvalid(
            where, expected=f"a file of sha256 {digest[:12]}…", found="no file", remedy=remedy
        ) from None
    if size > most:
        raise LimitExceeded(where, expected=f"at most {most} bytes", found=f"{size} bytes", remedy=remedy)
    if found != digest:
        raise ManifestInvalid(
            where, expected=f"sha256 {digest[:12]}…", found=f"{found[:12]}… ({size} bytes)", remedy=remedy
        )


def sealed_commit(root: Root, seal: Seal, table: SealTable, view: int, block: int) -> Commit:
    """The commit record of a block of a sealed part: it follows from the seal."""
    objects = {name: table.shard(name, view, block) for name, _ in seal.arrays}
    return Commit(view, block, root.grid.rows(block), seal.files[SPEC], objects)


def check_begun_seal(folder: Place) -> None:
    """Check a seal that no log names yet against what it seals. Raises StoreCorrupt."""
    seal = Seal.from_bytes(folder.read(SEAL), str(folder.path / SEAL))
    if seal.arrays:
        read_checked(folder, SEAL_TABLE, seal.table_sha256 or "", MAX_SEAL_TABLE_BYTES)
    for key, digest in seal.files.items():
        check_file(folder, key, digest)


def check_begun_group(folder: Place, name: str) -> None:
    """Refuse a `zarr.json` of an unsealed part that is not the one of its kind. Raises ManifestInvalid, FileNotFoundError."""
    if folder.read(ROOT_METADATA) not in part_metadatas(name):
        raise ManifestInvalid(
            str(folder.path / ROOT_METADATA),
            expected="the metadata of a part of this kind",
            found="others",
            remedy=_REPAIR,
        )


def check_small(folder: Place, layout: ArrayLayout, key: str) -> None:
    """Check a chunk of a small array by its own checksum. Raises ShardCorrupt, FileNotFoundError."""
    wanted = layout.shard_rows * layout.row_bytes + CRC_BYTES
    data, size = folder.read_range(key, 0, wanted)
    if size != wanted or crc32c(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
        raise ShardCorrupt(
            str(folder.path / key),
            expected=f"{wanted} bytes and their crc32c",
            found=f"{size} bytes that are not",
            remedy=_REPAIR,
        )


def check_begun_record(
    root: Root,
    commit: Commit,
    place: tuple[int, int],
    views: int,
    spec: str,
    layouts: Mapping[str, ArrayLayout],
    where: str,
) -> None:
    """Refuse a commit record that is not the one of its place in an unsealed part. Raises ManifestInvalid.

    place: (view, block), by its name. spec: sha256 of the part's spec.json.
    """
    view, block = place
    arrays = {name: layout for name, layout in layouts.items() if layout.is_block_array}
    rows = root.grid.rows(block)
    good = (
        (commit.view, commit.block, commit.rows, commit.spec) == (view, block, rows, spec)
        and 0 <= view < max(1, views)
        and 0 <= block < root.grid.num_blocks
        and set(commit.objects) == set(arrays)
        and all(
            is_shard_size(arrays[name], len(rows), stored.size)
            and len(stored.crc32c) == arrays[name].chunks_per_shard
            for name, stored in commit.objects.items()
        )
    )
    if not good:
        raise ManifestInvalid(
            where,
            expected=f"the record of block {block} of view {view}, and of what was begun here",
            found="another record",
            remedy=_REPAIR,
        )
