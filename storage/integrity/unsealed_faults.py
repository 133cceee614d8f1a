"""Faults of a part that is not sealed: only its commit records vouch for its files.

1. The spec. Records that agree on another spec are believed: one flipped bit must not cost every block.
2. Each record, and the shards that it lists. A shard without a record is left over from a killed writer, and no fault.
3. Metadata of arrays, as far as the intact records agree with them.

The next run of the part's writer makes everything but the spec again.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from ..errors import LogitStoreError, ManifestInvalid
from ..format.constants import PRIVATE, ROOT_METADATA, SEAL, SEAL_TABLE, SPEC
from ..format.documents import parse_spec, sha256_hex
from ..format.layouts import REQUIRED, check_layout, features_of, form_of
from ..format.metadata import ArrayLayout
from ..format.shard import REMAKE, is_shard_size
from ..parts.journal import Commit, commit_key, committed_blocks
from ..parts.recovery import Plan
from ..parts.root import KINDS, Root, begun_form, part_metadata, small_keys
from . import checks
from .faults import Fault, Rebuild, Remake, Tally
from .shard_names import ShardNames


class UnsealedDiagnosis:
    """A search for the faults of one part that was begun and is not sealed."""

    def __init__(
        self,
        root: Root,
        name: str,
        tally: Tally,
        *,
        deep: bool,
        alone: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        """deep: read the shards. alone: no writer is at work, so that a `seal.bin` without a seal is left over."""
        self._root, self._name, self._tally = root, name, tally
        self._deep, self._alone, self._progress = deep, alone, progress
        self._folder = root.folder.sub(name)
        self._layouts: dict[str, ArrayLayout] = {}
        self.plan: Plan | None = None
        """The part's block arrays, for `recover`; None if the metadata of one of them are lost."""

    def _where(self, key: str) -> str:
        return str(self._folder.path / key)

    def _fault(self, key: str, error: LogitStoreError, *remove: str) -> Fault:
        """Return a fault that removing files cures, by default the damaged one."""
        return Fault(self._name, key, error, Remake(remove or (key,)))

    def faults(self) -> Iterator[Fault]:
        """Find every fault of the part; of one whose spec is damaged, that alone."""
        # The records before the arrays: a writer puts its arrays before its first record.
        places = sorted(committed_blocks(self._folder))
        commits = self._intact_records(places)
        spec, views, error = self._read_spec({commit.spec for commit in commits.values()})
        if error is not None:
            yield Fault(self._name, SPEC, error)
            return
        yield from self._seal_faults()
        kept = []
        names = ShardNames(self._folder, self._name)
        for number, place in enumerate(places):
            faults = list(self._block_faults(place, commits.get(place), spec, views, names))
            yield from faults
            if not faults and place in commits:
                kept.append(commits[place])
            self._progress(number + 1, len(places))
        lost = False
        for fault in self._metadata_faults(views, kept, complete=bool(places)):
            lost |= fault.key.endswith(ROOT_METADATA) and not isinstance(fault.cure, Rebuild)
            yield fault
        arrays = [layout for layout in self._layouts.values() if layout.is_block_array]
        whole = not lost and self._folder.exists(ROOT_METADATA)
        self.plan = Plan(arrays, views, self._root.grid, spec) if whole else None

    def _intact_records(self, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Commit]:
        """Return the commit records that are intact in themselves, by the place in their names."""
        commits = {}
        for place in places:
            key = commit_key(*place)
            with contextlib.suppress(FileNotFoundError, LogitStoreError):
                commits[place] = Commit.from_bytes(self._folder.read(key), self._where(key))
        return commits

    def _read_spec(self, specs: set[str]) -> tuple[str, int, LogitStoreError | None]:
        """Return the sha256 of the spec, the number of views, and the error of a spec that is damaged.

        specs: sha256 of the specs for which the records were made.
        """
        expected, found = "a spec with a number of views", "no file"
        with contextlib.suppress(FileNotFoundError):
            data = self._folder.read(SPEC)
            digest = sha256_hex(data)
            try:
                views = parse_spec(data, self._where(SPEC))[0].get("views")
            except LogitStoreError as error:
                expected, found, views = error.expected, error.found, None
            if isinstance(views, int) and (not specs or digest in specs):
                return digest, views, None
            if isinstance(views, int):
                expected = f"the spec of the commit records, sha256 {min(specs)[:12]}…"
                found = f"{digest[:12]}… ({len(data)} bytes)"
            elif found == "no file":
                found = "a spec without one"
        remedy = f"restore it from a copy, or delete {self._folder.path} to begin the part anew"
        return "", 0, ManifestInvalid(self._where(SPEC), expected=expected, found=found, remedy=remedy)

    def _seal_faults(self) -> Iterator[Fault]:
        """Check a seal that no log names: its writer makes it again."""
        if self._folder.exists(SEAL):
            error = checks.error_of(self._where(SEAL), checks.check_unsealed_seal, self._folder)
            if error is not None:
                yield self._fault(SEAL, error, SEAL, SEAL_TABLE)
        elif self._alone and self._folder.exists(SEAL_TABLE):
            yield self._fault(SEAL_TABLE, checks.no_file(self._where(SEAL), "the seal of seal.bin"))

    def _block_faults(
        self, place: tuple[int, int], commit: Commit | None, spec: str, views: int, names: ShardNames
    ) -> Iterator[Fault]:
        """Check the record of a block, then the shards that it lists."""
        view, block = place
        key = commit_key(view, block)
        grid = self._root.grid
        self._tally.objects += 1
        if (
            commit is None
            or not (view < max(1, views) and block < grid.num_blocks)
            or (commit.view, commit.block, commit.spec) != (view, block, spec)
            or commit.rows != grid.rows(block)
        ):
            if self._folder.exists(key):  # or another writer has removed it meanwhile
                expected = f"the record of block {block} of view {view} of this part"
                found = "a damaged record" if commit is None else "another record"
                yield self._fault(
                    key, ManifestInvalid(self._where(key), expected=expected, found=found, remedy=REMAKE)
                )
            return
        for array, stored in commit.objects.items():
            shard = names.key(array, view, block)
            self._tally.objects += 1
            self._tally.bytes += stored.size
            error = checks.error_of(
                self._where(shard), checks.check_shard, self._folder, shard, stored, self._deep
            )
            if error is not None:
                yield self._fault(
                    shard, error, key, shard
                )  # the record first: it is never without its shards

    def _metadata_faults(self, views: int, commits: Sequence[Commit], complete: bool) -> Iterator[Fault]:
        """Check the part's `zarr.json`, and each array's with its records.

        complete: whether all of them must be there: before its first record a writer may still put them.
        """
        kind = KINDS[self._name.partition("/")[0]]
        form = begun_form(self._folder, self._name)
        if complete or self._folder.exists(ROOT_METADATA):
            error = checks.error_of(
                self._where(ROOT_METADATA), checks.check_unsealed_group, self._folder, self._name
            )
            if error is not None:
                fault = self._fault(ROOT_METADATA, error)
                if self._folder.exists(ROOT_METADATA):
                    data = part_metadata(kind, features_of(form_of(kind, self._folder.names())))
                    fault = Fault(self._name, ROOT_METADATA, error, Rebuild(data), sha256_hex(data))
                yield fault
        there = {name for name in self._folder.names() if name not in (PRIVATE, ROOT_METADATA)}
        needed = REQUIRED[form].union(*(commit.objects for commit in commits)) if complete else frozenset()
        for array in sorted(there | needed):
            key = f"{array}/{ROOT_METADATA}"
            if not self._folder.exists(key):
                if array in needed:
                    yield self._fault(key, checks.no_file(self._where(key)))
                continue
            self._tally.objects += 1
            error = checks.error_of(self._where(key), self._read_layout, array, form, views, commits)
            if error is not None:
                yield self._fault(key, error)
                continue
            layout = self._layouts[array]
            for chunk in () if layout.is_block_array else small_keys(layout):
                if complete or self._folder.exists(chunk):
                    error = checks.error_of(
                        self._where(chunk), checks.check_small, self._folder, layout, chunk
                    )
                    if error is not None:
                        yield self._fault(chunk, error)

    def _read_layout(self, array: str, form: str, views: int, commits: Sequence[Commit]) -> None:
        """Check an array's metadata with the format and with the records. Raises ManifestInvalid."""
        key = f"{array}/{ROOT_METADATA}"
        where = self._where(key)
        layout = ArrayLayout.from_bytes(array, self._folder.read(key), where)
        check_layout(layout, form, self._root.grid, views, where)
        if not all(self._agrees(layout, commit) for commit in commits):
            raise ManifestInvalid(
                where, expected="the array of the commit records", found="another array", remedy=REMAKE
            )
        self._layouts[array] = layout

    def _agrees(self, layout: ArrayLayout, commit: Commit) -> bool:
        """Whether an intact block can be one of this layout."""
        stored = commit.objects.get(layout.name)
        if stored is None or not layout.is_block_array:
            return stored is None and not layout.is_block_array
        rows = len(self._root.grid.rows(commit.block))
        return len(stored.crc32c) == layout.chunks_per_shard and is_shard_size(layout, rows, stored.size)
