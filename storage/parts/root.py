"""An opened store: attributes, log and parts, sealed or unfinished."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from ..backends.lease import lease, tidy_up
from ..backends.local import writable
from ..backends.paths import local_folder
from ..backends.place import Place
from ..backends.writable import Writable
from ..errors import (
    LogitStoreError,
    ManifestInvalid,
    NameTaken,
    NotAStoreError,
    PartNotFound,
    StoreCorrupt,
    StoreIncomplete,
    WrongStore,
    some_of,
)
from ..format.constants import GROUPS, LOG_AHEAD, PRIVATE, ROOT_METADATA, SAMPLES, SEAL, SPEC
from ..format.documents import parse_spec, sha256_hex
from ..format.grid import Grid
from ..format.metadata import RootAttributes, group_metadata
from .journal import Seal, committed_blocks, put_same, read_checked
from .log import (
    ROOT_FILES,
    LogRecord,
    check_root,
    gone_from,
    log_key,
    name_gone,
    parts_of,
    read_log,
    root_record,
)
from .sealed_part import SealedPart, Spec

_NAME_ANOTHER: Final = "name the folder of a store, or make one with `logitstore cache`"
_NAME_ON_HUB: Final = "check owner, name, @revision and path; a private data set needs a token: run `hf auth login`, or set HF_TOKEN"
"""The hub answers for a private data set as for a missing one."""
_OPENED_BY: Final = (*ROOT_FILES, *(log_key(number) for number in range(LOG_AHEAD)))
"""Keys of what is read of every store to open it."""


@dataclass(frozen=True)
class BegunPart:
    """A part that is not sealed yet."""

    name: str
    """Its name in the store: "teachers/wide"."""
    identity: Mapping[str, Any]
    """Teacher, augmentation, encoding, data …"""
    notes: Mapping[str, Any]
    """Versions, device …; not compared."""
    blocks_done: int
    """Committed blocks of all views."""
    blocks: int
    """Blocks of all views once it is complete."""


class Root:
    """The root group of an opened store."""

    def __init__(self, folder: Place, attributes: RootAttributes, expect: str | None = None) -> None:
        self.folder = folder
        self.attributes = attributes
        self.grid = Grid(attributes.num_rows, attributes.block_rows)
        """Its division into blocks and chunks."""
        self.expect = expect
        self.later: Sequence[str] = ()
        """Parts that were sealed after the expected digest; they are hidden."""
        self.gone: Mapping[str, LogRecord] = {}
        """The removals of the log, by the name of the part."""
        self.digest = ""
        """Digest of the store as it was opened."""
        self._parts: dict[str, SealedPart] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the log again. Parts that other processes have sealed appear, those that were removed vanish.

        Raises WrongStore if the log does not go on from the one that was read before, or if a part of the expected
        digest was removed.
        """
        with self.folder.read_ahead(_OPENED_BY):
            empty, records = read_log(self.folder)
        digests = [empty, *(record.digest for record in records)]
        known = self.expect or self.digest
        if known and known not in digests:
            remedy = "ask where the store came from, or open it without expecting a digest"
            if self.digest:
                remedy = "open the store again: another one is at this path by now"
            raise WrongStore(
                str(self.folder.path),
                expected=f"the store {known}",
                found=f"{digests[-1]}, which never was that one",
                remedy=remedy,
            )
        self.gone = gone_from(records)
        if self.expect is not None:
            kept = digests.index(self.expect)
            before, after = records[:kept], records[kept:]
            self._check_there(before, after)
            records, self.later = before, [record.part for record in after if not record.removes]
        self.log: Sequence[LogRecord] = records
        """All records but the first, those of removals too."""
        self.records: Sequence[LogRecord] = parts_of(records)
        """Those of the parts that are there."""
        self.digest = records[-1].digest if records else empty
        for name in self.gone:
            self._parts.pop(name, None)

    def check_name(self, name: str) -> None:
        """Refuse the name of a part that was removed. Raises NameTaken."""
        if name in self.gone:
            raise name_gone(f"{self.path}: {name}")

    def _check_there(self, before: Sequence[LogRecord], after: Sequence[LogRecord]) -> None:
        """Refuse an expected digest whose parts are not all there any more. Raises WrongStore."""
        lost = sorted({record.part for record in parts_of(before)} & set(gone_from(after)))
        if lost:
            now = after[-1].digest
            raise WrongStore(
                str(self.folder.path),
                expected=f"the store {self.expect}",
                found=f"that store without {some_of(lost, 3)}, which `logitstore rm` has removed since; its digest is {now}",
                remedy="expect this digest to read what remains, or open a copy that was made before",
            )

    def check_log(self, folder: Place) -> None:
        """Refuse a folder of a store whose log does not go on from the one that was read. Raises WrongStore.

        The record that was the last one holds, by its sha256, all records before it.
        """
        key, found = log_key(len(self.log)), "a log without it"
        with contextlib.suppress(FileNotFoundError):
            digest = f"sha256:{sha256_hex(folder.read(key))}"
            if digest == self.digest:
                return
            found = digest
        raise WrongStore(
            str(folder.path / key),
            expected=f"the record {self.digest} of the store that was opened",
            found=found,
            remedy="open the store again: another one is at this path by now; if it is the same, run `logitstore verify`",
        )

    @property
    def path(self) -> PurePath:
        """Its path; for a remote store, its name in messages."""
        return self.folder.path

    def names(self, group: str) -> list[str]:
        """Return the sealed parts of a group ("teachers", "clusters"), in the order of their seals."""
        heads = (record.part.partition("/") for record in self.records)
        return [name for head, _, name in heads if head == group]

    def has(self, part: str) -> bool:
        """Return whether a part is sealed."""
        return any(record.part == part for record in self.records)

    def part(self, name: str) -> SealedPart:
        """Return a sealed part. Raises StoreIncomplete if it is unfinished, PartNotFound if it is absent."""
        if name not in self._parts:
            part = SealedPart(self.folder.sub(name), self._sealed(name), self.grid, self.folder)
            self._check_samples(part)
            self._parts[name] = part
        return self._parts[name]

    def _check_samples(self, part: SealedPart) -> None:
        """Refuse a part that was sealed for the rows of another store. Raises ManifestInvalid."""
        samples = next((record.seal for record in self.records if record.part == SAMPLES), None)
        expected = None if part.name == SAMPLES else samples
        if part.seal.samples != expected:
            raise ManifestInvalid(
                str(part.folder.path / SEAL),
                expected=f"a part of the samples {_short(expected)}",
                found=f"a part of the samples {_short(part.seal.samples)}",
                remedy="do not read this part: its rows are those of another store; restore it from a copy",
            )

    def is_whole(self, name: str) -> bool:
        """Return whether a part is sealed and none of its files is missing, by name alone.

        A sealed part that lacks files has been repaired. The command that made it writes only the rest again.
        """
        if not self.has(name):
            return False
        folder = self.folder.sub(name)
        if not all(folder.exists(key) for key in self.seal(name).files):
            return False  # without its metadata the part cannot be opened
        return not self.part(name).absent_blocks()

    def _sealed(self, name: str) -> LogRecord:
        """Return the log's record of a part. Raises StoreIncomplete, PartNotFound."""
        for record in self.records:
            if record.part == name:
                return record
        raise self._absent(name)

    def digest_of(self, name: str) -> str:
        """Return the identity of a sealed part, "sha256:…" of its seal, without opening the part."""
        return f"sha256:{self._sealed(name).seal}"

    def seal(self, name: str) -> Seal:
        """Return the seal of a sealed part, without opening the part. Raises ManifestInvalid."""
        folder, digest = self.folder.sub(name), self._sealed(name).seal
        return Seal.from_bytes(read_checked(folder, SEAL, digest), str(folder.path / SEAL))

    def spec(self, name: str) -> Spec:
        """Return the spec of a sealed part, even if it lost metadata or blocks. Raises ManifestInvalid."""
        folder = self.folder.sub(name)
        digest = self.seal(name).files.get(SPEC, "")
        return Spec(*parse_spec(read_checked(folder, SPEC, digest), str(folder.path / SPEC)))

    def tidy_up(self) -> None:
        """Delete locks and staged files of killed writers in the root and in sealed parts."""
        folder = writable(self.folder)
        for each in (folder, *(folder.sub(record.part) for record in self.records)):
            tidy_up(each)

    def begun(self, name: str) -> "BegunPart | None":
        """Return the progress of an unfinished part; None if it is sealed, removed or absent."""
        folder = self.folder.sub(name)
        if self.has(name) or name in self.gone or not folder.exists(SPEC):
            return None
        identity, notes = parse_spec(folder.read(SPEC), str(folder.path / SPEC))
        views = identity.get("views", 1)
        total = self.grid.num_blocks * (views if isinstance(views, int) else 1)
        return BegunPart(name, identity, notes, len(committed_blocks(folder)), total)

    def _absent(self, name: str) -> StoreIncomplete | PartNotFound:
        where = f"{self.path}: {name}"
        begun = self.begun(name)
        if begun is not None:
            return StoreIncomplete(
                where,
                expected="a sealed part",
                found=f"an unfinished part ({begun.blocks_done} of {begun.blocks} blocks)",
                remedy="run the command that writes it (`logitstore cache`, `run` or `compress`) again to resume it",
            )
        group, _, short = name.partition("/")
        there = ", ".join(self.names(group)) or "none"
        if name in self.gone:
            return PartNotFound(
                where,
                expected=f"one of the sealed parts of this store under {group} ({there})",
                found=f"{short!r}, which `logitstore rm` has removed",
                remedy="choose one of these; a copy of the store that was made before may have it still",
            )
        return PartNotFound(
            where,
            expected=f"one of the sealed parts of this store under {group} ({there})",
            found=repr(short or name),
            remedy="choose one of these, or make it first",
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}…"


