"""Recovery of an unsealed part by a writer that is alone with it, before it writes.

1. A commit record is kept if it is intact and its shards are there, of the sizes that it states; otherwise it is
   removed, and its block has no record. Before that, shards that are left and differ from it are removed: whole ones
   of another block would be adopted.
2. A block without a record is adopted if its shards are all there and whole: its record is written, as its killed
   writer did not. Otherwise its shards are removed, torn or whole, and the block is made
   again; whole ones are kept in parts of which every writer makes the same bytes.
3. A block of another part counts as torn, with all its shards: an intact record of another spec or of other arrays, or
   rows other than those of the store. A writer of a store that was deleted, and begun anew here, may have left it.

No acknowledged block is ever removed, unless a disk has lost or changed what it had promised to keep.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ..backends.local import Folder
from ..backends.place import Place
from ..backends.writable import Writable
from ..errors import ManifestInvalid, RowMismatch, ShardCorrupt, StoreCorrupt
from ..format.constants import SPEC
from ..format.grid import Grid
from ..format.metadata import ArrayLayout
from ..format.shard import check_shard_bytes, decode_shard, shard_of
from .journal import Commit, StoredShard, commit_key, committed_blocks

RECORD_S: Final = 150.0
"""Seconds to wait for the next object of another writer's block: longer than it tries to put one."""
_POLL_S: Final = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """The changes that recovery made."""

    adopted: tuple[tuple[int, int], ...] = ()
    """(view, block) of blocks whose record was written."""
    dropped: tuple[str, ...] = ()
    """Keys of torn files that were removed."""


@dataclass(frozen=True)
class Plan:
    """The blocks of a part that is being written."""

    layouts: Sequence[ArrayLayout]
    """Its block arrays."""
    views: int
    """Number of views."""
    grid: Grid
    """The cut of the store into blocks."""
    spec: str
    """sha256 of its spec.json."""

    def blocks(self) -> Iterable[tuple[int, int]]:
        """Return (view, block) of every block of the finished part."""
        return ((view, block) for view in range(self.views) for block in range(self.grid.num_blocks))


def read_commit(folder: Place, view: int, block: int, plan: Plan) -> Commit:
    """Read the record of a block of this part. Raises ManifestInvalid, FileNotFoundError."""
    key = commit_key(view, block)
    where = str(folder.path / key)
    commit = Commit.from_bytes(folder.read(key), where)
    identity = (commit.view, commit.block, commit.spec, set(commit.objects))
    if identity != (view, block, plan.spec, {layout.name for layout in plan.layouts}) or (
        block < plan.grid.num_blocks and commit.rows != plan.grid.rows(block)
    ):
        raise ManifestInvalid(
            where,
            expected=f"the record of block {block} of view {view} of this part",
            found="another record",
            remedy="run `logitstore repair`",
        )
    return commit


def record_of_another(
    folder: Writable, view: int, block: int, plan: Plan, refuse: Callable[[], None]
) -> Commit:
    """Wait for the record of a block of which another writer has put a shard, for `RECORD_S` after the last object.

    Only its writer can vouch for the shards: beside those of another writer they would decode to wrong rows.
    refuse: raises where the part was sealed. Raises StoreCorrupt if no record comes.
    """
    keys = [layout.shard_key(view, block) for layout in plan.layouts]
    count, until = 0, 0.0
    while not folder.exists(commit_key(view, block)):
        refuse()
        there = [key for key in keys if folder.exists(key)]
        if len(there) > count:
            log.info("%s: waiting for the record of another writer's block %d-%d", folder.path, view, block)
            count, until = len(there), time.monotonic() + RECORD_S
        elif time.monotonic() > until:
            raise StoreCorrupt(
                f"{folder.path}, view {view}, block {block}",
                expected="the record of the writer that put these shards",
                found=f"shards of other bytes than ours, and no record within {RECORD_S:.0f} s",
                remedy=f"end all writers, delete {', '.join(there)} there and run the same command again",
            )
        time.sleep(_POLL_S)
    return read_commit(folder, view, block, plan)


def other_rows(where: str, name: str, rows: range, folder: Writable) -> RowMismatch:
    """Return the error of a shard that a killed run left, or another run has just put, of other rows."""
    return RowMismatch(
        f"{where}/{name}, rows {rows.start} to {rows.stop - 1}",
        expected=f"the {name} with which it was begun",
        found=f"another {name} in at least one row",
        remedy=f"change it back; or end all writers, delete {folder.path} and run the same command again",
    )


def has_shards(folder: Place, commit: Commit, layouts: Iterable[ArrayLayout]) -> bool:
    """Return whether the shards of a block are there, of the sizes that its record states."""
    try:
        return all(
            folder.size(layout.shard_key(commit.view, commit.block)) == commit.objects[layout.name].size
            for layout in layouts
        )
    except FileNotFoundError:
        return False


def stored_shard(folder: Place, layout: ArrayLayout, view: int, block: int, rows: int) -> StoredShard:
    """Return size and checksums of a shard on the disk. Raises ShardCorrupt if it is torn, FileNotFoundError."""
    key = layout.shard_key(view, block)
    where = str(folder.path / key)
    size = folder.size(key)
    remedy = "end all writers and run the same command again: a writer that is alone removes it"
    if isinstance(folder, Writable) and folder.is_remote:
        remedy = f"end all writers, delete {folder.path / key} and run the same command again"
    check_shard_bytes(layout, rows, size, where, remedy)
    data = folder.read(key, most=size)
    # Encoding the decoded rows gives checksums and sha256, and shows that the file holds no other bytes.
    encoded, encoder = shard_of(layout, decode_shard(layout, data, rows, where))
    if encoded != data:
        raise ShardCorrupt(
            where,
            expected="a shard as logitstore writes it",
            found="a shard of the same rows with other bytes",
            remedy=remedy,
        )
    return StoredShard.of(encoder)


