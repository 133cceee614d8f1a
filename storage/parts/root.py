"""Which parts does a store have, and is each of them what its seal says?

`Root` is an opened store: its attributes, its log, its parts. `SealedPart` is one part whose seal, metadata
and small arrays were checked against the log. Nothing here reads or writes blocks: that is the work of
`reader` and `writer`, which both rest on this module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray

from ..backends.lease import lease, tidy_up
from ..backends.local import Folder
from ..errors import (
    LogitStoreError,
    ManifestInvalid,
    NameTaken,
    NotAStoreError,
    PartNotFound,
    StoreIncomplete,
    UnsupportedFeature,
    WrongStore,
)
from ..format.constants import (
    CAPTURE,
    ERROR_BUDGET,
    FEATURES,
    FORMAT_VERSION,
    GROUPS,
    MAX_JSON_BYTES,
    PRIVATE,
    ROOT_METADATA,
    SAMPLES,
    SEAL,
    SPEC,
    TOP_K,
)
from ..format.documents import invalid, parse_spec, texts
from ..format.grid import Grid
from ..format.layouts import check_part, features_of, form_of
from ..format.metadata import ArrayLayout, RootAttributes, group_attributes, group_metadata
from ..format.shard import CRC_BYTES, decode_small
from .journal import (
    LogRecord,
    Seal,
    SealTable,
    check_root,
    committed_blocks,
    log_key,
    put_same,
    read_checked,
    read_log,
    read_table,
    root_record,
)

KINDS = {"samples": "samples", "teachers": "capture", "clusters": "clustering"}
"""First component of a part's name -> its kind."""


@dataclass(frozen=True)
class Spec:
    """What a part is made from."""

    identity: Mapping[str, Any]
    """What must be the same for a part to be resumed: teacher, augmentation, encoding, data …"""
    notes: Mapping[str, Any]
    """What is good to know and not compared: versions, device."""


@dataclass(frozen=True)
class BegunPart:
    """A part that was begun and is not sealed."""

    name: str
    """Its name in the store, as "teachers/wide"."""
    identity: Mapping[str, Any]
    """What it is made from."""
    notes: Mapping[str, Any]
    """What is good to know and not compared."""
    blocks_done: int
    """Blocks that are committed, of all views."""
    blocks: int
    """Blocks that it will have, of all views."""


def part_metadata(kind: str, features: Sequence[str] = ()) -> bytes:
    """`zarr.json` of a part."""
    return group_metadata(
        {"format_version": FORMAT_VERSION, "kind": kind, "required_features": list(features)}
    )


def part_metadatas(name: str) -> list[bytes]:
    """Every `zarr.json` that a part of this name may have: one for each form of its kind."""
    kind = KINDS[name.partition("/")[0]]
    forms = (CAPTURE, ERROR_BUDGET, TOP_K) if kind == CAPTURE else (kind,)
    return [part_metadata(kind, features_of(form)) for form in forms]


def begun_form(folder: Folder, name: str) -> str:
    """The form of a part that is being written, as its group says, or, where that is lost, the arrays it has so far."""
    kind = KINDS[name.partition("/")[0]]
    try:
        features = group_attributes(folder.read(ROOT_METADATA), name).get("required_features")
    except (FileNotFoundError, LogitStoreError):
        features = None
    if kind == CAPTURE and isinstance(features, list) and len(features) == 1 and features[0] in FEATURES:
        return str(features[0])
    return kind if features == [] else form_of(kind, folder.names())


