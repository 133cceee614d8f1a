"""Faults of the root and of the log, whose files vouch for each other.

    zarr.json, teachers/zarr.json …  <─sha256─  log/0.json  <─sha256─  log/1.json  <─sha256─  log/2.json …

Record n is rebuilt from its part's seal and record n − 1, and only to the sha256 that record n + 1 holds. The seal of a part
that was removed stands in two records.
No record vouches for the last one: it comes back from a copy.
"""

import contextlib
from collections.abc import Iterator

from ..backends.place import Place
from ..errors import LimitExceeded, LogitStoreError, ManifestInvalid, StoreCorrupt
from ..format.constants import GROUPS, ROOT_METADATA, SAMPLES, SEAL
from ..format.documents import parse_json, sha256_hex
from ..format.metadata import RootAttributes, group_metadata
from ..format.shard import COPY
from ..parts.log import (
    ROOT_FILES,
    is_part,
    last_record,
    log_key,
    named_seal,
    part_record,
    removal_record,
    root_record,
)
from .checks import check_file, error_of
from .faults import Fault, Rebuild, curable

_MAX_CLASSES = 1 << 17
"""Numbers of classes that are tried for a lost root."""


def root_faults(folder: Place, *, rebuild: bool) -> Iterator[Fault]:
    """Find the damaged files of the root and of the log. rebuild: try to rebuild the root's `zarr.json` (0.2 s).

    A caller that applies each cure before it asks for the next fault gets them all.
    """
    yield from _metadata_faults(folder, rebuild)
    yield from _log_faults(folder)


def _fault(folder: Place, key: str, expected: str, data: bytes | None = None) -> Fault:
    found = "another file" if folder.exists(key) else "no file"
    remedy = COPY if data is None else "run `logitstore repair`, which rebuilds it"
    error = ManifestInvalid(str(folder.path / key), expected=expected, found=found, remedy=remedy)
    if data is None:
        return Fault("", key, error)
    return Fault("", key, error, Rebuild(data), sha256_hex(data))


def _metadata_faults(folder: Place, rebuild: bool) -> Iterator[Fault]:
    """Compare the root's metadata with record 0 of the log, and that record with record 1."""
    record, vouched = _record(folder, 0) or b"", _previous(_record(folder, 1))
    with contextlib.suppress(FileNotFoundError, LogitStoreError):
        again = root_record({key: folder.read(key) for key in ROOT_FILES})
        if record != again and sha256_hex(again) == vouched:
            yield _fault(folder, log_key(0), "the sha256 of the root's metadata", again)
            record = again
    digests = parse_json(record, log_key(0)).get("root") if record else None
    if not isinstance(digests, dict) or set(digests) != set(ROOT_FILES):
        yield _fault(folder, log_key(0), "the sha256 of the root's metadata")
        return
    for key, digest in sorted(digests.items()):
        error = error_of(str(folder.path / key), check_file, folder, key, str(digest))
        if error is None:
            continue
        data = _root_file(folder, key, str(digest)) if rebuild or key != ROOT_METADATA else None
        cure = None if data is None else curable(error, Rebuild(data))
        yield Fault("", key, error, cure, str(digest))
        if data is None and sha256_hex(record) != vouched:  # the digest may be the damaged one
            yield _fault(folder, log_key(0), "a record that record 1 vouches for")


def _log_faults(folder: Place) -> Iterator[Fault]:
    """Compare each record of the log with the sha256 that its successor holds, from the last one down."""
    last = last_record(folder)
    for number in range(last - 1, 0, -1):
        before, record, after = (_record(folder, n) for n in (number - 1, number, number + 1))
        vouched = _previous(after)
        if before is None or after is None or (record is not None and sha256_hex(record) == vouched):
            continue  # a gap is reported where its own turn comes, or by `read_log`
        again = _records_after(before, _seals(folder, last, number))
        right = next((made for made in again if sha256_hex(made) == vouched), None)
        if right is not None or record not in again:
            yield _fault(folder, log_key(number), f"the record of sha256 {vouched[:12]}…", right)
        # A record that agrees with its part and its predecessor is intact: its successor is not.
        if right is None and number + 1 == last:
            yield _fault(folder, log_key(last), "a record that follows the one before")


def _record(folder: Place, number: int) -> bytes | None:
    """Return a record of the log if it is canonical JSON."""
    with contextlib.suppress(FileNotFoundError, StoreCorrupt, LimitExceeded):
        data = folder.read(log_key(number))
        parse_json(data, str(folder.path / log_key(number)))
        return data
    return None


def _previous(record: bytes | None) -> str:
    """Return the sha256 that a record holds of its predecessor; "" for no record."""
    return "" if record is None else str(parse_json(record, "log").get("previous"))


def _parts(folder: Place) -> list[str]:
    return [SAMPLES, *(f"{group}/{name}" for group in GROUPS for name in folder.names(group))]


def _seals(folder: Place, last: int, number: int) -> set[tuple[str, str]]:
    """Return part and seal as the parts have them, and as the records but that of a number do.

    A removed part has no seal any more: the record that sealed it, and that of its removal, have it in common.
    """
    found = set[tuple[str, str]]()
    for part in filter(is_part, _parts(folder)):
        with contextlib.suppress(LogitStoreError, OSError):
            found.add((part, sha256_hex(folder.sub(part).read(SEAL))))
    for other in set(range(1, last + 1)) - {number}:
        where = log_key(other)
        with contextlib.suppress(LogitStoreError):
            value = parse_json(_record(folder, other) or b"", where)
            if is_part(part := str(value.get("part"))):
                found.add((part, named_seal(value, where)[0]))
    return found


def _records_after(previous: bytes, seals: set[tuple[str, str]]) -> list[bytes]:
    """Return the records that may follow `previous`: of a part that is sealed, and of one that is removed."""
    before = sha256_hex(previous)
    return [
        make(part, before, seal) for part, seal in sorted(seals) for make in (part_record, removal_record)
    ]


def _root_file(folder: Place, key: str, digest: str) -> bytes | None:
    """Return the `zarr.json` of the root or of a group that has this sha256.

    No writer makes the root a second time, so that its `zarr.json` is searched for: rows and rows a block are in the
    metadata of the parts' arrays, the number of classes is tried. The sha256 decides; nothing is guessed.
    """
    if key != ROOT_METADATA:
        return group_metadata() if sha256_hex(group_metadata()) == digest else None
    for rows, block_rows in sorted(_sizes(folder)):
        before, number, after = RootAttributes(rows, 2, block_rows).to_bytes().partition(b'"num_classes":2,')
        assert number
        for classes in range(2, _MAX_CLASSES):
            data = b'%b"num_classes":%d,%b' % (before, classes, after)
            if sha256_hex(data) == digest:
                return data
    return None


def _sizes(folder: Place) -> set[tuple[int, int]]:
    """Return (rows, rows a block) as one array of each part has them."""
    arrays = {SAMPLES: "source", GROUPS[0]: "seen"}
    sizes = set()
    for part in _parts(folder)[:16]:
        with contextlib.suppress(
            LogitStoreError, OSError, KeyError, TypeError, IndexError, ZeroDivisionError
        ):
            key = f"{part}/{arrays[part.partition('/')[0]]}/{ROOT_METADATA}"
            value = parse_json(folder.read(key), key)
            rows, block = value["shape"][-1], value["chunk_grid"]["configuration"]["chunk_shape"][-1]
            RootAttributes(rows, 2, block).to_bytes()
            sizes.add((int(rows), int(block)))
    return sizes
