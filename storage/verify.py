"""Is every file of a store what was sealed, and is there no file that nobody sealed?

1. The root and the log: the chain of digests, the one that was expected.
2. Each sealed part: every file that its seal lists by sha256; `seal.bin`; shards and commit records by presence, shards
   by size, too.
3. With `deep`, every shard by sha256, and every commit record byte for byte against the seal.
4. Parts that were begun and not sealed: spec, metadata, and each commit record with the shards that it speaks of. Shards
   without a record are what a writer that was killed leaves behind; they are nothing to complain of.
5. Strays, files that no seal, record or log knows: listed, since nothing reads them. They are a problem where a
   plain reader of Zarr would take them for data: any metadata of Zarr, and a chunk in the folder of a sealed array.

Nothing is changed, no teacher is run, nothing that the store names is imported. A shard is read in pieces of
`PIECE` bytes.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from .errors import (
    LimitExceeded,
    LogitStoreError,
    ManifestInvalid,
    NotAStoreError,
    ShardCorrupt,
    ShardMissing,
    StorageError,
    UntrustedStoreError,
)
from .files import Folder
from .format import (
    COMMITS,
    GROUPS,
    LOCK,
    LOG,
    MAX_CHUNK_BYTES,
    MAX_JSON_BYTES,
    MAX_SEAL_TABLE_BYTES,
    PRIVATE,
    ROOT_METADATA,
    SAMPLES,
    SEAL,
    SEAL_TABLE,
    SPEC,
    STAGING,
    ArrayLayout,
    canonical_json,
    parse_json,
    sha256_hex,
)
from .journal import Commit, Seal, SealTable, StoredShard, committed_blocks, is_part, log_key, read_checked
from .layouts import REQUIRED, check_layout
from .progress import Progress, silent
from .reader import check_values
from .shard import CRC_BYTES, UNSEALABLE, check_shard_bytes, crc32c, is_shard_size
from .store import Root, SealedPart, begun_form, open_root, part_metadatas, small_keys

CLEAN, CORRUPT, UNTRUSTED, IO_ERROR, INCOMPLETE = 0, 1, 3, 4, 5
"""What `logitstore verify` leaves with."""

PIECE: Final = 8 << 20
"""Most bytes of a shard that are in memory at a time."""
MAX_STRAYS: Final = 1000
"""Strays that are listed; the search ends with the last of them."""

_COPY = "restore the file from a copy"
_REPAIR = "run `logitstore repair`, and then again what wrote it; or restore the file from a copy"
_ZARR_METADATA = frozenset({ROOT_METADATA, ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
"""Names that make a folder an array or a group for a plain reader, of any version of Zarr."""
_COMMIT_KEY = re.compile(rf"{COMMITS}/(0|[1-9]\d*)-(0|[1-9]\d*)\.json")
_LOG_KEY = re.compile(rf"{LOG}/(0|[1-9]\d*)\.json")


@dataclass
class Report:
    """What verification found."""

    digest: str | None = None
    """Digest of the store; None where it could not be opened."""
    objects: int = 0
    """Files that were compared."""
    bytes: int = 0
    """Bytes of the shards that were compared or, without `deep`, counted."""
    problems: list[LogitStoreError] = field(default_factory=list)
    """What is wrong, in the order in which it was found."""
    unsealed: list[str] = field(default_factory=list)
    """Parts that were begun and are not sealed."""
    later: list[str] = field(default_factory=list)
    """Parts that were sealed after the digest that was expected; they were not checked."""
    strays: list[str] = field(default_factory=list)
    """Files that nothing knows and no reader takes for data, by key; the first `MAX_STRAYS`."""
    _told: set[str] = field(default_factory=set, repr=False)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 corrupt, 3 untrusted, 4 I/O, 5 incomplete: the worst that was found."""
        if any(isinstance(p, UntrustedStoreError) for p in self.problems):
            return UNTRUSTED
        if any(not isinstance(p, StorageError) for p in self.problems):
            return CORRUPT
        if self.problems:
            return IO_ERROR
        return INCOMPLETE if self.unsealed else CLEAN

    @contextlib.contextmanager
    def gathering(self, where: str) -> Iterator[None]:
        """Keep what goes wrong, instead of raising it. A problem of the same file is told once."""
        try:
            yield
        except LogitStoreError as error:
            if error.where not in self._told:
                self._told.add(error.where)
                self.problems.append(error)
        except (FileNotFoundError, NotADirectoryError):
            self.problems.append(ManifestInvalid(where, expected="a file", found="none", remedy=_REPAIR))
        except (MemoryError, RecursionError, OverflowError) as error:
            self.problems.append(
                LimitExceeded(
                    where,
                    expected="sizes that a reader can handle",
                    found=type(error).__name__,
                    remedy="do not use this store: logitstore writes no such file",
                )
            )


