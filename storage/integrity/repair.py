"""Repair of a store: the cure of every fault of `diagnosis` that has one.

1. A file that follows from others is rebuilt, and only to the sha256 that it had: records of the log, the root's and
   the parts' group metadata, commit records, `seal.bin`.
2. A damaged file that its writer makes again is removed: shards, chunks of small arrays, metadata of arrays. So is a
   file in the place of a folder.
3. An unsealed part is mended as its next writer would mend it (`recovery`), but by the sha256 of its records.
4. The rest of a part that the log says is gone is removed.
5. `spec.json`, `seal.json` and the last record of the log come back from a copy only.

An intact file of a sealed part is never removed, nor is one that cannot be read. Of a part that is not sealed, a block that
lacks a shard goes whole: its next writer's shards may differ in the last bit. A part is changed only while it is held alone,
so that no writer is at work on it (`lease`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..backends.lease import Lease
from ..backends.local import Folder
from ..backends.obstacles import file_on_the_way
from ..errors import LogitStoreError, StorageError
from ..format.constants import MAX_SHARD_BYTES, ROOT_METADATA, SAMPLES
from ..format.shard import REMAKE
from ..parts.journal import commit_key
from ..parts.log import is_gone, log_key
from ..parts.recovery import Plan, recover
from ..parts.removal import alone_with, free
from ..parts.root import open_root
from ..progress import Progress, silent
from .checks import file_digest, from_a_copy
from .diagnosis import Diagnosis, Mending, guarded
from .faults import Fault, Rebuild, Remake
from .root_faults import root_faults

DONE, BEYOND = 0, 1
"""Exit codes of `logitstore repair`."""


@dataclass
class Repairs:
    """The changes that a repair made, or with `dry_run` would make. Keys are relative to the store."""

    dry_run: bool = False
    """Whether no file was changed."""
    rebuilt: list[str] = field(default_factory=list)
    """Files that were rebuilt from others, with the bytes that they had."""
    removed: list[str] = field(default_factory=list)
    """Damaged files that were removed and can be made again."""
    adopted: list[str] = field(default_factory=list)
    """Commit records that were lost, of blocks whose shards are whole."""
    missing: list[str] = field(default_factory=list)
    """Metadata and small arrays of sealed parts that the next run of their writer puts back."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Blocks of sealed parts that the next run of their writer makes again, by part."""
    unsealed: list[str] = field(default_factory=list)
    """Parts that are not sealed; their writer resumes them."""
    beyond: list[LogitStoreError] = field(default_factory=list)
    """Faults without a cure: a copy brings these files back; strays that plain readers take for data."""
    strays: list[str] = field(default_factory=list)
    """Keys of files that no seal lists; they are left alone."""
    freed: list[str] = field(default_factory=list)
    """Parts that were removed, of which files were left; these files are removed."""

    @property
    def exit_code(self) -> int:
        """0 if every fault was cured, or is by the next run of a writer; 1 otherwise."""
        return BEYOND if self.beyond else DONE


