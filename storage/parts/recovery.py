"""What of an unfinished part is good, and what must be made again?

A writer that finds itself alone with a part that was begun asks this before it writes:

1. A commit record is kept where it is intact and its shards are there with the sizes that it states; otherwise
   it is taken away, and its block is one without a record.
2. A block without a record whose shards are all there and whole is adopted: the record that its writer did not
   live to write is written. Shards that are torn are taken away; the block is then made again.

Only what never was acknowledged is ever taken away, unless a disk has lost or changed what it had promised to keep.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..backends.local import Folder
from ..errors import ManifestInvalid, ShardCorrupt
from ..format.constants import SPEC
from ..format.grid import Grid
from ..format.metadata import ArrayLayout
from ..format.shard import check_shard_bytes, decode_shard, shard_of
from .journal import Commit, StoredShard, commit_key, committed_blocks


@dataclass(frozen=True)
class Recovery:
    """What recovery did."""

    adopted: tuple[tuple[int, int], ...] = ()
    """(view, block) of blocks whose record was written."""
    dropped: tuple[str, ...] = ()
    """Keys of what was torn and taken away."""


@dataclass(frozen=True)
class Plan:
    """What a part that is being written consists of."""

    layouts: Sequence[ArrayLayout]
    """Its block arrays."""
    views: int
    """Views."""
    grid: Grid
    """How the store is cut."""
    spec: str
    """sha256 of its spec.json."""

    def blocks(self) -> Iterable[tuple[int, int]]:
        """(view, block) of every block that there will be."""
        return ((view, block) for view in range(self.views) for block in range(self.grid.num_blocks))


def read_commit(folder: Folder, view: int, block: int, plan: Plan) -> Commit:
    """The record of a block, where it belongs to this block of this part. Raises ManifestInvalid, FileNotFoundError."""
    key = commit_key(view, block)
    where = str(folder.path / key)
    commit = Commit.from_bytes(folder.read(key), where)
    about = (commit.view, commit.block, commit.spec, set(commit.objects))
    if about != (view, block, plan.spec, {layout.name for layout in plan.layouts}) or (
        block < plan.grid.num_blocks and commit.rows != plan.grid.rows(block)
    ):
        raise ManifestInvalid(
            where,
            expected=f"the record of block {block} of view {view} of this part",
            found="another record",
            remedy="run `logitstore repair`",
        )
    return commit


def has_shards(folder: Folder, commit: Commit, layouts: Iterable[ArrayLayout]) -> bool:
    """Whether the shards of a block are there, with the sizes that its record states."""
    for layout in layouts:
        try:
            size = folder.size(layout.shard_key(commit.view, commit.block))
        except FileNotFoundError:
            return False
        if size != commit.objects[layout.name].size:
            return False
    return True


def stored_shard(folder: Folder, layout: ArrayLayout, view: int, block: int, rows: int) -> StoredShard:
    """What a record says of a shard that is there. Raises ShardCorrupt where it is torn, FileNotFoundError."""
    key = layout.shard_key(view, block)
    where = str(folder.path / key)
    size = folder.size(key)
    remedy = "end all writers and run the same command again: a writer that is alone takes it away"
    check_shard_bytes(layout, rows, size, where, remedy)
    data = folder.read(key, most=size)
    # Encoding what was decoded gives checksums and digest, and shows that nothing else is in the file.
    encoded, again = shard_of(layout, decode_shard(layout, data, rows, where))
    if encoded != data:
        raise ShardCorrupt(
            where,
            expected="a shard as logitstore writes it",
            found="one of the same rows with other bytes",
            remedy=remedy,
        )
    return StoredShard.of(again)


def recover(folder: Folder, plan: Plan) -> Recovery:
    """Mend an unsealed part. Only for who is alone with it. Recovering twice is recovering once."""
    folder.sweep()
    dropped: list[str] = []
    committed = set()
    wanted = set(plan.blocks())
    _check_spec(folder, plan)
    for view, block in sorted(committed_blocks(folder)):
        try:
            good = (view, block) in wanted and has_shards(
                folder, read_commit(folder, view, block, plan), plan.layouts
            )
        except ManifestInvalid:
            good = False
        if good:
            committed.add((view, block))
        else:
            folder.remove(commit_key(view, block))
            dropped.append(commit_key(view, block))
    there = {layout.name: set(folder.names(layout.name)) for layout in plan.layouts}
    adopted = []
    for view, block in plan.blocks():
        if (view, block) in committed:
            continue
        objects = {}
        for layout in plan.layouts:
            key = layout.shard_key(view, block)
            if key.rpartition("/")[2] not in there[layout.name]:
                continue
            try:
                objects[layout.name] = stored_shard(folder, layout, view, block, len(plan.grid.rows(block)))
            except ShardCorrupt:
                folder.remove(key)
                dropped.append(key)
        if len(objects) == len(plan.layouts):
            for layout in plan.layouts:
                folder.sync(layout.name)  # its writer may not have come as far as this
            record = Commit(view, block, plan.grid.rows(block), plan.spec, objects)
            folder.put_new(record.key, record.to_bytes())
            adopted.append((view, block))
    return Recovery(tuple(adopted), tuple(dropped))


def _check_spec(folder: Folder, plan: Plan) -> None:
    """Where every record was made for another spec, it is the spec that has changed. Raises ManifestInvalid."""
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
            expected="the spec for which the commit records were made",
            found="another",
            remedy="restore it from a copy, or delete the part to begin it anew",
        )
