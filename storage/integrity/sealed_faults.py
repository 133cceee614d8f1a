"""Faults of a sealed part: every file is compared with its seal.

1. Files that the seal lists by sha256: metadata, spec, chunks of small arrays.
2. `seal.bin`, which follows from the commit records, or from the shards of a lost record.
3. Each block: its shards, and its commit record, which follows from `seal.bin`.

Lost metadata and small arrays are put back by the next run of the part's writer: they follow from its arguments.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ..errors import LogitStoreError, StoreCorrupt
from ..format.constants import ROOT_METADATA, SEAL, SEAL_TABLE, SPEC
from ..format.documents import invalid, sha256_hex
from ..format.layouts import check_layout, form_of
from ..format.metadata import ArrayLayout
from ..format.shard import UNSEALABLE, check_shard_bytes
from ..parts.journal import Commit, Seal, SealTable, commit_key, committed_blocks, read_checked, read_table
from ..parts.reader import check_values
from ..parts.recovery import stored_shard
from ..parts.same_rows import check_capture
from ..parts.sealed_part import part_metadatas
from . import checks
from .faults import Cure, Fault, Rebuild, Remake
from .part_diagnosis import PartDiagnosis

_AT_ONCE: Final = 16
"""Blocks of a remote store that are compared at once."""
_AHEAD: Final = 256
"""Blocks that are handed to the threads together."""


class SealedDiagnosis(PartDiagnosis):
    """A search for the faults of one sealed part."""

    seal: Seal | None = None
    """The seal, once it has been read and is intact."""
    _layouts: Mapping[str, ArrayLayout]

    def faults(self) -> Iterator[Fault]:
        """Find every fault of the part; of one whose seal is lost, that alone."""
        try:
            self.seal = seal = self.root.seal(self.name)
        except StoreCorrupt as error:
            yield Fault(self.name, SEAL, checks.from_a_copy(error))
            return
        if SPEC not in seal.files:
            yield Fault(
                self.name, SEAL, invalid(self.where(SEAL), f"a seal that lists {SPEC}", "a seal without it")
            )
            return
        self.search.objects += 1 + len(seal.files)
        intact = True
        for fault in self._file_faults(seal):
            intact = False
            yield fault
        if intact:
            # Opening the part compares its metadata with the format, beyond their sha256.
            part = self.root.part(self.name)
            self._layouts = part.layouts
            yield from self.compare("", check_values, self.root, self.name)
            for name in (name for name, layout in part.layouts.items() if not layout.is_block_array):
                yield from self.compare(f"{name}/{ROOT_METADATA}", part.small, name)
            if self.deep:
                yield from self.compare("seen", check_capture, self.root, self.name)
        else:
            self._layouts = dict(self._intact_layouts(seal))
        if seal.arrays and seal.blocks == self.root.grid.num_blocks:
            yield from self._block_faults(seal)

    def _file_faults(self, seal: Seal) -> Iterator[Fault]:
        for key, digest in seal.files.items():
            cure: Cure = None if key == SPEC else Remake((key,))
            if key == ROOT_METADATA:
                again = (data for data in part_metadatas(self.name) if sha256_hex(data) == digest)
                cure = next(map(Rebuild, again), cure)
            yield from self.compare(
                key, checks.check_file, self.folder, key, digest, cure=cure, digest=digest
            )

    def _intact_layouts(self, seal: Seal) -> Iterator[tuple[str, ArrayLayout]]:
        """Find the arrays whose metadata are intact."""
        form = form_of(self.kind, [key.partition("/")[0] for key in seal.files])
        for key, digest in seal.files.items():
            array, _, name = key.rpartition("/")
            if array and name == ROOT_METADATA:
                with contextlib.suppress(LogitStoreError):
                    data = read_checked(self.folder, key, digest)
                    layout = ArrayLayout.from_bytes(array, data, self.where(key))
                    check_layout(layout, form, self.root.grid, seal.views, self.where(key))
                    yield array, layout

    def _block_faults(self, seal: Seal) -> Iterator[Fault]:
        """Compare `seal.bin`, and every shard and record with it."""
        self.search.objects += 1
        try:
            table = read_table(self.folder, seal)
        except LogitStoreError as error:
            again = (
                self._table_again(seal) if self.search.repairs and isinstance(error, StoreCorrupt) else None
            )
            cure = None if again is None else Rebuild(again.to_bytes())
            yield Fault(self.name, SEAL_TABLE, error, cure, seal.table_sha256 or "")
            if again is None:
                return
            table = again
        recorded = committed_blocks(self.folder)
        total = seal.views * seal.blocks

        def faults_of(number: int) -> list[Fault]:
            return list(self._one_block(seal, table, recorded, number))

        for number, faults in enumerate(self._at_once(faults_of, total)):
            yield from faults
            place = divmod(number, seal.blocks)
            self.search.bytes += sum(table.size(array, *place) for array, _ in seal.arrays)
            self.search.objects += 1 + len(seal.arrays)
            self.progress(number + 1, total)

    def _at_once(self, faults_of: Callable[[int], list[Fault]], total: int) -> Iterator[list[Fault]]:
        """Yield the faults of each block, in order; of a remote store many blocks are compared at once."""
        if not self.folder.is_remote or self.search.repairs:
            yield from map(faults_of, range(total))
            return
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for start in range(0, total, _AHEAD):
                yield from threads.map(faults_of, range(start, min(start + _AHEAD, total)))

    def _one_block(
        self, seal: Seal, table: SealTable, recorded: AbstractSet[tuple[int, int]], number: int
    ) -> Iterator[Fault]:
        place = view, block = divmod(number, seal.blocks)
        rows, spec = self.root.grid.rows(block), seal.files[SPEC]
        objects = {array: table.shard(array, view, block) for array, _ in seal.arrays}
        commit = Commit(view, block, rows, spec, objects)
        yield from self._shard_faults(commit)
        data = commit.to_bytes()
        record = (self.folder, commit, place in recorded, self.deep)
        yield from self.compare(
            commit.key, checks.check_sealed_record, *record, cure=Rebuild(data), digest=sha256_hex(data)
        )

    def _shard_faults(self, commit: Commit) -> Iterator[Fault]:
        """Compare the shards of a block with what the seal has of them."""
        place = commit.view, commit.block
        for array, stored in commit.objects.items():
            layout = self._layouts.get(array)
            key = self.shard_key(array, *place) if layout is None else layout.shard_key(*place)
            if layout is not None:
                # Before as many bytes are read as the seal states.
                size = (layout, len(commit.rows), stored.size, self.where(key), UNSEALABLE)
                error = checks.error_of(self.where(key), check_shard_bytes, *size)
                if error is not None:
                    yield Fault(self.name, key, error)
                    continue
            shard = (self.folder, key, stored, self.deep)
            yield from self.compare(
                key, checks.check_shard, *shard, cure=Remake((key,)), digest=stored.sha256, block=place
            )

    def _table_again(self, seal: Seal) -> SealTable | None:
        """Return the table of the commit records, and of the shards of lost ones; None if it is not the sealed one."""
        table = SealTable(seal.arrays, seal.views, seal.blocks)
        try:
            for view in range(seal.views):
                for block in range(seal.blocks):
                    table.record(self._record(seal, view, block) or self._record_of_shards(seal, view, block))
        except (KeyError, ValueError, OverflowError, FileNotFoundError, LogitStoreError):
            return None  # a shard is lost, too, or a record is of other arrays or other chunks
        return table if sha256_hex(table.to_bytes()) == seal.table_sha256 else None

    def _record(self, seal: Seal, view: int, block: int) -> Commit | None:
        """Return the commit record of a block, if it is intact."""
        key = commit_key(view, block)
        with contextlib.suppress(FileNotFoundError, LogitStoreError):
            commit = Commit.from_bytes(self.folder.read(key), self.where(key))
            if (commit.view, commit.block, commit.spec) == (view, block, seal.files[SPEC]):
                return commit
        return None

    def _record_of_shards(self, seal: Seal, view: int, block: int) -> Commit:
        rows = self.root.grid.rows(block)
        objects = {
            name: stored_shard(self.folder, self._layouts[name], view, block, len(rows))
            for name, _ in seal.arrays
        }
        return Commit(view, block, rows, seal.files[SPEC], objects)