def create_root(place: Path | Place, attributes: RootAttributes) -> Root:
    """Make an empty store, or finish an interrupted creation. Raises NameTaken if the path is not free.

    Processes that make one of the same sizes at the same moment make it together.
    """
    folder = _folder_to_write(place)
    groups = {f"{group}/zarr.json": group_metadata() for group in GROUPS}
    files = {ROOT_METADATA: attributes.to_bytes(), **groups}

    def taken(found: str, remedy: str = "choose another path") -> NameTaken:
        return NameTaken(str(folder.path), expected="a path that is free", found=found, remedy=remedy)

    # Never "move it away": another process may be at work on it.
    join = "pass exist_ok=True to resume a store of the same rows, or choose another path"
    if (kind := folder.kind()) not in ("nothing", "a folder"):
        raise taken(kind)
    if folder.exists(log_key(0)):
        raise taken("a store", join)
    if folder.exists(ROOT_METADATA) and folder.read(ROOT_METADATA) != files[ROOT_METADATA]:
        raise taken("another Zarr group, or a store of other sizes that is being made")
    strangers = set(folder.names()) - {ROOT_METADATA, *GROUPS, PRIVATE}
    if strangers:
        raise taken(f"a folder with other things in it ({min(strangers)!r})")
    with lease(folder):
        folder.prove_exclusive()
        try:
            for key, data in files.items():
                put_same(folder, key, data)
            put_same(folder, log_key(0), root_record(files))
        except StoreCorrupt:
            # Another process was faster. The root's own metadata, with the sizes, come first.
            raise taken("a store of other sizes, which another process has just made") from None
    return Root(folder, attributes)


