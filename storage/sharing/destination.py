"""Writables of copies: places in which objects are put once, under names that are free.

nothing, or an empty folder      a new store is begun there
a store of the same samples      the parts that it lacks are added
anything else                    an error, before the first byte is written
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath

from ..backends.lease import lease
from ..backends.local import Folder
from ..backends.place import Place, components
from ..backends.system import sync
from ..backends.writable import Writable
from ..errors import ConfigError, NameTaken, StorageError, StorageFull
from ..format.constants import GROUPS, LOG, PRIVATE, ROOT_METADATA, SAMPLES, SEAL, SPEC
from ..integrity.checks import file_digest
from ..parts.log import ROOT_FILES, LogRecord, gone_from, log_key, name_gone, part_record, read_log
from ..parts.root import Root

OTHER_PLACE = "choose another destination"
OTHER_BYTES = (
    "choose another destination; or remove the unfinished part there, and run the same command again"
)


def is_local(place: Place) -> bool:
    """Return whether a place is a folder of this machine's file systems."""
    return isinstance(place, Folder)


def check_room(place: Writable, needed: int) -> None:
    """Refuse a disk without room for so many bytes. Raises StorageFull."""
    if needed > (free := place.free_bytes()):
        raise StorageFull(
            str(place.path),
            expected=f"room for {needed:,} bytes",
            found=f"{free:,} free bytes",
            remedy="free space, choose another disk, or name some captures alone with `--teacher`",
        )


def put_sealed(place: Writable, key: str, data: bytes, digest: str) -> bool:
    """Put an object of a sealed part; return whether this call put it.

    Raises NameTaken if other bytes have the name.
    """
    if place.put_new(key, data):
        return True
    check_sealed(place, key, len(data), digest)
    return False


def check_sealed(place: Place, key: str, size: int, digest: str) -> None:
    """Compare an object that is there with its seal. Raises NameTaken if it has other bytes, StorageError if it is gone."""
    with _staying(place, key):
        found = file_digest(place, key, size)
    if found != (size, digest):
        raise _other_bytes(place, key, f"{size} bytes of sha256 {digest[:12]}…", *found)


def check_size(place: Place, key: str, size: int) -> None:
    """Compare the size of a committed shard that is there. Raises NameTaken, StorageError if it is gone."""
    with _staying(place, key):
        found = place.size(key)
    if found != size:
        raise _other_bytes(place, key, f"{size} bytes", found)


def _other_bytes(place: Place, key: str, expected: str, size: int, digest: str = "") -> NameTaken:
    return NameTaken(
        str(place.path / key),
        expected=f"{expected}, as the store that is copied has them",
        found=f"{size} bytes" + (f" of sha256 {digest[:12]}…" if digest else ""),
        remedy=OTHER_BYTES,
    )


