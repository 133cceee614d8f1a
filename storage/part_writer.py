"""How does a part get written: begun, block by block, sealed?

1. `spec.json` comes first and decides whose part it is. Whoever comes later must mean the same.
2. A block is encoded as a whole, its shards are put, then its commit record; only then is it there.
3. When every block is there, the part is sealed and the log names it.

Each step is `put_new`, so that any number of writers may do any of them at any time: who comes second
finds it done. Resuming is asking which blocks are missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadDataError, ConfigError, ShardCorrupt, SpecMismatch
from .files import Folder
from .format import ROOT_METADATA, SAMPLES, SPEC, ArrayLayout, canonical_json, parse_json, sha256_hex
from .identity import check_same
from .journal import Commit, StoredShard, append_log, committed_blocks, put_same, seal_blocks
from .shard import crc32c, decode_shard, encode_shard, encode_small
from .store import KINDS, Root, part_metadata, small_keys


def plain_json(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`value` as JSON would give it back. Raises ConfigError for what JSON cannot hold."""
    try:
        return parse_json(canonical_json(dict(value)), where)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            where,
            expected="text, finite numbers, lists and tables",
            found=str(error)[:80],
            remedy="leave the rest out",
        ) from None


class PartWriter:
    """Writes one part: what `SamplesWriter` and `CaptureWriter` share."""

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
        spec = {
            "identity": {**plain_json(identity, where), "views": views},
            "notes": plain_json(notes, where),
        }
        self._spec = canonical_json(spec)
        if self.folder.exists(SPEC):
            there = self.folder.read(SPEC)
            self._compare(spec["identity"], parse_json(there, str(self.folder.path / SPEC)).get("identity"))
        self._metadata = {ROOT_METADATA: part_metadata(KINDS[name.partition("/")[0]])}
        for layout in layouts:
            self._metadata[layout.metadata_key] = layout.to_bytes()
            if not layout.is_block_array:
                chunks = encode_small(layout, small[layout.name])
                self._metadata.update(zip(small_keys(layout), chunks, strict=True))
        self._compare_metadata()
        self._files: dict[str, str] = {}
        self._committed = committed_blocks(self.folder)

    def _begin(self) -> None:
        """Put the spec and the metadata, when the first block is ready and not before.

        A teacher whose very first block is refused leaves no trace, and its name stays free.
        """
        if self._files:
            return
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
            there = self.folder.read(key) if self.folder.exists(key) else None
            if there != data and (there is not None or self.sealed):
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
        """The rows of each block of a view that is still to be written."""
        for block in range(self.root.grid.num_blocks):
            if not self.has_block(view, block):
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

    def commit(self, view: int, block: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put the shards of a block, then its record. When this returns the block is safe."""
        rows = len(self.root.grid.rows(block))
        for name, layout in self.layouts.items():
            self._check_array(name, layout, arrays[name], rows)
        self._begin()
        objects = {}
        for name, layout in self.layouts.items():
            shard = encode_shard(layout, arrays[name])
            key = layout.shard_key(view, block)
            stored = StoredShard.of(shard)
            while not self.folder.put_new(key, shard.data):
                theirs = self._adopt(layout, key, rows)
                if theirs is not None:
                    stored = theirs
                    break
                self.folder.remove(key)
            objects[name] = stored
        record = Commit(view, block, self.root.grid.rows(block), self._files[SPEC], objects)
        self.folder.put_new(record.key, record.to_bytes())
        self._committed.add((view, block))

    def _check_array(self, name: str, layout: ArrayLayout, values: Any, rows: int) -> None:
        """Refuse what is not a block of this array, before a byte of it is written."""
        array = np.asarray(values)
        wanted = (rows, *layout.row_shape)
        if array.shape != wanted or not np.can_cast(array.dtype, layout.numpy_dtype, "safe"):
            raise BadDataError(
                f"{self.root.path}: {self.name}/{name}",
                expected=f"{layout.dtype} of shape {wanted}",
                found=f"{array.dtype} of shape {array.shape}",
                remedy="pass an item a row, of the dtype with which it was begun",
            )

    def _adopt(self, layout: ArrayLayout, key: str, rows: int) -> StoredShard | None:
        """A shard that is there without a record (its writer was killed), where it is whole; None where not."""
        try:
            data = self.folder.read(key)
            decode_shard(layout, data, rows, key)
        except (ShardCorrupt, FileNotFoundError):
            return None
        stride = layout.chunk_rows * layout.row_bytes + 4
        chunks = -(-rows // layout.chunk_rows)
        sums = [crc32c(data[i * stride : (i + 1) * stride - 4]) for i in range(chunks)]
        sums += [0] * (layout.chunks_per_shard - chunks)
        return StoredShard(len(data), sha256_hex(data), tuple(sums))

    def read_commit(self, view: int, block: int) -> Commit:
        """The record of a committed block. Raises ManifestInvalid where it was changed."""
        key = f"{Commit(view, block, range(0), '', {}).key}"
        return Commit.from_bytes(self.folder.read(key), str(self.folder.path / key))

    def seal(self) -> bool:
        """Seal the part where every block is there; whether it is sealed now.

        Raises StoreIncomplete for a capture whose samples are not sealed yet.
        """
        self.root.refresh()
        if self.sealed:
            self.folder.drop_staging()
            return True
        self._committed = committed_blocks(self.folder)
        if self.num_missing:
            return False
        self._begin()
        shape = (self.views, self.root.grid.num_blocks)
        commits = [self.read_commit(view, block) for view in range(shape[0]) for block in range(shape[1])]
        samples = None if self.name == SAMPLES else self.root.part(SAMPLES).digest.removeprefix("sha256:")
        digest = seal_blocks(self.folder, list(self.layouts.values()), commits, shape, self._files, samples)
        append_log(self.root.folder, self.name, digest)
        self.folder.drop_staging()
        self.root.refresh()
        return True