def verify(
    place: Path | Folder, *, deep: bool = False, expect: str | None = None, progress: Progress = silent
) -> Report:
    """Check a store. Problems are gathered, not raised, so that one report names all of them.

    Raises NotAStoreError only where the place holds no store at all, ConfigError where files cannot be listed.
    """
    top = place if isinstance(place, Folder) else Folder(place)
    if not top.can_list:
        top.files()  # raises
    report, path = Report(), top.path
    root = None
    with report.gathering(str(path)):
        root = open_root(top, expect)
    if root is None:
        (error,) = report.problems
        if isinstance(error, NotAStoreError) and not top.exists(log_key(0)):
            raise error
        return report
    report.digest, report.later = root.digest, list(root.later)
    report.objects += len(root.records) + 2 + len(GROUPS)
    seals: dict[str, Seal] = {}
    for record in root.records:
        folder = root.folder.sub(record.part)
        with report.gathering(str(folder.path)):
            seal = Seal.from_bytes(read_checked(folder, SEAL, record.seal), str(folder.path / SEAL))
            seals[record.part] = seal
            _verify_sealed(root, record.part, seal, deep, report, progress)
    with report.gathering(str(path)):
        # The files before the parts: a part that is begun meanwhile is then known by its spec.
        files = top.files()
        report.unsealed = unsealed_parts(root)
        for name in report.unsealed:
            with report.gathering(str(path / name)):
                _verify_unsealed(root, name, deep, report, progress)
        report.strays, shown = find_strays(root, seals, files)
        report.problems += shown
    if not root.has(SAMPLES) and SAMPLES not in report.unsealed:
        report.unsealed.insert(0, SAMPLES)
    return report


def unsealed_parts(root: Root) -> list[str]:
    """Parts that were begun and that the log does not name; as far as they can be known, where files are not listed."""
    groups = GROUPS if root.folder.can_list else ()
    begun = [SAMPLES, *(f"{g}/{name}" for g in groups for name in root.folder.names(g))]
    sealed = {record.part for record in root.records} | set(root.later)
    # A part whose spec was lost is one that was begun all the same.
    traces = (SPEC, ROOT_METADATA)
    return [name for name in begun if name not in sealed and any(map(root.folder.sub(name).exists, traces))]


# Files and their digests


def file_digest(folder: Folder, key: str, most: int) -> tuple[int, str]:
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


def check_shard(folder: Folder, key: str, expected: StoredShard, deep: bool) -> None:
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


def check_file(folder: Folder, key: str, digest: str) -> None:
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


# Sealed parts


