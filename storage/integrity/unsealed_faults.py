"""Faults of a part that is not sealed: only its commit records vouch for its files.

1. The spec. Records that agree on another spec are believed: one flipped bit must not cost every block.
2. Each record, and the shards that it lists. A shard without a record is left over from a killed writer, and no fault.
3. Metadata of arrays, as far as the intact records agree with them.

The next run of the part's writer makes everything but the spec again.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import LimitExceeded, LogitStoreError, ManifestInvalid, StoreCorrupt
from ..format.constants import (
    MAX_SEAL_TABLE_BYTES,
    PRIVATE,
    ROOT_METADATA,
    SEAL,
    SEAL_TABLE,
    SPEC,
    TRANSFORM,
)
from ..format.documents import parse_spec, sha256_hex
from ..format.layouts import BASIS, REQUIRED, check_layout, features_of, form_of
from ..format.metadata import ArrayLayout
from ..format.shard import REMAKE, is_shard_size
from ..parts.journal import Commit, Seal, commit_key, committed_blocks, read_checked
from ..parts.recovery import Plan
from ..parts.sealed_part import begun_form, part_metadata, part_metadatas, small_keys
from ..parts.stored_basis import check_held
from . import checks
from .faults import Cure, Fault, Rebuild, Remake
from .part_diagnosis import PartDiagnosis

_SEALS = (SEAL, SEAL_TABLE)
"""What says that a part is whole goes before any of its blocks, also where the log does not name it yet."""


class UnsealedDiagnosis(PartDiagnosis):
    """A search for the faults of one part that was begun and is not sealed."""

    plan: Plan | None = None
    """The part's block arrays, for `recover`; None if the metadata of one of them are lost."""

    def faults(self) -> Iterator[Fault]:
        """Find every fault of the part; of one whose spec is damaged, that alone."""
        # The records before the arrays: a writer puts its arrays before its first record.
        places = sorted(committed_blocks(self.folder))
        commits = dict(self._intact_records(places))
        spec, views, error = self._read_spec({commit.spec for commit in commits.values()})
        if error is not None:
            yield Fault(self.name, SPEC, error)
            return
        yield from self._seal_faults()
        intact = []
        for number, place in enumerate(places):
            commit = commits.get(place)
            faults = list(self._block_faults(place, commit, spec, views))
            yield from faults
            if not faults and commit is not None:
                intact.append(commit)
            self.progress(number + 1, len(places))
        layouts: list[ArrayLayout] = []
        lost = not self.folder.exists(ROOT_METADATA)
        for fault in self._metadata_faults(views, intact, layouts, complete=bool(places)):
            lost |= fault.key.endswith(ROOT_METADATA) and not isinstance(fault.cure, Rebuild)
            yield fault
        arrays = [layout for layout in layouts if layout.is_block_array]
        self.plan = None if lost else Plan(arrays, views, self.root.grid, spec)

    def _intact_records(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Commit]]:
        """Find the commit records that are intact in themselves, by the place in their names.

        Raises StorageError: a record that cannot be read is not a damaged one.
        """
        for place in places:
            key = commit_key(*place)
            with contextlib.suppress(FileNotFoundError, StoreCorrupt, LimitExceeded):
                yield place, Commit.from_bytes(self.folder.read(key), self.where(key))

    def _read_spec(self, specs: set[str]) -> tuple[str, int, LogitStoreError | None]:
        """Return the sha256 of the spec, the number of views, and the error of a spec that is damaged.

        specs: sha256 of the specs for which the records were made.
        """
        expected, found = "a spec with a number of views", "no file"
        with contextlib.suppress(FileNotFoundError):
            data = self.folder.read(SPEC)
            digest, found = sha256_hex(data), "a spec without one"
            try:
                views = parse_spec(data, self.where(SPEC))[0].get("views")
            except LogitStoreError as error:
                expected, found, views = error.expected, error.found, None
            if isinstance(views, int):
                if not specs or digest in specs:
                    return digest, views, None
                expected = f"the spec of the commit records, sha256 {min(specs)[:12]}…"
                found = f"{digest[:12]}… ({len(data)} bytes)"
        remedy = f"restore it from a copy, or delete {self.folder.path} to begin the part anew"
        return "", 0, ManifestInvalid(self.where(SPEC), expected=expected, found=found, remedy=remedy)

    def _seal_faults(self) -> Iterator[Fault]:
        """Check a seal that no log names yet: its writer makes it again."""
        if self.folder.exists(SEAL):
            yield from self.compare(SEAL, self._check_seal, cure=Remake((SEAL, SEAL_TABLE)))
        elif self.search.repairs and self.folder.exists(SEAL_TABLE):
            # A killed writer left it: the part is held alone, so that no other is about to write its seal.
            error = checks.no_file(self.where(SEAL), "the seal of seal.bin")
            yield Fault(self.name, SEAL, error, Remake((SEAL_TABLE,)))

    def _check_seal(self) -> None:
        seal = Seal.from_bytes(self.folder.read(SEAL), self.where(SEAL))
        if seal.arrays:
            read_checked(self.folder, SEAL_TABLE, seal.table_sha256 or "", MAX_SEAL_TABLE_BYTES)
        for key, digest in seal.files.items():
            checks.check_file(self.folder, key, digest)

    def _block_faults(
        self, place: tuple[int, int], commit: Commit | None, spec: str, views: int
    ) -> Iterator[Fault]:
        """Check the record of a block, then the shards that it lists. commit: the record, if it is intact."""
        view, block = place
        key, grid = commit_key(view, block), self.root.grid
        self.search.objects += 1
        is_wanted = view < max(1, views) and block < grid.num_blocks
        if commit is not None and is_wanted:
            identity = (commit.view, commit.block, commit.spec, commit.rows)
            is_wanted = identity == (view, block, spec, grid.rows(block))
        if commit is None or not is_wanted:
            if self.folder.exists(key):  # or another writer has removed it meanwhile
                error = ManifestInvalid(
                    self.where(key),
                    expected=f"the record of block {block} of view {view} of this part",
                    found="a damaged record" if commit is None else "another record",
                    remedy=REMAKE,
                )
                # An intact record of another part was put with its shards: they are not adopted without it.
                shards = [] if commit is None else [self.shard_key(name, *place) for name in commit.objects]
                yield Fault(self.name, key, error, Remake((*_SEALS, *shards, key)))
            return
        faults: list[Fault] = []
        for array, stored in commit.objects.items():
            shard = self.shard_key(array, view, block)
            self.search.objects += 1
            self.search.bytes += stored.size
            check = (checks.check_shard, self.folder, shard, stored, self.deep)
            faults += self.compare(shard, *check, cure=Remake((shard,)))
        # Every shard before the record: a whole one, of another block, would be adopted without it.
        shards = [fault.key for fault in faults if fault.cure is not None]
        for fault in faults:
            yield fault if fault.cure is None else replace(fault, cure=Remake((*_SEALS, *shards, key)))

    def _metadata_faults(
        self, views: int, commits: Sequence[Commit], layouts: list[ArrayLayout], *, complete: bool
    ) -> Iterator[Fault]:
        """Check the part's `zarr.json` and each array's, and put intact layouts into `layouts`.

        complete: whether all of them must be there: before its first record a writer may still put them.
        """
        form = begun_form(self.folder, self.name)
        names = self.folder.names()
        if complete or ROOT_METADATA in names:
            cure: Cure = Remake(())
            if ROOT_METADATA in names:
                cure = Rebuild(part_metadata(self.kind, features_of(form_of(self.kind, names))))
            yield from self.compare(ROOT_METADATA, self._check_group, cure=cure)
        needed = REQUIRED[form].union(*(commit.objects for commit in commits)) if complete else frozenset()
        for array in sorted(needed.union(names) - {PRIVATE, ROOT_METADATA}):
            key = f"{array}/{ROOT_METADATA}"
            if array not in needed and not self.folder.exists(key):
                continue
            self.search.objects += 1
            unread = list(self.compare(key, self.folder.read, key, cure=Remake((key,))))
            yield from unread
            if unread:
                continue
            error = checks.error_of(self.where(key), self._read_layout, array, form, views, commits, layouts)
            if error is None:
                yield from self._small_faults(layouts[-1], complete)
            else:  # also metadata that ask for a feature which no reader has: one flipped bit does that
                yield Fault(self.name, key, error, Remake((key,)))
        if form == TRANSFORM and not self._lacks_basis(layouts):
            # No cure: each of the arrays may be the one that was exchanged, and is intact in itself.
            yield from self.compare(f"basis/{ROOT_METADATA}", check_held, self.folder, self.root.grid)

    def _lacks_basis(self, layouts: Sequence[ArrayLayout]) -> bool:
        """Return whether an array of the basis is lost or damaged, which is a fault of its own."""
        found = {layout.name: layout for layout in layouts}
        if not found.keys() >= set(BASIS):
            return True
        keys = [(found[name], key) for name in BASIS for key in small_keys(found[name])]
        return any(checks.error_of(key, checks.check_small, self.folder, layout, key) for layout, key in keys)

    def _small_faults(self, layout: ArrayLayout, complete: bool) -> Iterator[Fault]:
        """Check the chunks of a small array."""
        for chunk in () if layout.is_block_array else small_keys(layout):
            if complete or self.folder.exists(chunk):
                cure = Remake((chunk,))
                yield from self.compare(chunk, checks.check_small, self.folder, layout, chunk, cure=cure)

    def _check_group(self) -> None:
        """Refuse a `zarr.json` that no part of this kind has. Raises ManifestInvalid, FileNotFoundError."""
        if self.folder.read(ROOT_METADATA) not in part_metadatas(self.name):
            raise ManifestInvalid(
                self.where(ROOT_METADATA),
                expected=f"the metadata of a part of kind {self.kind!r}",
                found="other metadata",
                remedy=REMAKE,
            )

    def _read_layout(
        self, array: str, form: str, views: int, commits: Sequence[Commit], layouts: list[ArrayLayout]
    ) -> None:
        """Check an array's metadata with the format and with the records. Raises ManifestInvalid."""
        key = f"{array}/{ROOT_METADATA}"
        layout = ArrayLayout.from_bytes(array, self.folder.read(key), self.where(key))
        check_layout(layout, form, self.root.grid, views, self.where(key))
        if not all(self._agrees(layout, commit) for commit in commits):
            raise ManifestInvalid(
                self.where(key),
                expected="the array of the commit records",
                found="another array",
                remedy=REMAKE,
            )
        layouts.append(layout)

    def _agrees(self, layout: ArrayLayout, commit: Commit) -> bool:
        """Return whether an intact block can be one of this layout."""
        stored = commit.objects.get(layout.name)
        if stored is None or not layout.is_block_array:
            return stored is None and not layout.is_block_array
        rows = len(self.root.grid.rows(commit.block))
        return len(stored.crc32c) == layout.chunks_per_shard and is_shard_size(layout, rows, stored.size)
