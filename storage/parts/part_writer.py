"""How does a part get written: begun, block by block, sealed?

1. `spec.json` comes first and decides whose part it is. Whoever comes later must mean the same.
2. A block is encoded, checked, hashed and staged piece by piece (the next piece is encoded while the last one is
   written), its shards get their names, then its commit record; only then is it there.
3. When every block is there, the part is sealed and the log names it.

Nothing is changed in place, so that any number of writers may do any of it at any time: who comes second finds it
done. Resuming is asking which blocks are missing. A sealed part that has lost shards is written the same way: just
those blocks, and only with the bytes that were sealed.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.background import Background
from ..backends.lease import Lease, lease, tidy_up
from ..backends.local import Folder
from ..errors import BadDataError, ConfigError, LogitStoreError, PartSealed, ShardCorrupt, SpecMismatch
from ..format.constants import COMMITS, LOG, ROOT_METADATA, SAMPLES, SEAL, SPEC
from ..format.documents import canonical_json, parse_json, sha256_hex
from ..format.layouts import features_of, form_of
from ..format.metadata import ArrayLayout
from ..format.shard import ShardEncoder, encode_small, shard_bytes
from ..identity import check_same
from .journal import (
    Commit,
    Seal,
    SealTable,
    StoredShard,
    append_log,
    commit_key,
    committed_blocks,
    put_same,
    read_checked,
    read_table,
    seal_blocks,
)
from .recovery import Plan, has_shards, read_commit, recover, stored_shard
from .root import Root
from .sealed_part import KINDS, absent_blocks, part_metadata, small_keys

log = logging.getLogger(__name__)


_OVERLAP_BYTES = 16 << 10
"""Blocks from this size on are written and synced by threads: for less, a thread costs more than it saves."""


_PIECE_BYTES = 1 << 20
"""Bytes of the widest array that are encoded at a time."""


_RECORD_BYTES = 4096
"""What a block's record takes on a disk, about."""