def _verify_sealed(root: Root, name: str, seal: Seal, deep: bool, report: Report, progress: Progress) -> None:
    """Everything that a seal lists, each file on its own, so that all that is wrong is told."""
    folder = root.folder.sub(name)
    report.objects += 1 + len(seal.files)
    for key, digest in seal.files.items():
        with report.gathering(str(folder.path / key)):
            check_file(folder, key, digest)
    # Opening the part compares its metadata with the format, beyond their digests.
    part = root.part(name)
    with report.gathering(str(folder.path)):
        check_values(root, name)
    for layout in part.layouts.values():
        if not layout.is_block_array:
            with report.gathering(str(folder.path / layout.key(0))):
                part.small(layout.name)
    if seal.arrays:
        report.objects += 1
        _verify_blocks(root, part, deep, report, progress)


def _verify_blocks(root: Root, part: SealedPart, deep: bool, report: Report, progress: Progress) -> None:
    table = part.table
    total = part.seal.views * part.seal.blocks
    recorded = committed_blocks(part.folder)
    for number in range(total):
        view, block = divmod(number, part.seal.blocks)
        for name, _ in part.seal.arrays:
            expected = table.shard(name, view, block)
            key = part.layouts[name].shard_key(view, block)
            with report.gathering(str(part.folder.path / key)):
                rows, where = len(root.grid.rows(block)), str(part.folder.path / key)
                # Before as much is read as the seal states.
                check_shard_bytes(part.layouts[name], rows, expected.size, where, UNSEALABLE)
                check_shard(part.folder, key, expected, deep)
            report.objects += 1
            report.bytes += expected.size
        key = f"{COMMITS}/{view}-{block}.json"
        with report.gathering(str(part.folder.path / key)):
            _verify_record(part.folder, sealed_commit(root, part.seal, table, view, block), recorded, deep)
        report.objects += 1
        progress(f"verifying {part.name}", number + 1, total, "blocks")


def sealed_commit(root: Root, seal: Seal, table: SealTable, view: int, block: int) -> Commit:
    """The commit record of a block of a sealed part: it follows from the seal."""
    objects = {name: table.shard(name, view, block) for name, _ in seal.arrays}
    return Commit(view, block, root.grid.rows(block), seal.files[SPEC], objects)


def _verify_record(folder: Folder, sealed: Commit, recorded: set[tuple[int, int]], deep: bool) -> None:
    """Compare the record of a sealed block with the seal. Raises ManifestInvalid."""
    where = str(folder.path / sealed.key)
    remedy = (
        "run `logitstore repair`: it follows from the seal; the data are intact, reads do not use this record"
    )
    if (sealed.view, sealed.block) not in recorded:
        raise ManifestInvalid(where, expected="the record of this block", found="no file", remedy=remedy)
    if deep and not _same_record(folder.read(sealed.key), sealed, where):
        raise ManifestInvalid(
            where,
            expected="the record of this block, as the seal has it",
            found="another record",
            remedy=remedy,
        )


def _same_record(data: bytes, sealed: Commit, where: str) -> bool:
    """Whether a record says what the seal says. A later minor version may say more in it."""
    if data == sealed.to_bytes():
        return True
    if data != canonical_json(parse_json(data, where)):
        return False
    found = Commit.from_bytes(data, where)
    return (found.view, found.block, found.rows, found.spec, dict(found.objects)) == (
        sealed.view,
        sealed.block,
        sealed.rows,
        sealed.spec,
        dict(sealed.objects),
    )


# Parts that were begun


