"""Copies of stores: whole objects, in parallel, each compared with the seal when it arrives, the log last.

    source ── log, seals ──▶ what there is          (read and checked as for any reader)
    destination ── log ────▶ what it lacks          (another store there: an error, before anything is written)
    parts, one after another, their objects in parallel
    log records, each on the next free number       (two copies at once: both stay)

Onto a store of the same samples, the parts that it lacks are added: copies of one store that grew apart are merged.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..backends.lease import tidy_up
from ..backends.place import Place
from ..backends.remote import access_of, folder_at, folder_to_write
from ..errors import ConfigError
from ..format.constants import SAMPLES
from ..format.documents import check_name, sha256_hex
from ..parts.log import LogRecord, gone_from, log_key, name_gone, part_record
from ..parts.root import Root, open_root, unsealed_parts
from ..parts.sealable import check_log
from ..progress import Progress, silent
from .card_file import refresh_copy
from .destination import (
    add_to_log,
    begin_store,
    check_part,
    check_room,
    is_local,
    records_there,
)
from .in_flight import LOCAL, REMOTE, InFlight
from .part_copy import PartCopy, PartPlan

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore
else:
    ZarrStore = Any


@dataclass(frozen=True)
class Copied:
    """The result of a copy; of one with `dry_run`, what it would be."""

    source: PurePath
    """The store that was copied."""
    path: PurePath
    """The destination."""
    dry_run: bool
    """Whether nothing was written."""
    digest: str
    """ "sha256:…" of the store at the destination."""
    parts: tuple[PartPlan, ...]
    """The parts that the log of the destination lacked, and the bytes that were missing of each."""
    there: tuple[str, ...]
    """The chosen parts that it had."""
    sent: int
    """Bytes that were written; commit records and the log are not counted."""
    unsealed: tuple[str, ...]
    """Parts of the source that are not sealed, and so not copied."""
    gone: tuple[str, ...]
    """Parts that were removed from the destination, and so not copied again."""

    @property
    def bytes(self) -> int:
        """Bytes of the parts that the destination lacked."""
        return sum(part.bytes for part in self.parts)

    @property
    def missing(self) -> int:
        """Those bytes of them that it lacked; the others had arrived by an earlier copy."""
        return sum(part.missing for part in self.parts)


def copy_store(
    source: "str | os.PathLike[str] | ZarrStore | Place",
    destination: "str | os.PathLike[str] | Place",
    *,
    teachers: Sequence[str] | None = None,
    expect: str | None = None,
    merge: bool = False,
    dry_run: bool = False,
    in_flight: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    destination_options: Mapping[str, Any] | None = None,
    follow_links: bool = False,
    progress: Progress = silent,
) -> Copied:
    """Copy a store, or the parts of it that the store at the destination lacks.

    Every object is compared with the seal when it arrives. A part is in the log once all of it is there. A copy that was
    killed resumes when it is called again, and sends nothing again that had arrived. Unsealed parts are not copied, nor those
    that were removed from the destination. A part that was removed from the source stays at the destination.

    source: a path, a URL, or a store of Zarr's. destination: a path, or the URL of a bucket.
    teachers: captures that are copied, with the samples, on which they rest; None for every part.
    expect: "sha256:…", a present or former digest of the source, as of which it is copied.
    merge: the destination has to be a store already. dry_run: count, and write nothing.
    in_flight: transfers at a time; 24 by default, and 4 between disks.
    storage_options, destination_options: of the libraries that open the URLs of the two, as for `open_store`.
    follow_links: read a source whose files are links, as for `open_store`; the copy has plain files.
    Raises NotAStoreError, WrongStore, StoreIncomplete or PartNotFound for the source, ShardCorrupt, ShardMissing or
    ManifestInvalid if it is damaged; NameTaken if the destination holds another store, other things, or another part of
    a name; StorageFull before anything is written to a disk without room.
    """
    root = open_root(folder_at(source, access_of(storage_options, follow_links=follow_links)), expect)
    names = _chosen(root, teachers)
    place = folder_to_write(destination, access_of(destination_options))
    records = records_there(place, root, merge)
    removed = gone_from(records or [])
    gone = tuple(name for name in names if name in removed)
    if teachers is not None and gone:
        raise name_gone(f"{place.path}: {gone[0]}")
    names = [name for name in names if name not in removed]
    lacking = [name for name in names if not check_part(place, records or [], root, name)]
    for number, name in enumerate(lacking):
        check_log(len(records or []) + number, name, f"{place.path}: {name}")
    most = in_flight or (LOCAL if is_local(place) and is_local(root.folder) else REMOTE)
    with ThreadPoolExecutor(most, "logitstore-plan") as pool:
        copies = list(pool.map(lambda name: PartCopy(root, name, place), lacking))
        plans = tuple(pool.map(PartCopy.plan, copies))
    with InFlight(most) as flight:
        for copy in copies:
            copy.compare(flight)
    check_room(place, sum(plan.missing for plan in plans))
    tally = _Tally(progress, plans)
    digest = _digest_after(root, records, lacking)
    if not dry_run:
        with contextlib.ExitStack() as stack:
            folder = place.hold(make=True)
            stack.callback(folder.let_go)
            flight = stack.enter_context(InFlight(most))
            folder.prove_exclusive()
            if records is None:
                begin_store(folder, root)
            for copy in copies:
                copy.bring(folder, flight, tally.add)
            checks = {copy.name: partial(copy.check_whole, folder) for copy in copies}
            digest = add_to_log(folder, root, checks)
            for name in () if folder.is_remote else names:
                tidy_up(folder.sub(name))  # a copy that was killed once its part was in the log left its lock
        tally.end()
        refresh_copy(place, digest, root)
    there = tuple(name for name in names if name not in lacking)
    unsealed = tuple(unsealed_parts(root))
    return Copied(root.path, place.path, dry_run, digest, plans, there, tally.sent, unsealed, gone)


def _chosen(root: Root, teachers: Sequence[str] | None) -> list[str]:
    """Return the parts to be copied, in the order of the log. Raises StoreIncomplete, PartNotFound, ConfigError."""
    root.digest_of(SAMPLES)
    if teachers is None:
        return [record.part for record in root.records]
    if isinstance(teachers, str):
        raise ConfigError(
            "teachers", expected="a list of names", found=repr(teachers), remedy=f"pass [{teachers!r}]"
        )
    chosen = {SAMPLES, *(f"teachers/{check_name(name, 'teachers')}" for name in teachers)}
    for name in sorted(chosen):
        root.digest_of(name)
    return [record.part for record in root.records if record.part in chosen]


def _digest_after(root: Root, records: Sequence[LogRecord] | None, added: Sequence[str]) -> str:
    """Return the digest of the store at the destination once parts are added. records: of its log."""
    last = records[-1].digest.removeprefix("sha256:") if records else sha256_hex(root.folder.read(log_key(0)))
    for name in added:
        last = sha256_hex(part_record(name, last, root.digest_of(name).removeprefix("sha256:")))
    return f"sha256:{last}"


class _Tally:
    """Bytes that are there, reported as they come."""

    def __init__(self, progress: Progress, plans: Sequence[PartPlan]) -> None:
        self._progress = progress
        self._total = sum(plan.bytes for plan in plans)
        self._there = self._total - sum(plan.missing for plan in plans)
        self.sent = 0
        """Bytes that were put."""
        self._report(self._there)

    def _report(self, done: int) -> None:
        if self._total:
            self._progress("copy", min(done, self._total), self._total, "bytes")

    def add(self, count: int) -> None:
        """Note that bytes were put."""
        self.sent += count
        self._report(self._there + self.sent)

    def end(self) -> None:
        """Note that all is there: another copy may have put the rest."""
        if self._there + self.sent < self._total:
            self._report(self._total)