def plain_json(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`value` as JSON would give it back. Raises ConfigError for what JSON cannot hold."""
    try:
        return parse_json(canonical_json(dict(value)), where)
    except LogitStoreError as error:
        raise ConfigError(
            where,
            expected=error.expected,
            found=error.found,
            remedy="keep what is long elsewhere, and its digest here",
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            where,
            expected="text, finite numbers, lists and tables",
            found=str(error)[:80],
            remedy="leave the rest out",
        ) from None


class PartWriter:
    """Writes one part: what `SamplesWriter` and `CaptureWriter` share.

    Several threads may commit blocks at once; one of them begins, seals and closes.
    """

    def __init__(
        self,
        root: Root,
        name: str,
        *,
        views: int,
        identity: Mapping[str, Any],
        notes: Mapping[str, Any],
        layouts: Sequence[ArrayLayout],
        small: Mapping[str, NDArray[Any]],
    ) -> None:
        """Begin the part, or go on with it. Raises SpecMismatch where it was begun as something else."""
        self.root = root
        self.name = name
        self.views = views
        self.folder: Folder = root.folder.sub(name)
        self.layouts = {layout.name: layout for layout in layouts if layout.is_block_array}
        where = f"{root.path}: {name}"
        spec = plain_json({"identity": {**identity, "views": views}, "notes": dict(notes)}, where)
        self._spec = canonical_json(spec)
        if self.folder.exists(SPEC):
            there = self.folder.read(SPEC)
            self._compare(spec["identity"], parse_json(there, str(self.folder.path / SPEC)).get("identity"))
        kind = KINDS[name.partition("/")[0]]
        form = form_of(kind, [layout.name for layout in layouts])
        self._metadata = {ROOT_METADATA: part_metadata(kind, features_of(form))}
        for layout in layouts:
            self._metadata[layout.metadata_key] = layout.to_bytes()
            if not layout.is_block_array:
                chunks = encode_small(layout, small[layout.name])
                self._metadata.update(zip(small_keys(layout), chunks, strict=True))
        self._files: dict[str, str] = {}
        self._beginning = threading.Lock()
        self._lease = Lease(self.folder)
        weakref.finalize(self, self._lease.release)
        self._table: SealTable | None = None
        if self.sealed:
            self._committed = self._sealed_blocks()
            tidy_up(self.folder)
        else:
            self._compare_metadata()
            begun = self.folder.exists(SPEC)
            if begun and self._lease.take():
                self._recover()
                self._lease.share()
            self._committed = self._recorded_blocks()
        self._warn_of_space()

    def _recorded_blocks(self) -> set[tuple[int, int]]:
        """The blocks that are committed, for good: who linked a record may not have synced its name."""
        committed = committed_blocks(self.folder)
        if committed:
            self.folder.sync(COMMITS)
        return committed

    def _plan(self, spec: str) -> Plan:
        return Plan(tuple(self.layouts.values()), self.views, self.root.grid, spec)

    def _recover(self) -> None:
        """Mend what killed writers left, being alone."""
        done = recover(self.folder, self._plan(sha256_hex(self.folder.read(SPEC))))
        if done.adopted:
            log.info("%s: %d whole blocks without a record were adopted", self.name, len(done.adopted))
        if done.dropped:
            log.warning("%s: torn files were taken away: %s", self.name, ", ".join(done.dropped[:5]))

    def _sealed_blocks(self) -> set[tuple[int, int]]:
        """The blocks of a sealed part that are there; what else is missing is put again. Raises SpecMismatch."""
        (digest,) = (record.seal for record in self.root.records if record.part == self.name)
        seal = Seal.from_bytes(read_checked(self.folder, SEAL, digest), str(self.folder.path / SEAL))
        self._files = dict(seal.files)
        self._compare_metadata()
        absent = absent_blocks(self.folder, seal, list(self.layouts.values()))
        lost = [key for key in self._metadata if not self.folder.exists(key)]
        if absent or lost:
            self._lease.take()
            self._lease.share()
            for key in lost:
                put_same(self.folder, key, self._metadata[key])
        if absent:
            self._table = read_table(self.folder, seal)
        else:
            self._lease.release()
        return set(self._plan("").blocks()) - absent

    def _warn_of_space(self) -> None:
        """Say so beforehand where the disk has no room for what is missing."""
        needed = self.num_missing * _RECORD_BYTES
        for block in range(self.root.grid.num_blocks):
            missing = sum(not self.has_block(view, block) for view in range(self.views))
            rows = len(self.root.grid.rows(block))
            needed += missing * sum(shard_bytes(layout, rows) for layout in self.layouts.values())
        if needed and needed > (free := self.folder.free_bytes()):
            log.warning(
                "%s: %s bytes are still to be written and %s are free; what fits will be kept, and the rest can be "
                "written when there is more room",
                f"{self.root.path}: {self.name}",
                f"{needed:,}",
                f"{free:,}",
            )

    def _begin(self) -> None:
        """Put the spec and the metadata, when the first block is ready and not before.

        A teacher whose very first block is refused leaves no trace, and its name stays free.
        """
        with self._beginning:  # a lease is no matter for two threads at once
            if self._files:
                return
            # Before anything is put beside it: whoever made the store may not have come as far as this.
            self.root.folder.sync(LOG)
            if not self._lease.held:
                self._lease.take()
                self._lease.share()
            self.folder.prove_exclusive()
            self.folder.put_new(SPEC, self._spec)
            there = self.folder.read(SPEC)
            ours, theirs = (parse_json(data, str(self.folder.path / SPEC)) for data in (self._spec, there))
            self._compare(ours["identity"], theirs.get("identity"))
            for key, data in self._metadata.items():
                put_same(self.folder, key, data)
            files = {**self._metadata, SPEC: there}
            self._files = {key: sha256_hex(data) for key, data in files.items()}

    def _compare_metadata(self) -> None:
        """Refuse to go on with arrays of another form, or with other columns."""
        for key, data in self._metadata.items():
            if self.sealed:
                same = self._files.get(key) == sha256_hex(data)
            else:
                same = not self.folder.exists(key) or self.folder.read(key, len(data)) == data
            if not same:
                raise SpecMismatch(
                    f"{self.root.path}: {self.name}",
                    expected=f"the same {key.partition('/')[0]} with which it was begun",
                    found="another",
                    remedy="change it back, or give what is new another name; where nothing was changed, "
                    "run `logitstore verify`",
                )

    def _compare(self, ours: Mapping[str, Any], theirs: Any) -> None:
        remedy = "change it back, or give what is new another name (or another store)"
        if not self.sealed:
            remedy += f"; to begin it anew, delete {self.folder.path} and what was written of it"
        check_same(
            f"{self.root.path}: {self.name}",
            ours,
            theirs,
            made="with which it was begun",
            remedy=remedy,
        )

    @property
    def sealed(self) -> bool:
        """Whether the log names the part."""
        return self.root.has(self.name)

    @property
    def num_missing(self) -> int:
        """Blocks of all views that are still to be written."""
        return self.views * self.root.grid.num_blocks - len(self._committed)

    def has_block(self, view: int, block: int) -> bool:
        """Whether a block was committed when the part was opened, or since by this writer."""
        return (view, block) in self._committed

    def missing_blocks(self, view: int = 0) -> Iterator[range]:
        """The rows of each block of a view that is still to be written, by this writer or another."""
        for block in range(self.root.grid.num_blocks):
            if self.has_block(view, block):
                continue
            if self._table is None and self.folder.exists(commit_key(view, block)):
                self._committed.add((view, block))  # another writer has been here meanwhile
            else:
                yield self.root.grid.rows(block)

    def block_of(self, rows: "range | slice") -> int:
        """The block that `rows` are. Raises ConfigError where they are not exactly one block."""
        grid = self.root.grid
        if isinstance(rows, slice):
            rows = range(*rows.indices(grid.num_rows))
        block = rows.start // grid.block_rows
        if rows.step != 1 or not 0 <= block < grid.num_blocks or rows != grid.rows(block):
            raise ConfigError(
                f"{self.name}: rows",
                expected=f"the rows of one block ({grid.block_rows} from a multiple of that)",
                found=f"{rows.start} to {rows.stop}",
                remedy="write what missing_blocks() names",
            )
        return block

    def commit(self, view: int, block: int, arrays_of: Callable[[slice], Mapping[str, NDArray[Any]]]) -> None:
        """Put the shards of a block, then its record. When this returns the block is safe.

        arrays_of: gives the block arrays of some of its rows (counted from the block's first), in order.
        Raises PartSealed where another writer sealed the part meanwhile, SpecMismatch where the block was sealed with
        other bytes; nothing of the block is then kept.
        """
        rows = self.root.grid.rows(block)
        self._refuse_where_sealed()
        pieces: Iterable[Mapping[str, NDArray[Any]]] = map(arrays_of, self._pieces(len(rows)))
        if not self._files:
            pieces = list(pieces)  # a first block that is refused leaves no trace
            self._begin()
        objects = self._put_shards(view, block, pieces)
        record = Commit(view, block, rows, self._files[SPEC], objects)
        if not self.folder.put_new(record.key, record.to_bytes()):
            self._refuse_where_sealed()
            read_commit(self.folder, view, block, self._plan(self._files[SPEC]))
        self._committed.add((view, block))

    def _pieces(self, rows: int) -> Iterator[slice]:
        """The rows of a block in pieces that are encoded while the one before is written."""
        widest = max((layout.row_bytes for layout in self.layouts.values()), default=1)
        step = max(1, _PIECE_BYTES // max(1, widest))
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def _put_shards(
        self, view: int, block: int, pieces: Iterable[Mapping[str, NDArray[Any]]]
    ) -> dict[str, StoredShard]:
        """Encode, stage and publish the shards of a block; what is then there, ours or another writer's."""
        rows = len(self.root.grid.rows(block))
        keys = {name: layout.shard_key(view, block) for name, layout in self.layouts.items()}
        large = sum(shard_bytes(layout, rows) for layout in self.layouts.values()) >= _OVERLAP_BYTES
        encoders = {name: ShardEncoder(layout) for name, layout in self.layouts.items()}
        # The thread is entered last and so left first: no file is closed under its hands.
        with self.folder.stage(*keys.values()) as staged, Background(large) as background:
            new = dict(zip(keys, staged, strict=True))
            for arrays in pieces:
                for name, encoder in encoders.items():
                    background.write(new[name], encoder.append(arrays[name]))
                    encoder.check()
            for name, encoder in encoders.items():
                background.write(new[name], encoder.finish(), last=True)
                encoder.check()
            background.wait()
            objects = {name: StoredShard.of(encoder) for name, encoder in encoders.items()}
            self._compare_with_seal(view, block, objects)
            for name, won in background.publish(new).items():
                if not won:
                    self._refuse_where_sealed()
                    objects[name] = stored_shard(self.folder, self.layouts[name], view, block, rows)
            self._compare_with_seal(view, block, objects)
        return objects

    def _refuse_where_sealed(self) -> None:
        """Stop a writer that slept while others finished its work."""
        if self._table is None and self.folder.exists(SEAL):
            self._lease.release()
            self._committed = set(self._plan("").blocks())
            raise PartSealed(
                f"{self.root.path}: {self.name}",
                expected="a part that is still being written",
                found="that another writer sealed it meanwhile",
                remedy="stop writing it: nothing is missing, and this writer has changed nothing since",
            )

    def _compare_with_seal(self, view: int, block: int, objects: Mapping[str, StoredShard]) -> None:
        """Refuse to mend a sealed part with other bytes than those that were sealed."""
        if self._table is None:
            return
        for name, stored in objects.items():
            if stored != self._table.shard(name, view, block):
                rows = self.root.grid.rows(block)
                raise SpecMismatch(
                    f"{self.root.path}: {self.name}/{name}, view {view}, rows {rows.start} to {rows.stop - 1}",
                    expected="the bytes that were sealed",
                    found="others (another machine, other versions, or another teacher)",
                    remedy="restore the file from a copy, or capture this part again under another name",
                )

    def check_array(self, name: str, values: Any, rows: int) -> None:
        """Refuse what is not a block of this array, before a byte of it is written. Raises BadDataError."""
        layout = self.layouts[name]
        array = np.asarray(values)
        wanted = (rows, *layout.row_shape)
        if array.shape != wanted or not np.can_cast(array.dtype, layout.numpy_dtype, "safe"):
            raise BadDataError(
                f"{self.root.path}: {self.name}/{name}",
                expected=f"{layout.dtype} of shape {wanted}",
                found=f"{array.dtype} of shape {array.shape}",
                remedy="pass an item a row, of the dtype with which it was begun",
            )

    def seal(self) -> bool:
        """Seal the part where every block is there, and let go of it; whether it is sealed now.

        Raises StoreIncomplete for a capture whose samples are not sealed yet, ShardMissing for shards that were lost.
        """
        self.root.refresh()
        if not self.sealed:
            self._committed = self._recorded_blocks()
            if self.num_missing:
                return False
            self._begin()
            if not self._lease.held:
                self._lease.take()
                self._lease.share()
            plan = self._plan(self._files[SPEC])
            commits = [read_commit(self.folder, view, block, plan) for view, block in plan.blocks()]
            for commit in commits:
                self._check_shards(commit)
            samples = None if self.name == SAMPLES else self.root.part(SAMPLES).digest.removeprefix("sha256:")
            shape = (self.views, self.root.grid.num_blocks)
            digest = seal_blocks(self.folder, plan.layouts, commits, shape, self._files, samples)
            with lease(self.root.folder):
                append_log(self.root.folder, self.name, digest)
            self.root.refresh()
        self.root.folder.sync(LOG)  # also where another writer's record is there
        self.close()
        self.root.tidy_up()
        return True

    def _check_shards(self, commit: Commit) -> None:
        if not has_shards(self.folder, commit, self.layouts.values()):
            raise ShardCorrupt(
                f"{self.root.path}: {self.name}, view {commit.view}, rows {commit.rows.start} to {commit.rows.stop - 1}",
                expected="the shards that were committed",
                found="other files, or none",
                remedy="run `logitstore repair` and then the same command again",
            )

    def close(self) -> None:
        """Let go of the part, sealed or not: other writers may take over. Closing twice is closing once."""
        self._lease.release()
