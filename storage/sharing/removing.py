"""Parts that nobody wants any more, removed: the log says first that they are gone, then their bytes are freed.

    log      … wide, deep, wide-small │ wide is gone      durable; the digest of the store is another one from here on
    bytes    teachers/wide/…          │ removed           a kill leaves some of them, and the next call removes the rest

Nothing else changes: what was made from a removed part stays, since it has its own bytes. The name is not used again. On a
disk, a part that was begun and not sealed is removed too, without a record, while no writer is at work on it.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, Final

from ..backends.emptying import check_removable
from ..backends.lease import lease
from ..backends.local import Folder, writable
from ..backends.object_folder import ObjectFolder
from ..backends.place import Place
from ..backends.remote import access_of, folder_at
from ..backends.writable import Writable
from ..errors import ConfigError, LogitStoreError, StoreIncomplete
from ..format.constants import COMMITS, LOG
from ..format.documents import canonical_json, check_name, sha256_hex
from ..parts.journal import read_table
from ..parts.log import append_removal, removal_record
from ..parts.removal import alone_with, free, is_there, part_keys
from ..parts.root import Root, open_root
from ..parts.sealable import check_log
from ..progress import Progress, silent
from .card_file import refresh_card
from .in_flight import LOCAL, REMOTE

SEALED, UNFINISHED, GONE = "sealed", "unfinished", "gone"
"""States of a part before its removal; "gone": an earlier removal was killed, or is done."""
_NOTHING: Final = "name at least one capture or clustering"


@dataclass(frozen=True)
class RemovedPart:
    """A part that was removed; of a call with `dry_run`, one that would be."""

    part: str
    """Its name in the store: "teachers/wide"."""
    state: str
    """ "sealed", "unfinished" or "gone" before the call."""
    files: int
    """Files of it that were there."""
    bytes: int
    """Their bytes; commit records are not counted."""
    derived: tuple[str, ...]
    """Parts that were made from it. They stay."""
    strays: tuple[str, ...]
    """Keys in it of files that no writer puts there. They stay."""


@dataclass(frozen=True)
class Removed:
    """The result of a removal; of one with `dry_run`, what it would be."""

    path: PurePath
    """The store."""
    dry_run: bool
    """Whether nothing was changed."""
    digest: str
    """ "sha256:…" of the store without the parts."""
    parts: tuple[RemovedPart, ...]
    """The parts, in the order in which they were named."""

    @property
    def bytes(self) -> int:
        """Bytes of all parts that were freed."""
        return sum(part.bytes for part in self.parts)


def remove_parts(
    store: "str | os.PathLike[str] | Place",
    *,
    teachers: Sequence[str] = (),
    clusterings: Sequence[str] = (),
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Removed:
    """Remove captures and clusterings from a store, and free their bytes. What was made from them stays.

    The log says first that a part is gone: the digest of the store changes, and the name is not used again. A call that was
    killed is completed by the next one. Readers that have the part open get an error for what is not there any more.

    store: a path, or the URL of a bucket. teachers, clusterings: names. dry_run: count, and change nothing.
    storage_options: of the library that opens a URL.
    Raises PartNotFound for another name, WriterBusy if a writer is at work on a part, StoreIncomplete for an unfinished part
    in a bucket, ConfigError without a name or for a place that cannot be written to.
    """
    names = _names(teachers, clusterings)
    place = writable(folder_at(store, access_of(storage_options)))
    check_removable(place)
    root = open_root(place)
    plans = [_plan(root, name) for name in names]
    if dry_run:
        return Removed(root.path, True, _digest_after(root, plans), tuple(plans))
    with contextlib.ExitStack() as stack:
        held = place.hold()
        stack.callback(held.let_go)
        root.check_log(held)
        if isinstance(held, ObjectFolder):
            held.prove_exclusive()
            held.prove_deletes()  # or the part would be unreadable, and nothing freed
        for plan in plans:
            _remove(root, held, plan, progress)
    root.refresh()
    root.tidy_up()  # what a killed call left beside the log
    refresh_card(root)
    return Removed(root.path, False, root.digest, tuple(plans))


def _names(teachers: Sequence[str], clusterings: Sequence[str]) -> list[str]:
    """Return the names of the parts, each once. Raises ConfigError."""
    found = list[str]()
    for key, group, given in (("teachers", "teachers", teachers), ("clusterings", "clusters", clusterings)):
        if isinstance(given, str):
            raise ConfigError(key, expected="a list of names", found=repr(given), remedy=f"pass [{given!r}]")
        found += [f"{group}/{check_name(name, key)}" for name in given]
    if not found:
        raise ConfigError("rm", expected="a part to remove", found="none", remedy=_NOTHING)
    return list(dict.fromkeys(found))


def _plan(root: Root, name: str) -> RemovedPart:
    """Count what a removal frees. Raises PartNotFound, and StoreIncomplete for an unfinished part in a bucket."""
    folder = root.folder.sub(name)
    if name in root.gone:
        state = GONE
    elif root.has(name):
        state = SEALED
    elif isinstance(root.folder, Folder) and is_there(root.folder, name) and part_keys(folder.files()):
        state = UNFINISHED
    else:
        _check_unfinished(root, name)
    files = folder.files() if is_there(root.folder, name) else []
    keys = part_keys(files)
    rest = tuple(sorted(set(files) - set(keys)))
    strays = tuple(key for key in rest if not key.startswith("__logitstore__/"))
    return RemovedPart(name, state, len(keys), _bytes(root, name, keys), tuple(_derived(root, name)), strays)


def _check_unfinished(root: Root, name: str) -> None:
    """Raise the error of a part that is not sealed: PartNotFound, or StoreIncomplete in a bucket."""
    try:
        root.digest_of(name)
    except StoreIncomplete as error:
        raise StoreIncomplete(
            error.where,
            expected="a sealed part, or a store on a local disk",
            found=f"{error.found} in a bucket, where a writer at work leaves no trace",
            remedy=f"end its writers, and delete the objects under {root.folder.sub(name).path}",
        ) from None


def _bytes(root: Root, name: str, keys: Sequence[str]) -> int:
    """Return the bytes of files of a part: of shards by the seal, as far as that is intact."""
    folder, known = root.folder.sub(name), dict[str, int]()
    with contextlib.suppress(LogitStoreError, FileNotFoundError):
        if root.folder.is_remote and root.has(name):
            seal, part = root.seal(name), root.part(name)
            table = read_table(folder, seal)
            known = {
                part.layouts[array].shard_key(view, block): table.size(array, view, block)
                for array, _ in seal.arrays
                for view in range(seal.views)
                for block in range(seal.blocks)
            }

    def size(key: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return known[key] if key in known else folder.size(key)
        return 0

    counted = [key for key in keys if not key.startswith(f"{COMMITS}/")]
    with ThreadPoolExecutor(REMOTE if root.folder.is_remote else LOCAL, "logitstore-rm") as pool:
        return sum(pool.map(size, counted))


def _derived(root: Root, name: str) -> Iterator[str]:
    """Yield the parts whose identity names the seal of a part."""
    seal = root.gone[name].seal if name in root.gone else None
    if seal is None and root.has(name):
        seal = root.digest_of(name).removeprefix("sha256:")
    for record in root.records if seal else ():
        with contextlib.suppress(LogitStoreError):
            if record.part != name and f"sha256:{seal}".encode() in canonical_json(
                dict(root.spec(record.part).identity)
            ):
                yield record.part


def _digest_after(root: Root, plans: Sequence[RemovedPart]) -> str:
    """Return the digest of the store once the log says that the parts are gone."""
    last = root.digest.removeprefix("sha256:")
    for plan in plans:
        if plan.state == SEALED:
            seal = root.digest_of(plan.part).removeprefix("sha256:")
            last = sha256_hex(removal_record(plan.part, last, seal))
    return f"sha256:{last}"


def _remove(root: Root, place: Writable, plan: RemovedPart, progress: Progress) -> None:
    """Put the record of a removal, if the part was sealed, and free its bytes. place: the store, held."""
    name = plan.part
    with alone_with(place, name):
        root.refresh()  # a writer may have sealed it meanwhile, or another process removed it
        if root.has(name):
            check_log(len(root.log), f"the removal of {name}", f"{root.path}: {name}")
            with lease(place):
                append_removal(place, name, root.digest_of(name).removeprefix("sha256:"))
            root.refresh()
        place.sync(LOG)  # also where another process' record is there
        done = partial(_report, progress, name, plan.files, [0])
        if is_there(place, name):
            free(place, name, done)


def _report(progress: Progress, name: str, total: int, done: list[int], count: int) -> None:
    done[0] += count
    if total:
        progress(f"removing {name}", min(done[0], total), total, "files")