def _verify_unsealed(root: Root, name: str, deep: bool, report: Report, progress: Progress) -> None:
    """What there is of a part that is not sealed: all that its commit records speak of must be there."""
    folder = root.folder.sub(name)
    try:
        spec = folder.read(SPEC)
    except FileNotFoundError:
        raise ManifestInvalid(
            str(folder.path / SPEC), expected="what the part is made from", found="no file", remedy=_COPY
        ) from None
    identity = parse_json(spec, str(folder.path / SPEC)).get("identity")
    views = identity.get("views") if isinstance(identity, dict) else None
    if not isinstance(views, int):
        raise ManifestInvalid(
            str(folder.path / SPEC), expected="an identity with views", found="none", remedy=_COPY
        )
    # The records before the arrays: a writer that goes on meanwhile has put its arrays before its first record.
    recorded = sorted(committed_blocks(folder))
    # Before the first record a writer may still be about to put what is not there.
    absent = contextlib.nullcontext() if recorded else contextlib.suppress(FileNotFoundError)
    with report.gathering(str(folder.path / ROOT_METADATA)), absent:
        check_begun_group(folder, name)
    layouts = _begun_layouts(root, name, views, bool(recorded), report)
    report.objects += 1 + len(layouts)
    if folder.exists(SEAL):
        with report.gathering(str(folder.path / SEAL)):
            check_begun_seal(folder)
    for number, (view, block) in enumerate(recorded):
        key = f"{COMMITS}/{view}-{block}.json"
        where = str(folder.path / key)
        with (
            report.gathering(where),
            contextlib.suppress(FileNotFoundError),
        ):  # a writer may have taken it away
            commit = Commit.from_bytes(folder.read(key), where)
            check_begun_record(root, commit, (view, block), views, sha256_hex(spec), layouts, where)
            for array, stored in commit.objects.items():
                shard = layouts[array].shard_key(view, block)
                with report.gathering(str(folder.path / shard)):
                    check_shard(folder, shard, stored, deep)
                report.objects += 1
                report.bytes += stored.size
            report.objects += 1
        progress(f"verifying {name}", number + 1, len(recorded), "blocks")


def _begun_layouts(
    root: Root, name: str, views: int, complete: bool, report: Report
) -> dict[str, ArrayLayout]:
    """The arrays that a part has so far, by name; what is wrong with their metadata goes into the report.

    complete: whether all arrays of its form, and all of the small ones, must be there.
    """
    folder = root.folder.sub(name)
    layouts = {}
    for array in sorted(REQUIRED[begun_form(folder, name)]) if complete else ():
        key = f"{array}/{ROOT_METADATA}"
        with report.gathering(str(folder.path / key)):
            if not folder.exists(key):
                raise FileNotFoundError
    for array in folder.names():
        key = f"{array}/{ROOT_METADATA}"
        if array == PRIVATE or not folder.exists(key):
            continue
        where = str(folder.path / key)
        with report.gathering(where):
            layout = ArrayLayout.from_bytes(array, folder.read(key), where)
            check_layout(layout, begun_form(folder, name), root.grid, views, where)
            layouts[array] = layout
            if not layout.is_block_array:
                for chunk in small_keys(layout):
                    absent = contextlib.nullcontext() if complete else contextlib.suppress(FileNotFoundError)
                    with report.gathering(str(folder.path / chunk)), absent:
                        check_small(folder, layout, chunk)
    return layouts


def check_begun_seal(folder: Folder) -> None:
    """Check a seal that no log names yet against what it seals. Raises StoreCorrupt."""
    seal = Seal.from_bytes(folder.read(SEAL), str(folder.path / SEAL))
    if seal.arrays:
        read_checked(folder, SEAL_TABLE, seal.table_sha256 or "", MAX_SEAL_TABLE_BYTES)
    for key, digest in seal.files.items():
        check_file(folder, key, digest)


def check_begun_group(folder: Folder, name: str) -> None:
    """Refuse a `zarr.json` of an unsealed part that is not the one of its kind. Raises ManifestInvalid, FileNotFoundError."""
    if folder.read(ROOT_METADATA) not in part_metadatas(name):
        raise ManifestInvalid(
            str(folder.path / ROOT_METADATA),
            expected="the metadata of a part of this kind",
            found="others",
            remedy=_REPAIR,
        )


def check_small(folder: Folder, layout: ArrayLayout, key: str) -> None:
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


# Strays


