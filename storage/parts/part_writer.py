"""A part in the writing: begun, block by block, sealed.

    begin     spec.json      decides the identity of the part; a later writer must have the same
    commit    shards         encoded, hashed and staged piece by piece; one piece is written while the next is encoded
              k.json         the commit record; only now is the block there
    seal      seal.json      once every block is committed; then the log names the part

A writer is bound to the store that it opened (`binding`): no block gets into another one that is at its path by then.

Nothing is changed in place, so any number of writers may do any of it at any time: the second finds it done.
A writer resumes with the blocks that are missing. A sealed part that lost shards is written the same way, but only
those blocks, and only with the sealed bytes.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

from numpy.typing import NDArray

from ..backends.background import Background, Crews, each
from ..backends.lease import lease, tidy_up
from ..backends.local import Folder, keep_directories
from ..backends.writable import Writable
from ..checks import check_view
from ..errors import (
    ConfigError,
    PartSealed,
    ShardCorrupt,
    ShardMissing,
    SpecMismatch,
)
from ..format.constants import COMMITS, LOG, ROOT_METADATA, SAMPLES, SEAL, SPEC
from ..format.documents import parse_spec, sha256_hex
from ..format.layouts import features_of, form_of
from ..format.metadata import ArrayLayout
from ..format.shard import ShardEncoder, decode_shard, encode_small, shard_bytes
from .binding import Binding
from .journal import (
    Commit,
    SealTable,
    StoredShard,
    commit_key,
    committed_blocks,
    put_same,
    read_table,
    seal_blocks,
)
from .log import append_log
from .part_spec import compare_identity, spec_bytes
from .recovery import Plan, has_shards, other_rows, read_commit, record_of_another, recover, stored_shard
from .root import Root
from .sealable import check_log, check_sealable
from .sealed_part import KINDS, absent_blocks, part_metadata, small_keys
from .values import check_rows_of

log = logging.getLogger(__name__)
_OVERLAP_BYTES = 16 << 10
"""Blocks of this size or more are written by a thread; for smaller ones it costs more than it saves."""
_PIECE_BYTES = 512 << 10
"""Bytes of the widest array that are encoded, then written and hashed by the thread. A block has a few of them: neither
the caller waits long for the last to be written, nor the thread for the first."""
_RECORD_BYTES = 4096
"""Approximate size of a commit record on a disk."""


class PartWriter:
    """A writer of one part, the base of `SamplesWriter` and `CaptureWriter`.

    Several threads may commit blocks at once; one of them begins, seals and closes. A forked child that writes on takes
    a lease of its own.
    """

    is_exact = False
    """Whether every writer makes the same arrays with the same bytes: those of rows, not those of a teacher."""
    piece_bytes = _PIECE_BYTES
    """Bytes of the widest array that are encoded at a time."""
    tile = 1
    """Rows of which pieces are multiples, where an encoding has such tiles."""
    rare: Collection[str] = ()
    """Arrays of hardly any bytes behind their codec, and of none in memory, whatever their size before it."""

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
        """Begin or resume the part. Raises SpecMismatch if it was begun with another identity."""
        self.root = root
        self.name = name
        self.views = views
        self._binding = Binding(root, name)
        self.layouts = {layout.name: layout for layout in layouts if layout.is_block_array}
        self._where = f"{root.path}: {name}"
        self._spec = spec_bytes(identity, views, notes, self._where)
        kind = KINDS[name.partition("/")[0]]
        form = form_of(kind, [layout.name for layout in layouts])
        check_sealable(form, layouts, root.grid, views, self._where)
        root.check_name(name)
        if not self.sealed:
            check_log(len(root.log), name, self._where)
        self._metadata = {ROOT_METADATA: part_metadata(kind, features_of(form))}
        for layout in layouts:
            self._metadata[layout.metadata_key] = layout.to_bytes()
            if not layout.is_block_array:
                chunks = encode_small(layout, small[layout.name])
                self._metadata.update(zip(small_keys(layout), chunks, strict=True))
        self._files: dict[str, str] = {}
        self._beginning = threading.Lock()
        self._crews = Crews()
        self._table: SealTable | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._warn_of_space()

    def _open(self) -> None:
        """Find the blocks that are there, after the remains of killed writers were mended."""
        self._binding.open()
        is_begun = self.folder.exists(SPEC)
        if is_begun:
            self._compare_spec(self.folder.read(SPEC))
        if self.sealed:
            self._committed = self._sealed_blocks()
            tidy_up(self.folder)
            return
        self._compare_metadata()
        if is_begun and self._binding.take():
            self._recover()
            self._binding.lease.share()
        self._committed = self._recorded_blocks()

    @property
    def folder(self) -> Writable:
        """The folder of the part, held open while this writer holds the part."""
        return self._binding.folder

    @property
    def remake(self) -> str:
        """The remedy for blocks of other rows that are there."""
        if self.folder.is_remote:
            return f"end all writers, delete {self.folder.path} and run the same command again"
        return "end all writers and run the same command again: a writer that is alone makes these rows again"

    def _check_still_bound(self) -> None:
        """Refuse to write on where the store was exchanged since the last check, as far as the place holds it open."""
        if self.folder.is_remote:
            self._check_bound()
        else:
            self.folder.check_in_place()

    def _check_bound(self) -> None:
        """Refuse to write into a store or a part other than the one that was opened. Raises WrongStore."""
        self._binding.check(self._files.get(SPEC))

    def _recorded_blocks(self) -> set[tuple[int, int]]:
        """Return the committed blocks, synced: the writer that linked a record may not have synced its name."""
        committed = committed_blocks(self.folder)
        if committed:
            self.folder.sync(COMMITS)
        return committed

    def _plan(self, spec: str) -> Plan:
        return Plan(tuple(self.layouts.values()), self.views, self.root.grid, spec)

    def _recover(self) -> None:
        """Repair the remains of killed writers; no other writer may be at work."""
        assert isinstance(self.folder, Folder)  # nobody is alone elsewhere
        plan = self._plan(sha256_hex(self.folder.read(SPEC)))
        done = recover(self.folder, plan, self.check_rows, is_exact=self.is_exact)
        if done.adopted:
            log.info("%s: adopted %d whole blocks without a record", self.name, len(done.adopted))
        if done.dropped:
            log.warning(
                "%s: deleted torn files and incomplete blocks: %s", self.name, ", ".join(done.dropped[:5])
            )

    def _sealed_blocks(self) -> set[tuple[int, int]]:
        """Return the blocks of a sealed part that are there; put missing metadata again. Raises SpecMismatch."""
        seal = self.root.seal(self.name)
        self._files = dict(seal.files)
        self._compare_metadata()
        absent = absent_blocks(self.folder, seal, list(self.layouts.values()))
        lost = [key for key in self._metadata if not self.folder.exists(key)]
        if absent or lost:
            self._binding.share()
            for key in lost:
                put_same(self.folder, key, self._metadata[key])
        if absent:
            self._table = read_table(self.folder, seal)
        else:
            self._binding.let_go()
        return set(self._plan("").blocks()) - absent

    def _warn_of_space(self) -> None:
        """Log a warning if the disk has no room for the missing blocks."""
        needed = self.num_missing * _RECORD_BYTES
        for block in range(self.root.grid.num_blocks):
            missing = sum(not self.has_block(view, block) for view in range(self.views))
            rows = len(self.root.grid.rows(block))
            layouts = [layout for name, layout in self.layouts.items() if name not in self.rare]
            needed += missing * sum(shard_bytes(layout, rows) for layout in layouts)
        if needed and needed > (free := self.folder.free_bytes()):
            log.warning(
                "%s: %s bytes remain to be written and %s are free; blocks that fit are kept, and the rest can be "
                "written once there is more room",
                self._where,
                f"{needed:,}",
                f"{free:,}",
            )

    def begin(self) -> None:
        """Put the spec and the metadata before the first block, for writers that are to share them."""
        if not self.sealed:
            self._begin()

    def _begin(self) -> None:
        """Put the spec and the metadata, once the first block is ready.

        A teacher whose first block is refused thus leaves no trace, and its name stays free.
        """
        with self._beginning:  # a lease is not safe for two threads
            if self._files and self._binding.is_taken:
                return
            # The process that made the store may not have synced its log yet.
            self._binding.store.sync(LOG)
            self._binding.share()
            self.folder.prove_exclusive()
            self.folder.put_new(SPEC, self._spec)
            spec = self.folder.read(SPEC)
            self._compare_spec(spec)
            for key, data in self._metadata.items():
                put_same(self.folder, key, data)
            files = {**self._metadata, SPEC: spec}
            self._files = {key: sha256_hex(data) for key, data in files.items()}

    def _compare_metadata(self) -> None:
        """Refuse to resume with arrays of another form, or with other columns. Raises SpecMismatch."""
        for key, data in self._metadata.items():
            if self.sealed:
                same = self._files.get(key) == sha256_hex(data)
            else:
                same = not self.folder.exists(key) or self.folder.read(key, len(data)) == data
            if not same:
                raise SpecMismatch(
                    self._where,
                    expected=f"the {key.partition('/')[0]} with which it was begun",
                    found=f"other {key.partition('/')[0]}",
                    remedy="change it back, or choose another name; if nothing was changed, run `logitstore verify`",
                )
        self.compare_arrays()

    def compare_arrays(self) -> None:
        """Refuse to resume with more arrays, or fewer, in a part whose spec does not tell them. Raises SpecMismatch."""

    def _meet(self) -> None:
        """Refuse a part that another writer began, with another identity, after this one had opened it. Raises SpecMismatch."""
        if self._files:
            return
        self._compare_spec(self.folder.read(SPEC))
        if self.sealed:
            self._files = dict(self.root.seal(self.name).files)
        self._compare_metadata()

    def _compare_spec(self, begun: bytes) -> None:
        """Refuse to resume with another identity. Raises SpecMismatch."""
        compare_identity(self.folder, self._where, self._spec, begun, sealed=self.sealed)
        self.compare_notes(parse_spec(begun, str(self.folder.path / SPEC))[1])

    def compare_notes(self, begun: Mapping[str, Any]) -> None:
        """Refuse to resume with other notes, where blocks depend on them. Raises SpecMismatch."""

    @property
    def sealed(self) -> bool:
        """Whether the log names the part."""
        return self.root.has(self.name)

    @property
    def num_missing(self) -> int:
        """Blocks of all views that are missing."""
        return self.views * self.root.grid.num_blocks - len(self._committed)

    def has_block(self, view: int, block: int) -> bool:
        """Return whether a block was committed when the part was opened, or since by this writer."""
        return (view, block) in self._committed

    def missing_blocks(self, view: SupportsIndex = 0) -> Iterator[range]:
        """Yield the rows of each block of a view that no writer has committed yet. Raises ConfigError for no such view."""
        view = check_view(view, self.views, self.name, "begin with more views")
        for block in range(self.root.grid.num_blocks):
            if self.has_block(view, block):
                continue
            if self._table is None and self.folder.exists(commit_key(view, block)):
                self._meet()
                self._committed.add((view, block))  # by another writer, meanwhile
            else:
                yield self.root.grid.rows(block)

    def block_of(self, rows: "range | slice") -> int:
        """Return the number of the block that `rows` are. Raises ConfigError unless they are exactly one block."""
        grid = self.root.grid
        if isinstance(rows, slice):
            rows = range(*rows.indices(grid.num_rows))
        block = rows.start // grid.block_rows
        if rows.step != 1 or not 0 <= block < grid.num_blocks or rows != grid.rows(block):
            raise ConfigError(
                f"{self.name}: rows",
                expected=f"the rows of one block ({grid.block_rows} from a multiple of that)",
                found=f"{rows.start} to {rows.stop}",
                remedy="write the rows of missing_blocks()",
            )
        return block

    def commit(self, view: int, block: int, arrays_of: Callable[[slice], Mapping[str, NDArray[Any]]]) -> None:
        """Put the shards of a block, then its record. Once it returns, the block is safe.

        arrays_of: gives the block arrays of a slice of the block's rows; called in order.
        Raises PartSealed if another writer sealed the part meanwhile, SpecMismatch if the block was sealed with
        other bytes; nothing of the block is then kept.
        """
        rows = self.root.grid.rows(block)
        with self._binding.checked(self._files.get(SPEC)):
            self._refuse_where_sealed()
            pieces: Iterable[Mapping[str, NDArray[Any]]] = map(arrays_of, self._pieces(len(rows)))
            if not self._files:
                pieces = list(pieces)  # a first block that is refused leaves no trace
            self._begin()
            objects = self._put_shards(view, block, pieces)
            self._check_still_bound()
            record = Commit(view, block, rows, self._files[SPEC], objects)
            if not self.folder.put_new(record.key, record.to_bytes()):
                self._refuse_where_sealed()
                read_commit(self.folder, view, block, self._plan(self._files[SPEC]))
        self._committed.add((view, block))

    def _pieces(self, rows: int) -> Iterator[slice]:
        """Return the slices of a block that are encoded one at a time."""
        layouts = [layout for name, layout in self.layouts.items() if name not in self.rare]
        widest = max((layout.row_bytes for layout in layouts), default=1)
        step = max(1, self.piece_bytes // max(1, widest) // self.tile) * self.tile
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def _put_shards(
        self, view: int, block: int, pieces: Iterable[Mapping[str, NDArray[Any]]]
    ) -> dict[str, StoredShard]:
        """Encode, stage and publish the shards of a block; return those that are there, ours or another writer's."""
        rows = self.root.grid.rows(block)
        keys = {name: layout.shard_key(view, block) for name, layout in self.layouts.items()}
        large = sum(shard_bytes(layout, len(rows)) for layout in self.layouts.values()) >= _OVERLAP_BYTES
        encoders = {name: ShardEncoder(layout) for name, layout in self.layouts.items()}
        # The thread is entered last and left first: no file is closed while it writes.
        crews = self._crews if large or self.folder.is_remote else None
        with self.folder.stage(*keys.values()) as staged, Background(crews) as background:
            new = dict(zip(keys, staged, strict=True))
            for arrays in pieces:
                for name, encoder in encoders.items():
                    background.write(new[name], encoder.append(arrays[name]), encoder.check)
            for name, encoder in encoders.items():
                background.write(new[name], encoder.finish(), encoder.check, last=True)
            background.wait()
            objects = {name: StoredShard.of(encoder) for name, encoder in encoders.items()}
            self._compare_with_seal(view, block, objects)
            for name, won in background.publish(new, in_order=self.folder.is_remote).items():
                if not won:
                    self._refuse_where_sealed()
                    there = stored_shard(self.folder, self.layouts[name], view, block, len(rows))
                    if self.is_exact and there != objects[name]:
                        raise other_rows(self._where, name, rows, self.folder)
                    objects[name] = there
                    if self.folder.is_remote:  # where no writer that is alone looks at it first
                        objects = self._of_another(view, block, objects)
            self._compare_with_seal(view, block, objects)
        return objects

    def _of_another(self, view: int, block: int, objects: dict[str, StoredShard]) -> dict[str, StoredShard]:
        """Return the shards of a block that another writer is putting, once its record vouches for all of them."""
        with contextlib.suppress(ShardMissing):  # which is put later
            self.check_rows(view, block)
        if self._table is None:
            plan = self._plan(self._files[SPEC])
            objects = dict(
                record_of_another(self.folder, view, block, plan, self._refuse_where_sealed).objects
            )
            self.check_rows(view, block)
        return objects

    def stored(self, name: str, view: int, block: int) -> NDArray[Any]:
        """Return a block of an uncompressed array as it is on the disk. Raises ShardMissing, ShardCorrupt."""
        layout, rows = self.layouts[name], len(self.root.grid.rows(block))
        key = layout.shard_key(view, block)
        where = str(self.folder.path / key)
        try:
            data, _ = self.folder.read_range(key, 0, shard_bytes(layout, rows) + 1)
        except FileNotFoundError:
            raise ShardMissing(
                where,
                expected="the shard of a committed block",
                found="no file",
                remedy="restore the file from a copy, or make a new store",
            ) from None
        return decode_shard(layout, data, rows, where)

    def check_rows(self, view: int, block: int) -> None:
        """Refuse a committed block that is of other rows than those of the store. Raises RowMismatch."""

    def _refuse_where_sealed(self) -> None:
        """Stop a writer that slept while others sealed the part. Raises PartSealed."""
        if self._table is None and self.folder.exists(SEAL):
            self._binding.lease.release()
            self._committed = set(self._plan("").blocks())
            raise PartSealed(
                self._where,
                expected="an unfinished part",
                found="a part that another writer sealed meanwhile",
                remedy="stop writing it: nothing is missing, and this writer has changed nothing since",
            )

    def _compare_with_seal(self, view: int, block: int, objects: Mapping[str, StoredShard]) -> None:
        """Refuse bytes other than those of the seal. Raises SpecMismatch."""
        if self._table is None:
            return
        for name, stored in objects.items():
            if stored != self._table.shard(name, view, block):
                rows = self.root.grid.rows(block)
                raise SpecMismatch(
                    f"{self._where}/{name}, view {view}, rows {rows.start} to {rows.stop - 1}",
                    expected="the sealed bytes",
                    found="other bytes (from another machine, other versions, or another teacher)",
                    remedy="restore the file from a copy, or capture this part again under another name",
                )

    def check_array(self, name: str, values: Any, rows: int) -> None:
        """Refuse values that are no block of an array, before a byte is written. Raises BadDataError."""
        layout = self.layouts[name]
        check_rows_of(f"{self._where}/{name}", values, layout.dtype, (rows, *layout.row_shape))

    def seal(self) -> bool:
        """Seal the part if it is complete, and release it; return whether it is sealed.

        Raises StoreIncomplete if the samples are not sealed yet, ShardCorrupt for lost shards, RowMismatch for blocks of
        other rows, WrongStore if the path leads to another store by now.
        """
        self.root.refresh()
        self._binding.open()
        if not self.sealed:
            self._committed = self._recorded_blocks()
            if self.num_missing:
                return False
            with self._binding.checked(self._files.get(SPEC)):
                self._seal()
            self.root.refresh()
        self._meet()
        self._binding.store.sync(LOG)  # also where another writer's record is there
        self.close()
        self.root.tidy_up()
        return True

    def _seal(self) -> None:
        """Seal the part, whose blocks are all committed."""
        self._begin()
        self._binding.share()
        plan = self._plan(self._files[SPEC])
        at_once = self.folder.is_remote
        with keep_directories():
            commits = each(
                lambda place: read_commit(self.folder, *place, plan), plan.blocks(), at_once=at_once
            )
            each(self._check_committed, commits, at_once=at_once)
        samples = None if self.name == SAMPLES else self.root.part(SAMPLES).digest.removeprefix("sha256:")
        shape = (self.views, self.root.grid.num_blocks)
        digest = seal_blocks(self.folder, plan.layouts, commits, shape, self._files, samples)
        self._check_still_bound()
        with lease(self._binding.store):
            append_log(self._binding.store, self.name, digest)

    def _check_committed(self, commit: Commit) -> None:
        """Refuse a block whose shards are not there, or of other rows. Raises ShardCorrupt, RowMismatch."""
        if not has_shards(self.folder, commit, self.layouts.values()):
            raise ShardCorrupt(
                f"{self._where}, view {commit.view}, rows {commit.rows.start} to {commit.rows.stop - 1}",
                expected="the shards that were committed",
                found="other files, or none",
                remedy="run `logitstore repair` and then the same command again",
            )
        self.check_rows(commit.view, commit.block)

    def close(self) -> None:
        """Release the part, sealed or not, to other writers. A second call does nothing."""
        self._crews.end()
        self._binding.let_go()
