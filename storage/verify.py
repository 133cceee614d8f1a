"""Is every file of a store what was sealed?

1. The root and the log: the chain of digests, the one that was expected.
2. Each sealed part: seal, spec, metadata, small arrays by sha256; shards by presence and size.
3. With `deep`, every shard by sha256, and every commit record by its own digest and against the seal.
4. Parts that were begun and not sealed are counted.

Nothing is changed, no teacher is run, nothing that the store names is imported.
"""

from dataclasses import dataclass, field
from pathlib import Path

from .errors import (
    LogitStoreError,
    ManifestInvalid,
    NotAStoreError,
    ShardCorrupt,
    ShardMissing,
    StorageError,
    UntrustedStoreError,
)
from .files import Folder
from .format import COMMITS, SAMPLES, SPEC, sha256_hex
from .journal import Commit, StoredShard, committed_blocks, log_key
from .progress import Progress, silent
from .store import Root, SealedPart, open_root, small_keys

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


def verify(
    path: Path, *, deep: bool = False, expect: str | None = None, progress: Progress = silent
) -> Report:
    """Check a store. Problems are gathered, not raised, so that one report names all of them.

    Raises NotAStoreError only where the path holds no store at all.
    """
    report = Report()
    try:
        root = open_root(path, expect)
    except (ManifestInvalid, NotAStoreError, UntrustedStoreError, StorageError) as error:
        if isinstance(error, NotAStoreError) and not Folder(path).exists(log_key(0)):
            raise
        report.problems.append(error)
        return report
    report.digest, report.later = root.digest, list(root.later)
    for record in root.records:
        try:
            part = root.part(record.part)
            _verify_files(part, report)
            if part.seal.arrays:
                _verify_blocks(root, part, deep, report, progress)
        except LogitStoreError as error:
            report.problems.append(error)
    report.unsealed = unsealed_parts(root)
    if not root.has(SAMPLES) and SAMPLES not in report.unsealed:
        report.unsealed.insert(0, SAMPLES)
    return report


def unsealed_parts(root: Root) -> list[str]:
    """Parts that were begun and that the log does not name."""
    begun = [SAMPLES, *(f"{g}/{name}" for g in ("teachers", "clusters") for name in root.folder.names(g))]
    sealed = {record.part for record in root.records} | set(root.later)
    return [name for name in begun if name not in sealed and root.folder.sub(name).exists(SPEC)]


def _verify_files(part: SealedPart, report: Report) -> None:
    """Everything that the seal lists by key. Opening the part has compared the metadata already."""
    _ = part.spec
    for layout in part.layouts.values():
        if not layout.is_block_array:
            part.small(layout.name)
            report.objects += len(small_keys(layout))
    report.objects += len(part.seal.files)


def _verify_blocks(root: Root, part: SealedPart, deep: bool, report: Report, progress: Progress) -> None:
    total = part.seal.views * part.seal.blocks
    names = [name for name, _ in part.seal.arrays]
    recorded = committed_blocks(part.folder)
    for number in range(total):
        view, block = divmod(number, part.seal.blocks)
        for name in names:
            expected = part.table.shard(name, view, block)
            key = part.layouts[name].shard_key(view, block)
            try:
                _verify_shard(part.folder, key, expected, deep)
            except LogitStoreError as error:
                report.problems.append(error)
            report.objects += 1
            report.bytes += expected.size
        if deep and (view, block) in recorded:
            try:
                _verify_commit(root, part, view, block)
            except LogitStoreError as error:
                report.problems.append(error)
            report.objects += 1
        progress(f"verifying {part.name}", number + 1, total, "blocks")


def _verify_shard(folder: Folder, key: str, expected: StoredShard, deep: bool) -> None:
    where = str(folder.path / key)
    remedy = "restore the file from a copy, or capture this part again under another name"
    try:
        if deep:
            data = folder.read(key)
            size, found = len(data), sha256_hex(data)
        else:
            size, found = folder.read_range(key, 0, 0)[1], expected.sha256
    except FileNotFoundError:
        raise ShardMissing(
            where, expected=f"a shard of {expected.size} bytes", found="no file", remedy=remedy
        ) from None
    if size != expected.size or found != expected.sha256:
        raise ShardCorrupt(
            where,
            expected=f"{expected.size} bytes of sha256 {expected.sha256[:12]}…",
            found=f"{size} bytes" + (f" of sha256 {found[:12]}…" if deep else ""),
            remedy=remedy,
        )


def _verify_commit(root: Root, part: SealedPart, view: int, block: int) -> None:
    key = f"{COMMITS}/{view}-{block}.json"
    where = str(part.folder.path / key)
    commit = Commit.from_bytes(part.folder.read(key), where)
    sealed = {name: part.table.shard(name, view, block) for name, _ in part.seal.arrays}
    same = (commit.view, commit.block, commit.rows, commit.spec, dict(commit.objects)) == (
        view,
        block,
        root.grid.rows(block),
        part.seal.files[SPEC],
        sealed,
    )
    if not same:
        raise ManifestInvalid(
            where,
            expected="the record of this block, as the seal has it",
            found="another record",
            remedy="restore the file from a copy; the data are intact, reads do not use this record",
        )