def find_strays(
    root: Root, seals: Mapping[str, Seal], files: list[str]
) -> tuple[list[str], list[LogitStoreError]]:
    """The files that nothing knows: those that no reader sees, and, as problems, those that plain readers take for data.

    seals: of the sealed parts whose seal is intact; nothing is said of the others. files: keys of all files.
    At most `MAX_STRAYS` of them.
    """
    known = {name: _known_keys(root, name, seal) for name, seal in seals.items()}
    ignored = {*root.later, *(record.part for record in root.records if record.part not in seals)}
    unsealed = set(unsealed_parts(root))
    strays: list[str] = []
    problems: list[LogitStoreError] = []
    for key in files:
        part = _part_of(key)
        inner = key if part is None else key[len(part) + 1 :]
        if part in ignored or _is_working_file(inner):
            continue
        keys = _ROOT_KEYS if part is None else known.get(part, frozenset())
        # None: of a part that was begun, or whose metadata cannot be read, one goes by the form of the names.
        if part in unsealed or keys is None:
            if _has_form_of_part(inner):
                continue
        elif inner in keys or (part is None and _LOG_KEY.fullmatch(inner)):
            continue
        if _is_seen_by_zarr(inner, seals.get(part) if part else None):
            problems.append(
                ManifestInvalid(
                    str(root.path / key),
                    expected="files that a seal lists",
                    found="one that none lists, and that plain readers of Zarr take for a part of the store",
                    remedy="move it away; logitstore itself does not read it",
                )
            )
        else:
            strays.append(key)
        if len(strays) + len(problems) >= MAX_STRAYS:
            break
    return strays, problems


_ROOT_KEYS = frozenset({ROOT_METADATA, *(f"{group}/{ROOT_METADATA}" for group in GROUPS)})


def _part_of(key: str) -> str | None:
    """The part that a file stands in, by its name; None for a file of the root.

    >>> _part_of("samples/label/c.0"), _part_of("teachers/wide/zarr.json"), _part_of("teachers/zarr.json")
    ('samples', 'teachers/wide', None)
    """
    pieces = key.split("/")
    depth = 1 if pieces[0] == SAMPLES else 2
    name = "/".join(pieces[:depth])
    return name if is_part(name) and len(pieces) > depth else None


def _known_keys(root: Root, name: str, seal: Seal) -> set[str] | None:
    """Keys of every file of a sealed part, relative to it; None where its metadata cannot be read."""
    known = {*seal.files, SEAL}
    if seal.arrays:
        known.add(SEAL_TABLE)
        try:
            part = root.part(name)
            _ = part.table  # as long as there are blocks: a seal cannot ask for more keys than it has bytes
        except LogitStoreError:
            return None
        for view in range(seal.views):
            for block in range(seal.blocks):
                known.add(f"{COMMITS}/{view}-{block}.json")
                known.update(part.layouts[array].shard_key(view, block) for array, _ in seal.arrays)
    return known


def _is_working_file(key: str) -> bool:
    """Whether a key, relative to a part or to the root, is one of those that writers work with."""
    return key.startswith((f"{STAGING}/", LOCK))


def _has_form_of_part(key: str) -> bool:
    """Whether a key, relative to a part, is one that a writer may have put.

    >>> [_has_form_of_part(key) for key in ("peak/c.0.1", "__logitstore__/commits/0-1.json", "peak/c.01", "x")]
    [True, True, False, False]
    """
    if key in {SPEC, SEAL, SEAL_TABLE, ROOT_METADATA} or _COMMIT_KEY.fullmatch(key):
        return True
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*/(zarr\.json|c(\.(0|[1-9]\d*))+)", key))


def _is_seen_by_zarr(key: str, seal: Seal | None) -> bool:
    """Whether a plain reader would take a file, by its key relative to a part or the root, for metadata or data."""
    folder, _, name = key.rpartition("/")
    if PRIVATE in folder.split("/"):
        return False
    of_array = seal is not None and f"{folder}/{ROOT_METADATA}" in seal.files
    return name in _ZARR_METADATA or (of_array and bool(re.match(r"c(\.|$)", name)))
