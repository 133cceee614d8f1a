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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..backends.local import Folder
from ..backends.place import Place
from ..errors import (
    LimitExceeded,
    LogitStoreError,
    ManifestInvalid,
    NotAStoreError,
    StorageError,
    UntrustedStoreError,
)
from ..format.constants import COMMITS, GROUPS, PRIVATE, ROOT_METADATA, SAMPLES, SEAL, SPEC
from ..format.documents import canonical_json, parse_json, sha256_hex
from ..format.layouts import REQUIRED, check_layout
from ..format.metadata import ArrayLayout
from ..format.shard import UNSEALABLE, check_shard_bytes
from ..parts.journal import Commit, Seal, committed_blocks, log_key, read_checked
from ..parts.reader import check_values
from ..parts.root import Root, open_root, unsealed_parts
from ..parts.sealed_part import SealedPart, begun_form, small_keys
from ..progress import Progress, silent
from .objects import (
    _COPY,
    _REPAIR,
    check_begun_group,
    check_begun_record,
    check_begun_seal,
    check_file,
    check_shard,
    check_small,
    sealed_commit,
)
from .strays import find_strays

CLEAN, CORRUPT, UNTRUSTED, IO_ERROR, INCOMPLETE = 0, 1, 3, 4, 5
"""What `logitstore verify` leaves with."""


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
    place: Path | Place, *, deep: bool = False, expect: str | None = None, progress: Progress = silent
) -> Report:
    """Check a store. Problems are gathered, not raised, so that one report names all of them.

    Raises NotAStoreError only where the place holds no store at all, ConfigError where files cannot be listed.
    """
    top = place if isinstance(place, Place) else Folder(place)
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


def _verify_record(folder: Place, sealed: Commit, recorded: set[tuple[int, int]], deep: bool) -> None:
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
