"""Repair of sealed parts."""

import contextlib
from dataclasses import dataclass

from ..errors import LogitStoreError, ShardCorrupt, ShardMissing, StoreCorrupt
from ..format.constants import MAX_SEAL_TABLE_BYTES, MAX_SHARD_BYTES, ROOT_METADATA, SEAL, SEAL_TABLE, SPEC
from ..format.documents import sha256_hex
from ..format.layouts import DIMENSIONS, check_layout
from ..format.metadata import ArrayLayout
from ..parts.journal import Commit, LogRecord, Seal, SealTable, commit_key, read_checked
from ..parts.recovery import stored_shard
from ..parts.root import Root
from ..parts.sealed_part import KINDS
from ..progress import Progress
from .objects import check_shard, file_digest, sealed_commit
from .rebuild import array_of_part, form_of_seal, group_of_part
from .site import _lost, _Site

# Sealed parts


@dataclass(frozen=True)
class _Fault:
    """A file of a sealed part that is not what was sealed."""

    key: str
    """Of the file, in the part."""
    digest: str
    """What its sha256 was."""
    found: StoreCorrupt
    """What is wrong with it."""
    data: bytes | None = None
    """The bytes that it had, where other files tell."""


class _SealedRepair:
    """Mends one sealed part: looks at all of it first, and holds it alone only where there is something to do."""

    def __init__(self, root: Root, record: LogRecord, site: _Site, progress: Progress) -> None:
        self._root = root
        self._record = record
        self._site = site
        self._folder = site.folder
        self._name = record.part
        self._kind = KINDS[record.part.partition("/")[0]]
        self._progress = progress
        self._faults: list[_Fault] = []
        self._layouts: dict[str, ArrayLayout] = {}
        self._form = self._kind

    def run(self) -> Seal | None:
        """Mend the part; its seal, None where that is lost and nothing can be said of the rest."""
        site = self._site
        where = site.path(SEAL)
        try:
            seal = Seal.from_bytes(read_checked(self._folder, SEAL, self._record.seal), where)
        except LogitStoreError as error:
            site.give_up(_lost(where) if isinstance(error, StoreCorrupt) else error)
            return None
        # The arrays that are intact help to find the others: shards say how large rows are.
        wrong = {key: e for key, digest in seal.files.items() if (e := site.damage(key, digest))}
        self._read_layouts(seal, wrong)
        table = self._table(seal) if seal.arrays else None
        for key, damage in wrong.items():
            self._look_at_file(seal, table, key, damage)
        lacking: set[tuple[int, int]] = set()
        if table is not None:
            lacking = self._look_at_blocks(seal, table)
        if lacking:
            site.done.blocks[self._name] = len(lacking)
        if self._faults or site.has_litter:
            with site.alone():
                for fault in self._faults:
                    self._mend(fault)
        return seal

    def _read_layouts(self, seal: Seal, wrong: dict[str, StoreCorrupt]) -> None:
        self._form = form = form_of_seal(self._name, seal)
        for key in seal.files:
            array, _, name = key.rpartition("/")
            if array and name == ROOT_METADATA and key not in wrong:
                with contextlib.suppress(FileNotFoundError, LogitStoreError):
                    layout = ArrayLayout.from_bytes(array, self._folder.read(key), self._site.path(key))
                    check_layout(layout, form, self._root.grid, seal.views, self._site.path(key))
                    self._layouts[array] = layout

    def _look_at_file(self, seal: Seal, table: SealTable | None, key: str, error: StoreCorrupt) -> None:
        array, _, name = key.rpartition("/")
        digest = seal.files[key]
        data = None
        if key == SPEC:
            self._site.give_up(_lost(self._site.path(key)))
            return
        if key == ROOT_METADATA:
            data = group_of_part(self._name, digest)
        elif name == ROOT_METADATA:
            data = array_of_part(self._folder, self._name, array, seal, table, self._root.grid)
            if data is not None:
                self._layouts[array] = ArrayLayout.from_bytes(array, data, self._site.path(key))
        if data is None:
            self._site.done.missing.append(self._site.key(key))
        self._faults.append(_Fault(key, digest, error, data))

    def _table(self, seal: Seal) -> SealTable | None:
        """`seal.bin`, made again where it is wrong."""
        digest = seal.table_sha256 or ""
        record_bytes = SealTable(seal.arrays, 0, 0).record_bytes
        size = seal.views * seal.blocks * record_bytes
        where = self._site.path(SEAL_TABLE)
        if size > MAX_SEAL_TABLE_BYTES or seal.blocks != self._root.grid.num_blocks:
            self._site.give_up(_lost(where))
            return None
        try:
            data = read_checked(self._folder, SEAL_TABLE, digest, MAX_SEAL_TABLE_BYTES)
            return SealTable(seal.arrays, seal.views, seal.blocks, data)
        except StoreCorrupt as error:
            table = self._table_again(seal)
            if table is None or sha256_hex(table.to_bytes()) != digest:
                self._site.give_up(_lost(where))
                return None
            self._faults.append(_Fault(SEAL_TABLE, digest, error, table.to_bytes()))
            return table
        except LogitStoreError as error:
            self._site.give_up(error)
            return None

    def _table_again(self, seal: Seal) -> SealTable | None:
        """The table that the commit records give, and the shards where a record is lost."""
        table = SealTable(seal.arrays, seal.views, seal.blocks)
        names = {name for name, _ in seal.arrays}
        for view in range(seal.views):
            for block in range(seal.blocks):
                commit = self._intact_record(seal, view, block) or self._record_of_shards(seal, view, block)
                if commit is None or set(commit.objects) != names:
                    return None
                try:
                    table.record(commit)
                except (ValueError, OverflowError):  # a record with checksums of another number of chunks
                    return None
        return table

    def _intact_record(self, seal: Seal, view: int, block: int) -> Commit | None:
        key = commit_key(view, block)
        try:
            commit = Commit.from_bytes(self._folder.read(key), self._site.path(key))
        except (FileNotFoundError, LogitStoreError):
            return None
        about = (commit.view, commit.block, commit.spec)
        return commit if about == (view, block, seal.files.get(SPEC)) else None

    def _record_of_shards(self, seal: Seal, view: int, block: int) -> Commit | None:
        rows = self._root.grid.rows(block)
        try:
            objects = {
                name: stored_shard(self._folder, self._layouts[name], view, block, len(rows))
                for name, _ in seal.arrays
            }
        except (KeyError, FileNotFoundError, LogitStoreError):
            return None
        return Commit(view, block, rows, seal.files.get(SPEC, ""), objects)

    def _look_at_blocks(self, seal: Seal, table: SealTable) -> set[tuple[int, int]]:
        """Compare every shard and record; the blocks that are to be made again."""
        lacking = set()
        total = seal.views * seal.blocks
        for number in range(total):
            view, block = divmod(number, seal.blocks)
            for array, _ in seal.arrays:
                key = self._shard_key(array, view, block)
                if key is None:
                    continue
                stored = table.shard(array, view, block)
                try:
                    check_shard(self._folder, key, stored, deep=True)
                except ShardMissing:
                    lacking.add((view, block))
                except ShardCorrupt as error:
                    lacking.add((view, block))
                    self._faults.append(_Fault(key, stored.sha256, error))
                except LogitStoreError as error:
                    self._site.give_up(error)
            if SPEC in seal.files:
                self._look_at_record(sealed_commit(self._root, seal, table, view, block))
            self._progress(f"repairing {self._name}", number + 1, total, "blocks")
        return lacking

    def _shard_key(self, array: str, view: int, block: int) -> str | None:
        """Key of a shard; None where nothing tells how many dimensions the array has."""
        if array in self._layouts:
            return self._layouts[array].shard_key(view, block)
        dimensions = DIMENSIONS[self._form].get(array)
        if dimensions is None:
            return None
        index = [block] if self._kind == "samples" else [view, block]
        index += [0] * (len(dimensions) - len(index))
        return f"{array}/c.{'.'.join(map(str, index))}"

    def _look_at_record(self, sealed: Commit) -> None:
        data = sealed.to_bytes()
        digest = sha256_hex(data)
        error = self._site.damage(sealed.key, digest)
        if error is not None:
            self._faults.append(_Fault(sealed.key, digest, error, data))

    def _mend(self, fault: _Fault) -> None:
        """Do what is to be done, where it is still to be done: others may have mended the part meanwhile."""
        there = self._folder.exists(fault.key)
        if there and self._is_intact(fault):
            return
        if fault.data is not None:
            self._site.rebuild(fault.key, fault.data)
        elif there:
            self._site.remove(fault.key)

    def _is_intact(self, fault: _Fault) -> bool:
        try:
            return file_digest(self._folder, fault.key, 2 * MAX_SHARD_BYTES)[1] == fault.digest
        except FileNotFoundError:
            return False