def recover(
    folder: Folder,
    plan: Plan,
    check_rows: Callable[[int, int], None] = lambda view, block: None,
    *,
    is_exact: bool = False,
) -> Recovery:
    """Remove torn files of an unsealed part, and write the lost records of whole blocks. A second call changes nothing.

    check_rows: function of (view, block) that raises RowMismatch for a block of other rows than the store's.
    is_exact: as in `PartWriter`; whole shards of a block that lacks others are then kept, since its writer compares them.
    Only for a caller that is alone with the part.
    """
    folder.sweep()
    dropped: list[str] = []
    committed = set()
    wanted = set(plan.blocks())
    _check_spec(folder, plan)
    for view, block in sorted(committed_blocks(folder)):
        intact = foreign = False
        others: list[str] = []
        try:
            commit = read_commit(folder, view, block, plan)
            intact = (view, block) in wanted and has_shards(folder, commit, plan.layouts)
            foreign = intact and _is_foreign(check_rows, view, block)
            if (view, block) in wanted and not intact:
                others = _other_shards(folder, plan, commit)
        except ManifestInvalid:
            foreign = _is_of_another(folder, view, block)
        if intact and not foreign:
            committed.add((view, block))
            continue
        # The shards before the record: without it they would be adopted if this recovery is killed in between.
        for key in [*(_there(folder, plan, view, block) if foreign else others), commit_key(view, block)]:
            folder.remove(key)
            dropped.append(key)
    by_name = {layout.name: layout for layout in plan.layouts}
    names = {layout.name: set(folder.names(layout.name)) for layout in plan.layouts}
    adopted = []
    for view, block in plan.blocks():
        if (view, block) in committed:
            continue
        objects = {}
        for layout in plan.layouts:
            key = layout.shard_key(view, block)
            if key.rpartition("/")[2] not in names[layout.name]:
                continue
            try:
                objects[layout.name] = stored_shard(folder, layout, view, block, len(plan.grid.rows(block)))
            except ShardCorrupt:
                folder.remove(key)
                dropped.append(key)
        if len(objects) == len(plan.layouts) and _is_foreign(check_rows, view, block):
            for key in _there(folder, plan, view, block):
                folder.remove(key)
                dropped.append(key)
        elif len(objects) < len(plan.layouts):
            # Another writer's teacher may differ in the last bit: its arrays would decode to wrong rows beside these.
            for name in () if is_exact else objects:
                key = by_name[name].shard_key(view, block)
                folder.remove(key)
                dropped.append(key)
        else:
            for layout in plan.layouts:
                folder.sync(layout.name)  # the killed writer may have linked a name without syncing it
            record = Commit(view, block, plan.grid.rows(block), plan.spec, objects)
            folder.put_new(record.key, record.to_bytes())
            adopted.append((view, block))
    return Recovery(tuple(adopted), tuple(dropped))


def _is_foreign(check_rows: Callable[[int, int], None], view: int, block: int) -> bool:
    """Return whether the shards of a block are of other rows than those of the store."""
    try:
        # A damaged shard tells nothing of its rows: it is found where it is read.
        with contextlib.suppress(StoreCorrupt, FileNotFoundError):
            check_rows(view, block)
    except RowMismatch:
        return True
    return False


def _is_of_another(folder: Place, view: int, block: int) -> bool:
    """Return whether a record that is not one of this part is intact in itself: then it was made for another."""
    key = commit_key(view, block)
    with contextlib.suppress(FileNotFoundError, ManifestInvalid):
        Commit.from_bytes(folder.read(key), key)
        return True
    return False


def _other_shards(folder: Place, plan: Plan, commit: Commit) -> list[str]:
    """Return the keys of whole shards that differ from the record of their block."""
    others = []
    for layout in plan.layouts:
        with contextlib.suppress(FileNotFoundError, ShardCorrupt):  # a torn one is removed as such
            stored = stored_shard(folder, layout, commit.view, commit.block, len(commit.rows))
            if stored != commit.objects[layout.name]:
                others.append(layout.shard_key(commit.view, commit.block))
    return others


def _there(folder: Place, plan: Plan, view: int, block: int) -> list[str]:
    """Return the keys of the shards of a block that are there."""
    keys = [layout.shard_key(view, block) for layout in plan.layouts]
    return [key for key in keys if folder.exists(key)]


def _check_spec(folder: Place, plan: Plan) -> None:
    """Refuse a spec that no record was made for: the spec has changed, not all records. Raises ManifestInvalid."""
    specs = set()
    for view, block in committed_blocks(folder):
        key = commit_key(view, block)
        with contextlib.suppress(FileNotFoundError, ManifestInvalid):
            specs.add(Commit.from_bytes(folder.read(key), key).spec)
        if plan.spec in specs:
            return  # as a rule with the first record: a thousand of them need not be read for this
    if specs:
        raise ManifestInvalid(
            str(folder.path / SPEC),
            expected=f"the spec of the commit records, sha256 {min(specs)[:12]}…",
            found=f"{plan.spec[:12]}…",
            remedy="restore it from a copy, or delete the part to begin it anew",
        )
