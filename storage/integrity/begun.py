"""Repair of parts that are not sealed yet."""

import contextlib

from ..errors import LogitStoreError, ManifestInvalid, ShardCorrupt, ShardMissing, StoreCorrupt
from ..format.constants import PRIVATE, ROOT_METADATA, SEAL, SEAL_TABLE, SPEC
from ..format.documents import parse_json, sha256_hex
from ..format.layouts import check_layout, features_of, form_of
from ..format.metadata import ArrayLayout
from ..format.shard import is_shard_size
from ..parts.journal import Commit, StoredShard, commit_key, committed_blocks
from ..parts.recovery import Plan, recover
from ..parts.root import Root
from ..parts.sealed_part import KINDS, begun_form, part_metadata, small_keys
from ..progress import Progress
from .objects import check_begun_group, check_begun_seal, check_shard, check_small
from .site import _Site

# Parts that were begun


class _BegunRepair:
    """Mends one part that is not sealed: only its records, and the form of its metadata, tell what was there."""

    def __init__(self, root: Root, name: str, site: _Site, progress: Progress) -> None:
        self._root = root
        self._name = name
        self._site = site
        self._folder = site.folder
        self._kind = KINDS[name.partition("/")[0]]
        self._progress = progress
        self._layouts: dict[str, ArrayLayout] = {}

    def run(self) -> None:
        """Mend the part."""
        site = self._site
        spec, views = b"", None
        try:
            spec = self._folder.read(SPEC)
            identity = parse_json(spec, site.path(SPEC)).get("identity")
            views = identity.get("views") if isinstance(identity, dict) else None
        except (FileNotFoundError, StoreCorrupt):
            pass
        with site.alone():
            commits = self._intact_records()
            # Where every record was made for another spec, it is the spec that has changed.
            specs = {commit.spec for commit in commits.values()}
            if not isinstance(views, int) or (specs and sha256_hex(spec) not in specs):
                site.give_up(
                    ManifestInvalid(
                        site.path(SPEC),
                        expected="what the part is made from",
                        found="a file that was changed",
                        remedy=f"restore it from a copy, or delete {self._folder.path} to begin the part anew",
                    )
                )
                return
            self._mend_seal()
            kept = self._mend_records(commits, sha256_hex(spec))
            whole = self._mend_metadata(views, kept)
            arrays = [layout for layout in self._layouts.values() if layout.is_block_array]
            named = {name for commit in kept for name in commit.objects}
            # Where an array is not known, only its writer can say what the shards must be like.
            if whole and named <= {layout.name for layout in arrays} and not site.done.dry_run:
                found = recover(self._folder, Plan(arrays, views, self._root.grid, sha256_hex(spec)))
                site.done.removed += map(site.key, found.dropped)
                site.done.adopted += [site.key(commit_key(*place)) for place in found.adopted]

    def _intact_records(self) -> dict[tuple[int, int], Commit]:
        """The commit records that are intact in themselves, by the place of which their names speak."""
        commits = {}
        for place in committed_blocks(self._folder):
            key = commit_key(*place)
            with contextlib.suppress(FileNotFoundError, StoreCorrupt):
                commits[place] = Commit.from_bytes(self._folder.read(key), self._site.path(key))
        return commits

    def _mend_seal(self) -> None:
        """A seal that no log names rests on nothing: its writer makes it again."""
        if not self._folder.exists(SEAL):
            if self._folder.exists(SEAL_TABLE):
                self._site.remove(SEAL_TABLE)
            return
        try:
            check_begun_seal(self._folder)
        except StoreCorrupt:
            self._site.remove(SEAL)
            if self._folder.exists(SEAL_TABLE):
                self._site.remove(SEAL_TABLE)

    def _mend_records(self, commits: dict[tuple[int, int], Commit], spec: str) -> list[Commit]:
        """Take away records that are not intact, and those of shards that are not; the others."""
        kept = []
        places = sorted(committed_blocks(self._folder))
        for number, place in enumerate(places):
            key = commit_key(*place)
            commit = commits.get(place)
            if commit is None or (commit.view, commit.block, commit.spec) != (*place, spec):
                self._site.remove(key)
            elif (torn := self._torn_shards(commit)) is not None:
                self._site.remove(key)  # before its shards: a record is never without them
                for shard in torn:
                    self._site.remove(shard)
            else:
                kept.append(commit)
            self._progress(f"repairing {self._name}", number + 1, len(places), "blocks")
        return kept

    def _torn_shards(self, commit: Commit) -> list[str] | None:
        """Keys of the shards of a block that are there and torn; None where the block is whole."""
        torn, whole = [], True
        for array, stored in commit.objects.items():
            key = self._shard_key(array, commit)
            if key is None:
                whole = False
                continue
            try:
                check_shard(self._folder, key, stored, deep=True)
            except ShardMissing:
                whole = False
            except ShardCorrupt:
                torn.append(key)
                whole = False
        return None if whole else torn

    def _shard_key(self, array: str, commit: Commit) -> str | None:
        """Key of the shard of a block, by the names that are there: the metadata may be what is wrong."""
        index = [commit.block] if self._kind == "samples" else [commit.view, commit.block]
        start = f"c.{'.'.join(map(str, index))}"
        for name in self._folder.names(array) if "/" not in array else []:
            if name == start or (name.startswith(start) and not name[len(start) :].strip(".0")):
                if name != start and name[len(start)] != ".":
                    continue
                return f"{array}/{name}"
        return None

    def _mend_metadata(self, views: int, commits: list[Commit]) -> bool:
        """Take away metadata that is not of this store, or with which no block agrees; whether none was."""
        whole = True
        try:
            check_begun_group(self._folder, self._name)
        except FileNotFoundError:
            whole = False
        except LogitStoreError:
            form = form_of(self._kind, self._folder.names())
            self._site.rebuild(ROOT_METADATA, part_metadata(self._kind, features_of(form)))
        for array in self._folder.names():
            key = f"{array}/{ROOT_METADATA}"
            if array == PRIVATE or not self._folder.exists(key):
                continue
            where = self._site.path(key)
            try:
                layout = ArrayLayout.from_bytes(array, self._folder.read(key), where)
                check_layout(layout, begun_form(self._folder, self._name), self._root.grid, views, where)
            except LogitStoreError:
                self._site.remove(key)
                whole = False
                continue
            if not all(self._agrees(layout, commit) for commit in commits):
                self._site.remove(key)
                whole = False
                continue
            self._layouts[array] = layout
            for chunk in [] if layout.is_block_array else small_keys(layout):
                try:
                    check_small(self._folder, layout, chunk)
                except FileNotFoundError:
                    continue
                except ShardCorrupt:
                    self._site.remove(chunk)
        return whole

    def _agrees(self, layout: ArrayLayout, commit: Commit) -> bool:
        """Whether a block that is whole can be one of this layout."""
        stored: StoredShard | None = commit.objects.get(layout.name)
        if stored is None:
            return not layout.is_block_array
        rows = len(self._root.grid.rows(commit.block))
        return layout.is_block_array and is_shard_size(layout, rows, stored.size)