class SealedPart:
    """A part that the log names, its metadata checked. Reads small arrays; blocks are the reader's."""

    def __init__(self, folder: Folder, record: LogRecord, grid: Grid) -> None:
        """Open and check a part. Raises ManifestInvalid, UntrustedStoreError or UnsupportedFeature."""
        self.folder = folder
        self.name = record.part
        """Its name in the store, as "teachers/wide"."""
        self.kind = KINDS[record.part.partition("/")[0]]
        self.digest = f"sha256:{record.seal}"
        """The part's identity: the sha256 of its seal."""
        where = str(folder.path / SEAL)
        self.seal = Seal.from_bytes(read_checked(folder, SEAL, record.seal), where)
        features = self._check_attributes()
        self.layouts = {
            key.removesuffix("/zarr.json"): self._layout(key.removesuffix("/zarr.json"))
            for key in sorted(self.seal.files)
            if key.endswith("/zarr.json")
        }
        """Every array of the part, by name."""
        self.form = form_of(self.kind, self.layouts)
        """Which arrays it has: its kind, or what it is encoded by."""
        if features != list(features_of(self.form)):
            raise invalid(
                str(folder.path / ROOT_METADATA), f"the features of its arrays, {self.form}", features
            )
        check_part(
            self.form,
            self.layouts,
            grid,
            str(folder.path),
            arrays=self.seal.arrays,
            shape=(self.seal.views, self.seal.blocks),
            table_bytes=self.seal.table_size,
            files=self.seal.files,
        )

    def _check_attributes(self) -> list[str]:
        """What a reader needs for the part. Raises UnsupportedFeature where that is not here."""
        where = str(self.folder.path / ROOT_METADATA)
        attributes = group_attributes(self._file(ROOT_METADATA), where)
        if attributes.get("kind") != self.kind:
            raise ManifestInvalid(
                where,
                expected=f"a part of kind {self.kind!r}",
                found=repr(attributes.get("kind"))[:40],
                remedy="run `logitstore verify`",
            )
        features = texts(attributes.get("required_features"), where, "required_features")
        lacking = sorted(set(features) - FEATURES)
        if lacking:
            raise UnsupportedFeature(
                where,
                expected=f"features that logitstore's format {FORMAT_VERSION} has here",
                found=", ".join(lacking),
                remedy="open this part with a newer logitstore; the other parts can be read",
            )
        return features

    def _file(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        """A file that the seal lists, of at most `most` bytes, checked."""
        if key not in self.seal.files:
            raise ManifestInvalid(
                str(self.folder.path / SEAL),
                expected=f"a digest of {key}",
                found="none",
                remedy="run `logitstore verify`",
            )
        return read_checked(self.folder, key, self.seal.files[key], most)

    def _layout(self, name: str) -> ArrayLayout:
        key = f"{name}/zarr.json"
        return ArrayLayout.from_bytes(name, self._file(key), str(self.folder.path / key))

    @cached_property
    def spec(self) -> Spec:
        """What the part was made from."""
        return Spec(*parse_spec(self._file(SPEC), str(self.folder.path / SPEC)))

    @cached_property
    def table(self) -> SealTable:
        """Sizes and checksums of the shards, read when first asked for."""
        return read_table(self.folder, self.seal)

    def absent_blocks(self) -> set[tuple[int, int]]:
        """(view, block) of every block of which a shard is not there, by name alone.

        There are none in a whole store; `repair` takes away shards that are torn.
        """
        return absent_blocks(self.folder, self.seal, [self.layouts[name] for name, _ in self.seal.arrays])

    def small(self, name: str) -> NDArray[Any]:
        """A small array (no rows) as a whole. Raises PartNotFound where the part has none of that name."""
        layout = self.layouts.get(name)
        if layout is None or layout.is_block_array:
            raise PartNotFound(
                self.name,
                expected="one of its small arrays",
                found=repr(name),
                remedy="look at what there is with `logitstore inspect`",
            )
        chunk_bytes = layout.shard_rows * layout.row_bytes + CRC_BYTES
        return decode_small(
            layout, [self._file(key, chunk_bytes) for key in small_keys(layout)], str(self.folder.path / name)
        )


def absent_blocks(folder: Folder, seal: Seal, layouts: Sequence[ArrayLayout]) -> set[tuple[int, int]]:
    """(view, block) of every block of a sealed part of which a shard is not there, by name alone."""
    absent = set()
    for layout in layouts:
        there = set(folder.names(layout.name))
        for view in range(seal.views):
            for block in range(seal.blocks):
                if layout.shard_key(view, block).rpartition("/")[2] not in there:
                    absent.add((view, block))
    return absent


def small_keys(layout: ArrayLayout) -> list[str]:
    """Keys, relative to the part, of the chunks of a small array."""
    return [layout.key(chunk) for chunk in range(-(-layout.shape[0] // layout.shard_rows))]


class Root:
    """An opened store."""

    def __init__(self, folder: Folder, attributes: RootAttributes, expect: str | None = None) -> None:
        self.folder = folder
        self.attributes = attributes
        self.grid = Grid(attributes.num_rows, attributes.block_rows)
        """How it is cut."""
        self.expect = expect
        self.later: Sequence[str] = ()
        """Parts that were sealed after the digest that was expected: they are not shown."""
        self._parts: dict[str, SealedPart] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the log anew. Parts that were there stay; others may have come."""
        empty, records = read_log(self.folder)
        digests = [empty, *(record.digest for record in records)]
        if self.expect is not None:
            if self.expect not in digests:
                raise WrongStore(
                    str(self.folder.path),
                    expected=f"the store {self.expect}",
                    found=f"{digests[-1]}, which never was that one",
                    remedy="ask where the store came from, or open it without expecting a digest",
                )
            kept = digests.index(self.expect)
            records, self.later = records[:kept], [record.part for record in records[kept:]]
        self.records: Sequence[LogRecord] = records
        self.digest: str = records[-1].digest if records else empty
        """Digest of the store as it was opened."""

    @property
    def path(self) -> PurePath:
        """Where it is; of what is on no local disk, what messages call it."""
        return self.folder.path

    def names(self, group: str) -> list[str]:
        """Names of the sealed parts under `group` ("teachers", "clusters"), in the order of their seals."""
        heads = (record.part.partition("/") for record in self.records)
        return [name for head, _, name in heads if head == group]

    def has(self, part: str) -> bool:
        """Whether a part is sealed."""
        return any(record.part == part for record in self.records)

    def part(self, name: str) -> SealedPart:
        """A sealed part. Raises StoreIncomplete where it was begun and not finished, PartNotFound where it was not."""
        if name not in self._parts:
            self._parts[name] = SealedPart(self.folder.sub(name), self._sealed(name), self.grid)
        return self._parts[name]

    def is_whole(self, name: str) -> bool:
        """Return whether a part is sealed and every file of it is there, by name alone.

        The writer of a part that is sealed and not whole makes the missing files again.
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
        """Return the spec of a sealed part, also of one that has lost metadata or blocks. Raises ManifestInvalid."""
        folder = self.folder.sub(name)
        digest = self.seal(name).files.get(SPEC, "")
        return Spec(*parse_spec(read_checked(folder, SPEC, digest), str(folder.path / SPEC)))

    def tidy_up(self) -> None:
        """Take away the locks and the staging that killed writers left in the root and in sealed parts."""
        for folder in (self.folder, *(self.folder.sub(record.part) for record in self.records)):
            tidy_up(folder)

    def begun(self, name: str) -> "BegunPart | None":
        """What there is of a part that was begun and is not sealed; None where it was not begun."""
        folder = self.folder.sub(name)
        if self.has(name) or not folder.exists(SPEC):
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
                found=f"one that was interrupted ({begun.blocks_done} of {begun.blocks} blocks are there)",
                remedy="run what was writing it (`logitstore cache`, `run` or `compress`) again: it goes on where it stopped",
            )
        group = name.partition("/")[0]
        there = ", ".join(self.names(group)) or "none"
        return PartNotFound(
            where,
            expected=f"one of the sealed parts of this store under {group} ({there})",
            found="no such part",
            remedy="choose one of these, or make it first",
        )


def _root_files(attributes: RootAttributes) -> dict[str, bytes]:
    return {ROOT_METADATA: attributes.to_bytes(), **{f"{g}/zarr.json": group_metadata() for g in GROUPS}}


def create_root(path: Path, attributes: RootAttributes) -> Root:
    """Make an empty store. An interrupted creation of the same store is finished.

    Raises NameTaken where the path holds a store already, or something else.
    """
    folder = Folder(path)
    files = _root_files(attributes)

    def taken(found: str) -> NameTaken:
        return NameTaken(
            str(path),
            expected="a path that is free",
            found=found,
            remedy="choose another path, or move it away",
        )

    if (kind := folder.kind()) not in ("nothing", "a folder"):
        raise taken(kind)
    if folder.exists(log_key(0)):
        raise taken("a store")
    if folder.exists(ROOT_METADATA) and folder.read(ROOT_METADATA) != files[ROOT_METADATA]:
        raise taken("another Zarr group")
    strangers = set(folder.names()) - {ROOT_METADATA, *GROUPS, PRIVATE}
    if strangers:
        raise taken(f"a folder with other things in it ({min(strangers)!r})")
    with lease(folder):
        folder.prove_exclusive()
        for key, data in files.items():
            put_same(folder, key, data)
        put_same(folder, log_key(0), root_record(files))
    return Root(folder, attributes)


def open_root(place: Path | Folder, expect: str | None = None) -> Root:
    """Open a store. Raises NotAStoreError where the place holds none, ManifestInvalid where it is damaged."""
    folder = place if isinstance(place, Folder) else Folder(place)
    try:
        data = folder.read(ROOT_METADATA)
    except (FileNotFoundError, NotADirectoryError):
        what = {"nothing": "nothing", "a folder": "a folder without zarr.json"}.get(folder.kind(), "a file")
        raise NotAStoreError(
            str(folder.path),
            expected="a store",
            found=what,
            remedy="name the folder of a store, or make one with `logitstore cache`",
        ) from None
    check_root(folder)  # before the metadata: what a damaged file says of itself is worth nothing
    return Root(folder, RootAttributes.from_bytes(data, str(folder.path / ROOT_METADATA)), expect)


def unsealed_parts(root: Root) -> list[str]:
    """Parts that were begun and that the log does not name; as far as they can be known, where files are not listed."""
    groups = GROUPS if root.folder.can_list else ()
    begun = [SAMPLES, *(f"{g}/{name}" for g in groups for name in root.folder.names(g))]
    sealed = {record.part for record in root.records} | set(root.later)
    # A part whose spec was lost is one that was begun all the same.
    traces = (SPEC, ROOT_METADATA)
    return [name for name in begun if name not in sealed and any(map(root.folder.sub(name).exists, traces))]