def _folder_to_write(place: Path | Place) -> Writable:
    return writable(place if isinstance(place, Place) else local_folder(place))


def join_root(place: Path | Place, num_rows: int, num_classes: int, block_rows: int | None) -> Root | None:
    """Open the store at a path to resume it; None if there is none. Raises NameTaken if it has other sizes.

    block_rows: None for those that the store has.
    """
    folder = _folder_to_write(place)
    if not folder.exists(log_key(0)):
        return None
    root = open_root(folder)
    found = root.attributes
    there = (found.num_rows, found.num_classes, found.block_rows)
    wanted = (num_rows, num_classes, block_rows or found.block_rows)
    if wanted != there:
        sizes = "a store of {} rows and {} classes, in blocks of {} rows"
        raise NameTaken(
            str(folder.path),
            expected=f"{sizes.format(*wanted)}, or a free path",
            found=sizes.format(*there),
            remedy="choose another path",
        )
    return root


def open_root(place: Path | Place, expect: str | None = None) -> Root:
    """Open a store. Raises NotAStoreError if there is none, ManifestInvalid if it is damaged."""
    folder = place if isinstance(place, Place) else local_folder(place)
    with folder.read_ahead(_OPENED_BY):
        return _open_root(folder, expect)


def _open_root(folder: Place, expect: str | None) -> Root:
    try:
        data = folder.read(ROOT_METADATA)
    except (FileNotFoundError, NotADirectoryError):
        kinds = {"nothing": "nothing", "a folder": "a folder without zarr.json"}
        remedy = _NAME_ANOTHER if "hf:" not in str(folder.path)[:3] else _NAME_ON_HUB
        with contextlib.suppress(LogitStoreError, OSError):
            if folder.exists(log_key(0)):
                remedy = "run `logitstore repair`, which rebuilds it"
        raise NotAStoreError(
            str(folder.path),
            expected="a store",
            found=kinds.get(folder.kind(), "a file"),
            remedy=remedy,
        ) from None
    check_root(folder)  # before the metadata, which a damaged file may state wrongly
    return Root(folder, RootAttributes.from_bytes(data, str(folder.path / ROOT_METADATA)), expect)


def unsealed_parts(root: Root) -> list[str]:
    """Return the parts that are not sealed; only samples if the backend cannot list files."""
    groups = GROUPS if root.folder.can_list else ()
    begun = [SAMPLES, *(f"{g}/{name}" for g in groups for name in root.folder.names(g))]
    # Of the group's own metadata nothing is asked: two requests less, and there is one in each group.
    known = {
        *(record.part for record in root.records),
        *root.later,
        *root.gone,
        *(f"{g}/{ROOT_METADATA}" for g in GROUPS),
    }
    # A part that lost its spec counts as well.
    traces = (SPEC, ROOT_METADATA)
    return [name for name in begun if name not in known and any(map(root.folder.sub(name).exists, traces))]