@contextlib.contextmanager
def _staying(path: Path) -> Iterator[None]:
    """Wrap the error of a store that vanishes under a repair. Raises StorageError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(
            str(path),
            expected="a store that stays in its place",
            found=f"a store of which {str(error.filename)[:200]} was removed meanwhile",
            remedy="run the same command again, while nobody moves the store",
        ) from error


def repair(path: Path, *, dry_run: bool = False, progress: Progress = silent) -> Repairs:
    """Rebuild the files of a store that follow from others, and remove damaged files that can be made again.

    Raises NotAStoreError if the path holds no store, WriterBusy if a writer is at work on a part that is to be changed,
    StorageError if it cannot be written. Run again after that, it resumes.
    """
    with _staying(path):
        return _repaired(path, dry_run, progress)


def _repaired(path: Path, dry_run: bool, progress: Progress) -> Repairs:
    top = Folder(path)
    if not top.exists(log_key(0)) and not top.exists(ROOT_METADATA):
        open_root(path)  # raises the error that fits
    done = Repairs(dry_run)
    cures = _Cures(top, done)
    for fault in guarded("", str(path), root_faults(top, rebuild=True)):
        cures.apply(fault)
    try:
        root = open_root(path)
    except LogitStoreError as error:
        if not done.beyond and not (dry_run and done.rebuilt):
            done.beyond.append(error)
        return done
    diagnosis = Diagnosis(root, deep=True, progress=progress, mending=Mending(cures.alone, cures.recover))
    sealed = {record.part for record in root.records}
    with contextlib.closing(diagnosis.faults()) as faults:
        for fault in faults:
            cures.apply(fault)
            if fault.part in sealed:
                cures.note_unmade(fault)
    done.unsealed, done.strays, done.freed = diagnosis.unsealed, diagnosis.strays, diagnosis.leftovers
    if not dry_run:
        for part in done.freed:
            with alone_with(top, part):
                free(top, part)
        root.tidy_up()
    return done


class _Cures:
    """Cures, applied to parts that are held alone, and the record of each change."""

    def __init__(self, top: Folder, done: Repairs) -> None:
        self._top, self._done = top, done
        self._held: str | None = None
        self._lacking: dict[str, set[tuple[int, int]]] = {}

    def _folder(self, part: str) -> Folder:
        return self._top.sub(part) if part else self._top

    @contextlib.contextmanager
    def alone(self, part: str) -> Iterator[None]:
        """Hold a part alone; in a dry run, or if it is held already, do nothing. Raises WriterBusy."""
        if self._done.dry_run or self._held == part:
            yield
            return
        lease = Lease(self._folder(part))
        lease.take_alone()
        self._held = part
        try:
            yield
        finally:
            self._held = None
            lease.release()

    def apply(self, fault: Fault) -> None:
        """Apply the cure of a fault, or note that it has none."""
        if fault.cure is None:
            error = fault.error
            self._done.beyond.append(from_a_copy(error) if error.remedy == REMAKE else error)
            return
        with self.alone(fault.part):
            if not is_gone(self._top, fault.part) and not self._is_mended(fault):
                self._change(fault)

    def _is_mended(self, fault: Fault) -> bool:
        """Return whether another repair or writer was faster."""
        if not fault.digest:
            return False  # of an unsealed part, which was held when the fault was found
        with contextlib.suppress(FileNotFoundError):
            return file_digest(self._folder(fault.part), fault.key, 2 * MAX_SHARD_BYTES)[1] == fault.digest
        return False

    def _change(self, fault: Fault) -> None:
        folder, cure, done = self._folder(fault.part), fault.cure, self._done
        prefix = f"{fault.part}/" if fault.part else ""
        if (in_the_way := file_on_the_way(folder, fault.key)) is not None:
            self._remove(folder, prefix, in_the_way)
        if isinstance(cure, Rebuild):
            done.rebuilt.append(prefix + fault.key)
            if not done.dry_run:
                if folder.exists(fault.key):
                    folder.remove(fault.key)
                folder.put_new(fault.key, cure.data)
        elif isinstance(cure, Remake):
            for key in cure.remove:
                if folder.exists(key):
                    self._remove(folder, prefix, key)

    def _remove(self, folder: Folder, prefix: str, key: str) -> None:
        if prefix + key not in self._done.removed:
            self._done.removed.append(prefix + key)
            if not self._done.dry_run:
                folder.remove(key)

    def note_unmade(self, fault: Fault) -> None:
        """Note a file of a sealed part that its writer is to make again."""
        if not isinstance(fault.cure, Remake):
            return
        if fault.block is None:
            self._done.missing.append(f"{fault.part}/{fault.key}")
            return
        lacking = self._lacking.setdefault(fault.part, set())
        lacking.add(fault.block)
        self._done.blocks[fault.part] = len(lacking)

    def recover(self, part: str, plan: Plan) -> None:
        """Write the lost records of whole blocks, and remove torn shards without a record."""
        if self._done.dry_run:
            return
        try:
            recovery = recover(self._folder(part), plan, is_exact=part == SAMPLES)
        except StorageError:
            raise
        except LogitStoreError as error:
            self._done.beyond.append(error)
            return
        self._done.removed += [f"{part}/{key}" for key in recovery.dropped]
        self._done.adopted += [f"{part}/{commit_key(*place)}" for place in recovery.adopted]
