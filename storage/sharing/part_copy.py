"""One sealed part, carried object by object to a destination, in the order in which writers put it.

    spec.json                            decides what the part is
    zarr.json files, small arrays
    block by block   shards              each compared with the seal when it arrives
                     commit record       follows from the seal, and is not requested
    seal.bin, seal.json                  now the part is whole; the log names it later

A copy that was killed resumes as writers do. A block with its record is there, and so are its shards, by name and size. Of
the blocks that were under way, the shards that are there are read back and compared, before anything is written. Nothing
that arrived is sent again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

from ..backends.lease import lease
from ..backends.pointers import naming_pointer
from ..backends.writable import Writable
from ..errors import NameTaken, ShardCorrupt, ShardMissing, StorageError
from ..format.constants import (
    COMMITS,
    MAX_JSON_BYTES,
    MAX_SEAL_TABLE_BYTES,
    PRIVATE,
    ROOT_METADATA,
    SEAL,
    SEAL_TABLE,
    SPEC,
)
from ..format.documents import sha256_hex
from ..format.metadata import ArrayLayout
from ..format.shard import CRC_BYTES, UNSEALABLE, check_shard_bytes
from ..parts.journal import Commit, SealTable, StoredShard, commit_key, read_checked, read_table
from ..parts.root import Root
from ..parts.sealed_part import small_keys
from .destination import OTHER_BYTES, check_sealed, check_size, put_sealed, settle
from .in_flight import InFlight

_RESTORE: Final = "run `logitstore verify --deep` on the store that is copied, and restore the file there"
_WITHOUT: Final = "run the same command again, which leaves it out"


@dataclass(frozen=True)
class PartPlan:
    """The bytes of a part, and of those the ones that the destination lacks. Commit records are not counted."""

    part: str
    """Its name: "teachers/wide"."""
    bytes: int
    """Bytes of its shards, and of the files beside them."""
    missing: int
    """Bytes that are not at the destination yet."""


class PartCopy:
    """The copy of one sealed part."""

    def __init__(self, source: Root, name: str, place: Writable) -> None:
        """Open the part, and compare its metadata with the format. place: the store at the destination."""
        self.name = name
        self._part = source.part(name)
        self._grid = source.grid
        self._target = place.sub(name)
        self._folders = ("", PRIVATE, COMMITS, *self._part.layouts)
        self._arrived: frozenset[str] | None = frozenset()
        # Keys at the destination, by name alone; None where it does not list them.

    @property
    def _layouts(self) -> dict[str, ArrayLayout]:
        """The block arrays, in the order of the seal."""
        return {name: self._part.layouts[name] for name, _ in self._part.seal.arrays}

    def _table(self) -> SealTable:
        """Read `seal.bin`, which is not kept: a store may have thousands of parts."""
        seal = self._part.seal
        return read_table(self._part.folder, seal) if seal.arrays else SealTable((), 0, 0)

    def _has(self, key: str) -> bool:
        """Return whether the name is taken at the destination."""
        return self._target.exists(key) if self._arrived is None else key in self._arrived

    def _listed(self) -> frozenset[str] | None:
        """Return the keys that are there; none if the part is not begun, None where the destination lists nothing."""
        if not self._target.exists(SPEC):
            return frozenset()
        if not self._target.can_list:
            return None
        names = {folder: self._target.names(folder) for folder in self._folders}
        return frozenset(f"{folder}/{name}".lstrip("/") for folder, found in names.items() for name in found)

    @property
    def _is_whole(self) -> bool:
        """Whether an earlier copy has brought all of it: a repair or a removal may have taken away what a seal lists.

        Where the destination does not list its files, nobody removes any, and the seal tells.
        """
        if self._arrived is None or not self._has(SEAL):
            return self._has(SEAL)
        table = self._table()
        blocks = (
            key
            for view, block in self._blocks()
            for key in (
                commit_key(view, block),
                *(layout.shard_key(view, block) for layout in self._layouts.values()),
            )
        )
        tables = [SEAL_TABLE] if table.arrays else []
        return all(key in self._arrived for key in (*self._part.seal.files, *tables)) and all(
            key in self._arrived for key in blocks
        )

    def check_whole(self, place: Writable) -> None:
        """Look again, and refuse a part of which something was removed since it was brought. Raises StorageError.

        place: the store at the destination, in which the caller holds the part.
        """
        self._target = place.sub(self.name)
        self._arrived = self._listed()
        if not self._is_whole:
            raise StorageError(
                str(self._target.path),
                expected="a part that stays where it was put",
                found="files of it that were removed meanwhile",
                remedy="run the same command again, while nobody removes anything there",
            )

    def plan(self) -> PartPlan:
        """Count the bytes of the part, and those that are missing at the destination; nothing is written."""
        self._arrived = self._listed()
        folder, seal = self._part.folder, self._part.seal
        sizes = {key: folder.size(key) for key in (*seal.files, SEAL)}
        if seal.arrays:
            sizes[SEAL_TABLE] = seal.table_size
        whole = self._is_whole
        total = sum(sizes.values())
        missing = 0 if whole else sum(size for key, size in sizes.items() if not self._has(key))
        table = self._table()
        total += table.total_bytes()
        if not whole:
            missing += sum(
                table.size(name, view, block)
                for view, block in self._blocks()
                for name, layout in self._layouts.items()
                if not self._has(layout.shard_key(view, block))
            )
        return PartPlan(self.name, total, missing)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        seal = self._part.seal
        return ((view, block) for view in range(seal.views) for block in range(seal.blocks))

    def compare(self, flight: InFlight) -> None:
        """Compare what is at the destination with the seal, once `plan` has looked; nothing is written.

        Of a block with its record: the record, and the sizes of its shards. Of the others: every byte. Raises NameTaken if
        anything differs.
        """
        if self._arrived is not None and not self._arrived:
            return
        self._refuse_strangers()
        files = dict(self._part.seal.files) | {SEAL: self._part.digest.removeprefix("sha256:")}
        flight.run(((1, partial(self._compare_file, key, digest)) for key, digest in files.items()), _nothing)
        if not self._is_whole:
            blocks = ((1, partial(self._compare_block, commit)) for commit in self._commits(self._table()))
            flight.run(blocks, _nothing)

    def _refuse_strangers(self) -> None:
        """Refuse a part that has arrays which this one lacks. Raises NameTaken."""
        if self._arrived is None:
            return
        ours = {ROOT_METADATA, PRIVATE, *self._part.layouts}
        strangers = sorted({key.partition("/")[0] for key in self._arrived} - ours)
        if strangers:
            raise NameTaken(
                f"{self._target.path / strangers[0]}",
                expected=f"the arrays {', '.join(self._part.layouts)} alone",
                found=strangers[0],
                remedy=OTHER_BYTES,
            )

    def _compare_file(self, key: str, digest: str) -> int:
        if self._has(key):
            check_sealed(self._target, key, self._part.folder.size(key), digest)
        return 0

    def _compare_block(self, commit: Commit) -> int:
        record = commit.to_bytes()
        is_committed = self._has(commit.key)
        if is_committed:
            check_sealed(self._target, commit.key, len(record), sha256_hex(record))
        for name, stored in commit.objects.items():
            key = self._layouts[name].shard_key(commit.view, commit.block)
            if self._has(key) and is_committed:
                check_size(self._target, key, stored.size)
            elif self._has(key):
                check_sealed(self._target, key, stored.size, stored.sha256)
        return 0

    def bring(self, place: Writable, flight: InFlight, sent: Callable[[int], None]) -> None:
        """Bring what is missing of the part, all but its record in the log, after `plan` and `compare`.

        place: the store at the destination, held open. sent: called with bytes that were put. Raises ShardCorrupt,
        ShardMissing or ManifestInvalid for a damaged source, NameTaken for other bytes at the destination.
        """
        self._target = place.sub(self.name)
        seal, digest = self._part.seal, self._part.digest.removeprefix("sha256:")
        with lease(self._target):
            if self._arrived:  # without what a repair or a removal has taken away since it was compared
                self._arrived &= self._listed() or frozenset()
            settle(self._target, self._folders if self._arrived else ())
            if self._is_whole:
                return
            sent(self._file(SPEC, seal.files[SPEC], MAX_JSON_BYTES))
            files = ((most, partial(self._file, key, seal.files[key], most)) for key, most in self._files())
            flight.run(files, sent)
            table = self._table()
            flight.run(self._block_tasks(table), sent)
            if seal.arrays:
                data, sha = table.to_bytes(), seal.table_sha256 or ""
                sent(0 if self._has(SEAL_TABLE) else self._put(SEAL_TABLE, data, sha))
            sent(self._file(SEAL, digest, MAX_JSON_BYTES))

    def _files(self) -> Iterator[tuple[str, int]]:
        """Yield the files that the seal lists, but for the spec, each with the most bytes that it may have."""
        chunks = {
            key: layout.shard_rows * layout.row_bytes + CRC_BYTES
            for layout in self._part.layouts.values()
            if not layout.is_block_array
            for key in small_keys(layout)
        }
        for key in self._part.seal.files:
            if key != SPEC:
                named = MAX_SEAL_TABLE_BYTES if key.startswith(f"{PRIVATE}/") else MAX_JSON_BYTES
                yield key, chunks.get(key, named)

    def _file(self, key: str, digest: str, most: int) -> int:
        """Bring a file that is listed by its sha256, unless it is there; return the bytes that were put."""
        if self._has(key):
            return 0
        return self._put(key, read_checked(self._part.folder, key, digest, most), digest)

    def _put(self, key: str, data: bytes, digest: str) -> int:
        return len(data) if put_sealed(self._target, key, data, digest) else 0

    def _commits(self, table: SealTable) -> Iterator[Commit]:
        spec = self._part.seal.files[SPEC]
        for view, block in self._blocks():
            objects = {name: table.shard(name, view, block) for name in self._layouts}
            yield Commit(view, block, self._grid.rows(block), spec, objects)

    def _block_tasks(self, table: SealTable) -> Iterator[tuple[int, Callable[[], int]]]:
        for commit in self._commits(table):
            # Twice: a library's buffer of an object, and the object.
            yield 2 * max(stored.size for stored in commit.objects.values()), partial(self._block, commit)

    def _block(self, commit: Commit) -> int:
        """Bring the shards of a block, then its record; return the bytes of the shards that were put."""
        put = 0
        for name, stored in commit.objects.items():
            layout = self._layouts[name]
            key = layout.shard_key(commit.view, commit.block)
            if not self._has(key):
                put += self._put(key, self._read(key, layout, stored, commit.rows), stored.sha256)
        if not self._has(commit.key):
            record = commit.to_bytes()
            self._put(commit.key, record, sha256_hex(record))
        return put

    def _read(self, key: str, layout: ArrayLayout, stored: StoredShard, rows: range) -> bytes:
        """Read a whole shard of the source, and compare it with the seal. Raises ShardCorrupt, ShardMissing."""
        where = f"{self._part.folder.path / key} (rows {rows.start} to {rows.stop - 1})"
        check_shard_bytes(layout, len(rows), stored.size, where, UNSEALABLE)
        try:
            data, size = self._part.folder.read_range(key, 0, stored.size)
        except FileNotFoundError:
            expected, found, remedy = "the shard that the seal lists", "no file", _RESTORE
            if self._part.is_gone:
                found, remedy = "no file: `logitstore rm` has removed this part", _WITHOUT
            raise ShardMissing(where, expected=expected, found=found, remedy=remedy) from None
        found = sha256(data).hexdigest()
        if (size, found) != (stored.size, stored.sha256):
            error = ShardCorrupt(
                where,
                expected=f"{stored.size} bytes of sha256 {stored.sha256[:12]}…",
                found=f"{size} bytes of sha256 {found[:12]}…",
                remedy=_RESTORE,
            )
            raise naming_pointer(error, data)
        return data


def _nothing(_: int) -> None:
    """Take the result of a comparison, which has none."""
