"""Cures, applied to a store that is held alone, and the record of each change."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..backends.lease import Lease
from ..backends.local import Folder
from ..errors import LogitStoreError, StorageError
from ..format.constants import MAX_SHARD_BYTES
from ..parts.journal import commit_key
from ..parts.recovery import Plan, recover
from .checks import file_digest
from .faults import Fault, Rebuild, Remake

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

    @property
    def exit_code(self) -> int:
        """0 if every fault was cured, or is by the next run of a writer; 1 otherwise."""
        return BEYOND if self.beyond else DONE


class Mending:
    """Applies cures, and records each change."""

    def __init__(self, top: Folder, done: Repairs) -> None:
        self._top = top
        self._held: str | None = None
        self._lacking: dict[str, set[tuple[int, int]]] = {}
        self.done = done

    def _folder(self, part: str) -> Folder:
        return self._top.sub(part) if part else self._top

    @contextlib.contextmanager
    def alone(self, part: str) -> Iterator[None]:
        """Hold a part alone; in a dry run, or if it is held already, do nothing. Raises WriterBusy."""
        if self.done.dry_run or self._held == part:
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

    def cure(self, fault: Fault) -> None:
        """Apply the cure of a fault, or note that it has none."""
        if not fault.is_curable:
            self.done.beyond.append(fault.error)
            return
        with self.alone(fault.part):
            if not self._is_mended(fault):
                self._apply(fault)

    def _is_mended(self, fault: Fault) -> bool:
        """Whether another repair or writer was faster."""
        if not fault.digest:
            return False  # of an unsealed part, which was held when the fault was found
        with contextlib.suppress(FileNotFoundError):
            return file_digest(self._folder(fault.part), fault.key, 2 * MAX_SHARD_BYTES)[1] == fault.digest
        return False

    def _apply(self, fault: Fault) -> None:
        folder, cure, done = self._folder(fault.part), fault.cure, self.done
        prefix = f"{fault.part}/" if fault.part else ""
        if isinstance(cure, Rebuild):
            done.rebuilt.append(prefix + fault.key)
            if not done.dry_run:
                if folder.exists(fault.key):
                    folder.remove(fault.key)
                folder.put_new(fault.key, cure.data)
        elif isinstance(cure, Remake):
            for key in cure.remove:
                if folder.exists(key) and prefix + key not in done.removed:
                    done.removed.append(prefix + key)
                    if not done.dry_run:
                        folder.remove(key)

    def note_unmade(self, fault: Fault) -> None:
        """Note a file of a sealed part that its writer is to make again."""
        if not fault.is_curable or not isinstance(fault.cure, Remake):
            return
        if fault.block is None:
            self.done.missing.append(f"{fault.part}/{fault.key}")
            return
        lacking = self._lacking.setdefault(fault.part, set())
        lacking.add(fault.block)
        self.done.blocks[fault.part] = len(lacking)

    def recover(self, part: str, plan: Plan) -> None:
        """Adopt whole blocks without a record, and remove torn shards without one."""
        if self.done.dry_run:
            return
        try:
            recovery = recover(self._folder(part), plan)
        except StorageError:
            raise
        except LogitStoreError as error:
            self.done.beyond.append(error)
            return
        self.done.removed += [f"{part}/{key}" for key in recovery.dropped]
        self.done.adopted += [f"{part}/{commit_key(*place)}" for place in recovery.adopted]
