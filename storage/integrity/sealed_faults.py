"""Faults of a sealed part: every file is compared with what its seal lists.

1. Files that the seal lists by sha256: metadata, spec, chunks of small arrays.
2. `seal.bin`, which follows from the commit records, or from the shards of a lost record.
3. Each block: its shards, and its commit record, which follows from `seal.bin`.

Lost metadata and small arrays are put back by the next run of the part's writer: they follow from its arguments.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from ..errors import LogitStoreError, ManifestInvalid, StoreCorrupt
from ..format.constants import ROOT_METADATA, SEAL, SEAL_TABLE, SPEC
from ..format.documents import sha256_hex
from ..format.layouts import check_layout, form_of
from ..format.metadata import ArrayLayout
from ..format.shard import UNSEALABLE, check_shard_bytes
from ..parts.journal import (
    Commit,
    LogRecord,
    Seal,
    SealTable,
    StoredShard,
    commit_key,
    committed_blocks,
    read_checked,
    read_table,
)
from ..parts.reader import check_values
from ..parts.recovery import stored_shard
from ..parts.root import KINDS, Root, part_metadatas
from . import checks
from .faults import Fault, Rebuild, Remake, Tally
from .shard_names import ShardNames


class SealedDiagnosis:
    """A search for the faults of one sealed part."""

    def __init__(
        self,
        root: Root,
        record: LogRecord,
        tally: Tally,
        *,
        deep: bool,
        rebuild: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        """deep: read the shards. rebuild: look for the bytes of a lost `seal.bin`."""
        self._root, self._record, self._tally = root, record, tally
        self._deep, self._rebuild, self._progress = deep, rebuild, progress
        self._name = record.part
        self._folder = root.folder.sub(record.part)
        self._layouts: Mapping[str, ArrayLayout] = {}
        self.seal: Seal | None = None
        """The seal, once it has been read and is intact."""

    def _where(self, key: str) -> str:
        return str(self._folder.path / key)

    def faults(self) -> Iterator[Fault]:
        """Find every fault of the part; of one whose seal is lost, that alone."""
        try:
            data = read_checked(self._folder, SEAL, self._record.seal)
            self.seal = seal = Seal.from_bytes(data, self._where(SEAL))
        except StoreCorrupt as error:
            yield Fault(self._name, SEAL, _from_a_copy(error))
            return
        self._tally.objects += 1 + len(seal.files)
        intact = True
        for key, digest in seal.files.items():
            error = checks.error_of(self._where(key), checks.check_file, self._folder, key, digest)
            if error is not None:
                intact = False
                yield Fault(self._name, key, error, self._cure_of_file(key, digest), digest)
        if intact:
            # Opening the part compares its metadata with the format, beyond their digests.
            part = self._root.part(self._name)
            self._layouts = part.layouts
            for error in self._wrong_values():
                yield Fault(self._name, "", error)
        else:
            self._layouts = self._intact_layouts(seal)
        if seal.arrays and seal.blocks == self._root.grid.num_blocks:
            yield from self._block_faults(seal)

    def _cure_of_file(self, key: str, digest: str) -> Rebuild | Remake | None:
        if key == SPEC:
            return None
        if key == ROOT_METADATA:
            for data in part_metadatas(self._name):
                if sha256_hex(data) == digest:
                    return Rebuild(data)
        return Remake((key,))

    def _wrong_values(self) -> Iterator[LogitStoreError]:
        """Find values of an intact part that no reader can use."""
        where = str(self._folder.path)
        error = checks.error_of(where, check_values, self._root, self._name)
        if error is not None:
            yield error
        part = self._root.part(self._name)
        for name, layout in part.layouts.items():
            if not layout.is_block_array:
                error = checks.error_of(self._where(layout.key(0)), part.small, name)
                if error is not None:
                    yield error

    def _intact_layouts(self, seal: Seal) -> dict[str, ArrayLayout]:
        """Return the arrays whose metadata are intact, by name."""
        kind = KINDS[self._name.partition("/")[0]]
        form = form_of(kind, [key.partition("/")[0] for key in seal.files])
        layouts = {}
        for key, digest in seal.files.items():
            array, _, name = key.rpartition("/")
            if array and name == ROOT_METADATA:
                with contextlib.suppress(LogitStoreError):
                    data = read_checked(self._folder, key, digest)
                    layout = ArrayLayout.from_bytes(array, data, self._where(key))
                    check_layout(layout, form, self._root.grid, seal.views, self._where(key))
                    layouts[array] = layout
        return layouts

    def _block_faults(self, seal: Seal) -> Iterator[Fault]:
        """Compare `seal.bin`, and every shard and record with it."""
        self._tally.objects += 1
        try:
            table = read_table(self._folder, seal)
        except LogitStoreError as error:
            again = self._table_again(seal) if self._rebuild and isinstance(error, StoreCorrupt) else None
            if again is None:
                yield Fault(self._name, SEAL_TABLE, error)
                return
            table = again
            cure = Rebuild(again.to_bytes())
            yield Fault(self._name, SEAL_TABLE, error, cure, seal.table_sha256 or "")
        recorded = committed_blocks(self._folder)
        names = ShardNames(self._folder, self._name)
        total = seal.views * seal.blocks
        for number in range(total):
            view, block = divmod(number, seal.blocks)
            objects = {array: table.shard(array, view, block) for array, _ in seal.arrays}
            for array, stored in objects.items():
                layout = self._layouts.get(array)
                key = names.key(array, view, block) if layout is None else layout.shard_key(view, block)
                yield from self._shard_faults(key, stored, layout, (view, block))
            commit = Commit(view, block, self._root.grid.rows(block), seal.files.get(SPEC, ""), objects)
            yield from self._record_faults(commit, (view, block) in recorded)
            self._progress(number + 1, total)

    def _shard_faults(
        self, key: str, stored: StoredShard, layout: ArrayLayout | None, place: tuple[int, int]
    ) -> Iterator[Fault]:
        self._tally.objects += 1
        self._tally.bytes += stored.size
        where = self._where(key)
        if layout is not None:
            # Before as many bytes are read as the seal states.
            rows = len(self._root.grid.rows(place[1]))
            error = checks.error_of(where, check_shard_bytes, layout, rows, stored.size, where, UNSEALABLE)
            if error is not None:
                yield Fault(self._name, key, error)
                return
        error = checks.error_of(where, checks.check_shard, self._folder, key, stored, self._deep)
        if error is not None:
            yield Fault(self._name, key, error, Remake((key,)), stored.sha256, place)

    def _record_faults(self, commit: Commit, is_there: bool) -> Iterator[Fault]:
        self._tally.objects += 1
        error = checks.error_of(
            self._where(commit.key), checks.check_sealed_record, self._folder, commit, is_there, self._deep
        )
        if error is not None:
            data = commit.to_bytes()
            yield Fault(self._name, commit.key, error, Rebuild(data), sha256_hex(data))

    def _table_again(self, seal: Seal) -> SealTable | None:
        """Return the table of the commit records, and of the shards of a lost record; None if it is not the sealed one."""
        table = SealTable(seal.arrays, seal.views, seal.blocks)
        names = {name for name, _ in seal.arrays}
        for view in range(seal.views):
            for block in range(seal.blocks):
                commit = self._intact_record(seal, view, block) or self._record_of_shards(seal, view, block)
                if commit is None or set(commit.objects) != names:
                    return None
                try:
                    table.record(commit)
                except (ValueError, OverflowError):  # checksums of another number of chunks
                    return None
        return table if sha256_hex(table.to_bytes()) == seal.table_sha256 else None

    def _intact_record(self, seal: Seal, view: int, block: int) -> Commit | None:
        key = commit_key(view, block)
        with contextlib.suppress(FileNotFoundError, LogitStoreError):
            commit = Commit.from_bytes(self._folder.read(key), self._where(key))
            if (commit.view, commit.block, commit.spec) == (view, block, seal.files.get(SPEC)):
                return commit
        return None

    def _record_of_shards(self, seal: Seal, view: int, block: int) -> Commit | None:
        rows = self._root.grid.rows(block)
        with contextlib.suppress(KeyError, FileNotFoundError, LogitStoreError):
            objects = {
                name: stored_shard(self._folder, self._layouts[name], view, block, len(rows))
                for name, _ in seal.arrays
            }
            return Commit(view, block, rows, seal.files[SPEC], objects)
        return None


def _from_a_copy(error: LogitStoreError) -> ManifestInvalid:
    return ManifestInvalid(error.where, expected=error.expected, found=error.found, remedy=checks.COPY)
