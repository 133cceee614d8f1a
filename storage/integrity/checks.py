"""Checks of one object of a store against its seal or its commit record."""

from collections.abc import Callable
from hashlib import sha256
from typing import Final

from ..backends.place import Place
from ..backends.pointers import naming_pointer_at
from ..errors import LimitExceeded, LogitStoreError, ManifestInvalid, ShardCorrupt, ShardMissing
from ..format.constants import (
    MAX_CHUNK_BYTES,
    MAX_JSON_BYTES,
    MAX_SHARD_BYTES,
    SEAL,
    SPEC,
)
from ..format.documents import canonical_json, parse_json
from ..format.metadata import ArrayLayout
from ..format.shard import COPY, COPY_OF_SEAL, CRC_BYTES, REMAKE, crc32c
from ..parts.journal import Commit, StoredShard

PIECE: Final = 8 << 20
"""Bytes of a shard that are read at a time."""
FAILURES = (
    LogitStoreError,
    FileNotFoundError,
    NotADirectoryError,
    MemoryError,
    RecursionError,
    OverflowError,
)
"""The exceptions that damaged or hostile files cause."""


def error_of(where: str, check: Callable[..., object], *arguments: object) -> LogitStoreError | None:
    """Call a check and return its error, or None. where: names the file if the check does not."""
    try:
        check(*arguments)
    except FAILURES as error:
        return typed(error, where)
    return None


def typed(error: Exception, where: str) -> LogitStoreError:
    """Return one of `FAILURES` as a typed error. where: names the file if the error does not."""
    if isinstance(error, LogitStoreError):
        return error
    if isinstance(error, OSError):
        return no_file(where)
    return LimitExceeded(
        where,
        expected="sizes that a reader can handle",
        found=type(error).__name__,
        remedy="do not use this store: logitstore writes no such file",
    )


def no_file(where: str, expected: str = "a file", remedy: str = REMAKE) -> ManifestInvalid:
    """Return the error of a file that is missing."""
    return ManifestInvalid(where, expected=expected, found="no file", remedy=remedy)


def from_a_copy(error: LogitStoreError) -> LogitStoreError:
    """Return an error with another remedy: neither `repair` nor a writer brings the file back."""
    remedy = COPY_OF_SEAL if error.where.endswith(SEAL) else COPY
    return error.with_remedy(remedy)


def file_digest(folder: Place, key: str, most: int) -> tuple[int, str]:
    """Return size and sha256 of an object, read piece by piece; "" for an object larger than `most` bytes.

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


def check_file(folder: Place, key: str, digest: str) -> None:
    """Compare a file with the sha256 that a seal lists. Raises ManifestInvalid, LimitExceeded."""
    where = str(folder.path / key)
    most = MAX_JSON_BYTES if key.endswith(".json") else MAX_CHUNK_BYTES + CRC_BYTES
    remedy = COPY if key == SPEC else REMAKE
    try:
        size, found = file_digest(folder, key, most)
    except FileNotFoundError:
        raise no_file(where, f"a file of sha256 {digest[:12]}…", remedy) from None
    if size > most:
        raise LimitExceeded(where, expected=f"at most {most} bytes", found=f"{size} bytes", remedy=remedy)
    if found != digest:
        error = ManifestInvalid(
            where, expected=f"sha256 {digest[:12]}…", found=f"{found[:12]}… ({size} bytes)", remedy=remedy
        )
        raise naming_pointer_at(error, folder, key)


def check_shard(folder: Place, key: str, expected: StoredShard, deep: bool) -> None:
    """Compare a shard with its seal or record, by size and if `deep` by sha256. Raises ShardMissing, ShardCorrupt."""
    where = str(folder.path / key)
    try:
        if deep:
            # The size is only a statement of the seal: no shard of any store is larger than twice the limit.
            size, found = file_digest(folder, key, min(expected.size, 2 * MAX_SHARD_BYTES))
        else:
            size, found = folder.size(key), expected.sha256
    except FileNotFoundError:
        raise ShardMissing(
            where, expected=f"a shard of {expected.size} bytes", found="no file", remedy=REMAKE
        ) from None
    if size != expected.size or found != expected.sha256:
        error = ShardCorrupt(
            where,
            expected=f"{expected.size} bytes of sha256 {expected.sha256[:12]}…",
            found=f"{size} bytes" + (f" of sha256 {found[:12]}…" if size == expected.size else ""),
            remedy=REMAKE,
        )
        raise naming_pointer_at(error, folder, key)


def check_small(folder: Place, layout: ArrayLayout, key: str) -> None:
    """Check a chunk of a small array by its own checksum. Raises ShardCorrupt, FileNotFoundError."""
    wanted = layout.shard_rows * layout.row_bytes + CRC_BYTES
    data, size = folder.read_range(key, 0, wanted)
    if size != wanted or crc32c(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
        raise ShardCorrupt(
            str(folder.path / key),
            expected=f"{wanted} bytes that end in their crc32c",
            found=f"{size} bytes" if size != wanted else "another crc32c",
            remedy=REMAKE,
        )


def check_sealed_record(folder: Place, sealed: Commit, is_there: bool, deep: bool) -> None:
    """Compare the record of a sealed block with the seal, from which it follows. Raises ManifestInvalid."""
    where = str(folder.path / sealed.key)
    remedy = "run `logitstore repair`, which rebuilds it from the seal; reads do not use this record"
    if not is_there:
        raise no_file(where, "the record of this block", remedy)
    if deep and not _is_record(folder.read(sealed.key), sealed, where):
        raise ManifestInvalid(
            where, expected="the record that follows from the seal", found="another record", remedy=remedy
        )


def _is_record(data: bytes, sealed: Commit, where: str) -> bool:
    """Return whether a record agrees with the seal. A later minor version may put more keys into it."""
    if data == sealed.to_bytes():
        return True
    try:
        return data == canonical_json(parse_json(data, where)) and Commit.from_bytes(data, where) == sealed
    except ManifestInvalid:
        return False  # its remedy would be a copy, which this record does not need