@contextlib.contextmanager
def _staying(place: Place, key: str) -> Iterator[None]:
    """Wrap the error of an object that vanishes from the destination. Raises StorageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            str(place.path / key),
            expected="an object that stays where it was put",
            found="no object: it was removed meanwhile",
            remedy="run the same command again, while nobody removes anything there",
        ) from error


def records_there(place: Writable, source: Root, merges: bool) -> list[LogRecord] | None:
    """Return the log of the store at the destination; None where none has been begun.

    merges: there has to be one. Raises NameTaken for a place that holds another store or other things, ConfigError.
    """
    if (kind := place.kind()) == "a file":
        raise _taken(place.path, "a file")
    if not place.exists(log_key(0)):
        _check_free(place, source, merges, kind)
        return None
    if place.read(log_key(0)) != source.folder.read(log_key(0)):
        raise _other(place, source, "a store of other sizes")
    records = read_log(place)[1]
    ours, theirs = ({record.part: record.seal for record in log} for log in (source.records, records))
    if SAMPLES in theirs and theirs[SAMPLES] != ours[SAMPLES]:
        raise _other(place, source, f"a store of the samples sha256:{theirs[SAMPLES][:12]}…")
    return records


def _check_free(place: Writable, source: Root, merges: bool, kind: str) -> None:
    if merges:
        raise ConfigError(
            str(place.path),
            expected="a store, to which the parts of the other one are added",
            found="nothing" if kind == "nothing" else "a folder without a store",
            remedy="use `logitstore copy` to begin a store there",
        )
    strangers = sorted(set(place.names() if place.can_list else ()) - {ROOT_METADATA, *GROUPS, PRIVATE})
    if strangers:
        raise _taken(place.path, f"a folder with other things in it ({strangers[0]!r})")
    if place.exists(ROOT_METADATA) and place.read(ROOT_METADATA) != source.folder.read(ROOT_METADATA):
        raise _taken(place.path, "another Zarr group, or a store of other sizes")


def check_part(place: Writable, records: list[LogRecord], source: Root, name: str) -> bool:
    """Return whether a part is sealed at the destination. Raises NameTaken if another part has, or had, its name there."""
    ours = source.digest_of(name).removeprefix("sha256:")
    if name in gone_from(records):
        raise name_gone(f"{place.path}: {name}")
    there = next((record.seal for record in records if record.part == name), None)
    if there is not None:
        if there != ours:
            raise _name_taken(place, name, f"sha256:{ours[:12]}…", f"sha256:{there[:12]}…")
        return True
    folder, theirs = place.sub(name), source.folder.sub(name)
    differs = any(folder.exists(key) and folder.read(key) != theirs.read(key) for key in (SPEC, SEAL))
    if differs:
        if name == SAMPLES:
            raise _other(place, source, "a store of other samples, which is being made")
        raise _name_taken(place, name, f"sha256:{ours[:12]}…", "an unfinished part of another identity")
    return False


def _taken(path: PurePath, found: str) -> NameTaken:
    expected = "nothing, an empty folder, or a store of the same samples"
    return NameTaken(str(path), expected=expected, found=found, remedy=OTHER_PLACE)


def _other(place: Writable, source: Root, found: str) -> NameTaken:
    samples = source.digest_of(SAMPLES)[:19]
    return NameTaken(
        str(place.path),
        expected=f"nothing, or a store of the samples {samples}…, those of {source.path}",
        found=found,
        remedy=OTHER_PLACE,
    )


def _name_taken(place: Writable, name: str, expected: str, found: str) -> NameTaken:
    return NameTaken(
        f"{place.path}: {name}",
        expected=f"a free name, or the part {expected}",
        found=found if found.startswith("an") else f"another part of this name, {found}",
        remedy="keep one of the two: copy the other captures with `--teacher`, or write it under another name",
    )


def begin_store(place: Writable, source: Root) -> None:
    """Put the root of a store: its metadata, then record 0 of the log. Raises NameTaken if another one is begun there."""
    for key in (*ROOT_FILES, log_key(0)):
        data = source.folder.read(key)
        is_new = not place.exists(key) and place.put_new(key, data)
        if not is_new and place.read(key) != data:
            raise _other(place, source, "a store of other sizes, which has just been begun")


def add_to_log(place: Writable, source: Root, parts: Mapping[str, Callable[[], None]]) -> str:
    """Add parts, all of which are there, to the log of the destination; return its digest then.

    parts: by name, a check that one is whole, made while it is held: a removal may have come since it was brought.

    If another copy takes the next number, the record is made anew for the number after it: both stay. Raises NameTaken if
    another part of the name was added meanwhile, WrongStore if a local folder was moved away.
    """
    place.check_in_place()
    with lease(place):
        for name, check_whole in parts.items():
            with lease(place.sub(name)):
                check_whole()
                while not _add(place, source, name):
                    pass
    place.sync(LOG)  # also where another copy's record is there
    empty, records = read_log(place)
    return records[-1].digest if records else empty


def _add(place: Writable, source: Root, name: str) -> bool:
    """Put the record of a part on the next number; return whether it is there."""
    empty, records = read_log(place)
    if check_part(place, records, source, name):
        return True
    last = records[-1].digest if records else empty
    seal = source.digest_of(name).removeprefix("sha256:")
    record = part_record(name, last.removeprefix("sha256:"), seal)
    return place.put_new(log_key(len(records) + 1), record)


def settle(place: Writable, folders: Iterable[str]) -> None:
    """Make the names in local folders durable: an earlier copy may have been killed before it did."""
    if isinstance(place, Folder):
        for folder in folders:
            within = components(folder, place.path) if folder else []
            with contextlib.suppress(FileNotFoundError), place.directory(within) as handle:
                sync(handle)
