"""How is a damaged store brought to where the next run of its writer makes it whole?

For the root and for each part, as far as its seal or its records tell what was there:

1. What follows from other files is rebuilt, and is put back only with the sha256 that it had: commit records from
   `seal.bin`, `seal.bin` from the records and the shards, metadata of groups and arrays, every record of the log that
   another one follows (`rebuild`).
2. What can be made again is thrown away where it is torn or of another store: shards, chunks of small arrays. Whatever
   wrote the part then writes just that again: a writer takes a block as missing when one of its shards is.
3. A part that is not sealed is mended as its next writer would mend it (`recovery`), but by the digests of its records.
4. What no other file tells (`spec.json`, `seal.json`, the last record of the log) is listed: it comes back from a copy only.

A file that is intact is never deleted, nor is one that could not be read. Nothing is deleted while a writer is at
work on the part: each part is held alone (`lease`) while it is changed.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..backends.local import Folder
from ..errors import LimitExceeded, LogitStoreError, StorageError, StoreCorrupt
from ..format.constants import GROUPS, ROOT_METADATA
from ..format.documents import parse_json, sha256_hex
from ..parts.journal import last_record, log_key, root_record
from ..parts.root import open_root, unsealed_parts
from ..progress import Progress, silent
from .begun import _BegunRepair
from .rebuild import log_record, record_of, root_file
from .sealed import _SealedRepair
from .site import Repairs, _lost, _Site
from .strays import find_strays


def repair(path: Path, *, dry_run: bool = False, progress: Progress = silent) -> Repairs:
    """Mend what can be mended of a store, and make room for what can be made again.

    Raises NotAStoreError where the path holds no store, WriterBusy where a writer is at work on it, StorageError where
    it cannot be written. Run again after that, it goes on.
    """
    done = Repairs(dry_run)
    top = Folder(path)
    if not top.exists(log_key(0)) and not top.exists(ROOT_METADATA):
        open_root(path)  # says what is there instead
    _repair_root(_Site(top, "", done))
    _repair_log(_Site(top, "", done))
    try:
        root = open_root(path)
    except LogitStoreError as error:
        if not done.beyond and not (dry_run and done.rebuilt):
            done.beyond.append(error)
        return done
    seals = {}
    for record in root.records:
        site = _Site(top.sub(record.part), record.part, done)
        with _giving_up(done):
            seal = _SealedRepair(root, record, site, progress).run()
            if seal is not None:
                seals[record.part] = seal
    done.unsealed = unsealed_parts(root)
    # No later record vouches for the last one. Where its seal is not found it may be the record that is wrong, and
    # what looks like a part that was begun may be the one that it named.
    in_doubt = bool(root.records) and root.records[-1].part not in seals
    if in_doubt:
        done.beyond.append(_lost(str(path / log_key(len(root.records)))))
    for name in () if in_doubt else done.unsealed:
        with _giving_up(done):
            _BegunRepair(root, name, _Site(top.sub(name), name, done), progress).run()
    done.strays, shown = find_strays(open_root(path), seals, Folder(path).files())
    done.beyond += shown
    return done


@contextlib.contextmanager
def _giving_up(done: Repairs) -> Iterator[None]:
    """Go on with the next part where this one is of a kind that no repair knows; not where the disk fails."""
    try:
        yield
    except StorageError:
        raise
    except LogitStoreError as error:
        done.beyond.append(error)


# The root


def _repair_root(site: _Site) -> None:
    """Root metadata, by the digests in record 0 of the log; that record, by record 1."""
    keys = sorted({ROOT_METADATA, *(f"{group}/{ROOT_METADATA}" for group in GROUPS)})
    again = record = vouched = None
    with contextlib.suppress(FileNotFoundError, LogitStoreError):
        again = root_record({key: site.folder.read(key) for key in keys})
    with contextlib.suppress(FileNotFoundError, LogitStoreError):
        record = site.folder.read(log_key(0))
    with contextlib.suppress(FileNotFoundError, LogitStoreError):
        vouched = parse_json(site.folder.read(log_key(1)), site.path(log_key(1))).get("previous")
    if record != again and again is not None and sha256_hex(again) == vouched:
        with site.alone():
            site.rebuild(log_key(0), again)
        record = again
    digests = _root_digests(record or b"", site.path(log_key(0)), keys)
    if digests is None:
        site.give_up(_lost(site.path(log_key(0))))
        return
    wrong = {key: digest for key, digest in digests.items() if site.damage(key, digest)}
    if wrong or site.has_litter:
        with site.alone():
            for key, digest in wrong.items():
                data = root_file(site.folder, key, digest)
                if data is not None:
                    site.rebuild(key, data)
                    continue
                site.give_up(_lost(site.path(key)))
                if sha256_hex(record or b"") != vouched:  # the digest may be what is wrong
                    site.give_up(_lost(site.path(log_key(0))))


def _repair_log(site: _Site) -> None:
    """Records of the log, each by the digest of it that the one after it has, from the seals that there are."""
    last = last_record(site.folder)
    for number in range(last - 1, 0, -1):
        before, record, after = (_record(site, n) for n in (number - 1, number, number + 1))
        if before is None or after is None:
            continue  # reading the log says so
        vouched = str(parse_json(after, site.path(log_key(number + 1))).get("previous"))
        if record is not None and sha256_hex(record) == vouched:
            continue
        again = log_record(site.folder, before, vouched)
        if again is not None:
            with site.alone():
                site.rebuild(log_key(number), again)
            continue
        # One that agrees with its part and with what is before it is right; then the last one, for which none vouches, is not.
        part = record and parse_json(record, site.path(log_key(number))).get("part")
        is_right = record is not None and record == record_of(site.folder, str(part), before)
        if not is_right:
            site.give_up(_lost(site.path(log_key(number))))
        if number + 1 == last:
            site.give_up(_lost(site.path(log_key(last))))


def _record(site: _Site, number: int) -> bytes | None:
    """A record of the log where it is JSON as it must be; None where it is not."""
    with contextlib.suppress(FileNotFoundError, StoreCorrupt, LimitExceeded):
        data = site.folder.read(log_key(number))
        parse_json(data, site.path(log_key(number)))
        return data
    return None


def _root_digests(record: bytes, where: str, keys: list[str]) -> dict[str, str] | None:
    """What record 0 of the log says; None where it is damaged."""
    try:
        digests = parse_json(record, where).get("root")
    except LogitStoreError:
        return None
    if not isinstance(digests, dict) or sorted(digests) != keys:
        return None
    return {key: str(digest) for key, digest in digests.items()}
