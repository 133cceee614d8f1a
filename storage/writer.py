"""How does a part get written: begun, block by block, sealed?

1. `spec.json` comes first and decides whose part it is. Whoever comes later must mean the same.
2. A block is encoded as a whole, its shards are put, then its commit record; only then is it there.
3. When every block is there, the part is sealed and the log names it.

Each step is `put_new`, so that any number of writers may do any of them at any time: who comes second
finds it done. Resuming is asking which blocks are missing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray

from .blocks import PartReader
from .encoding import FloatEncoding
from .errors import (
    BadDataError,
    BadLogitsError,
    ConfigError,
    LimitExceeded,
    RowMismatch,
    ShardCorrupt,
    ShardMissing,
    SpecMismatch,
)
from .files import Folder
from .format import (
    INPUT_DTYPES,
    MAX_SHARD_BYTES,
    ROOT_METADATA,
    SAMPLES,
    SPEC,
    ArrayLayout,
    canonical_json,
    check_name,
    parse_json,
    sha256_hex,
)
from .grid import plan_chunk_rows
from .journal import Commit, StoredShard, append_log, committed_blocks, put_same, seal_blocks
from .shard import crc32c, decode_shard, encode_shard, encode_small
from .store import KINDS, Root, part_metadata, small_keys


def difference(ours: Any, theirs: Any, path: str = "") -> tuple[str, str, str] | None:
    """The first place where two JSON values differ: (path, ours, theirs).

    >>> difference({"a": {"b": 1}}, {"a": {"b": 2}})
    ('a.b', '1', '2')
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*ours, *theirs}):
            found = difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if ours == theirs else (path, repr(ours), repr(theirs))


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
            if self.folder.exists(key) and self.folder.read(key) != data:
                raise SpecMismatch(
                    f"{self.root.path}: {self.name}",
                    expected=f"the same {key.partition('/')[0]} with which it was begun",
                    found="another",
                    remedy="change it back, or give what is new another name; where nothing was changed, "
                    "run `logitstore verify`",
                )

    def _compare(self, ours: Mapping[str, Any], theirs: Any) -> None:
        found = difference(ours, theirs)
        if found:
            path, wanted, there = found
            raise SpecMismatch(
                f"{self.root.path}: {self.name}",
                expected=f"{path} = {there[:160]}, with which it was begun",
                found=wanted[:160],
                remedy="change it back, or give what is new another name (or another store)",
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


def _layout(
    root: Root, name: str, dtype: str, dims: Sequence[str], shape: Sequence[int], fill: float
) -> ArrayLayout:
    """Layout of a block array of `samples` (no views)."""
    return _block_layout(root, name, dtype, ("row", *dims), (root.grid.num_rows, *shape), fill)


def _block_layout(
    root: Root, name: str, dtype: str, dimensions: tuple[str, ...], shape: tuple[int, ...], fill: float
) -> ArrayLayout:
    row_shape = shape[dimensions.index("row") + 1 :]
    row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize
    if root.grid.block_rows * row_bytes > MAX_SHARD_BYTES:
        raise LimitExceeded(
            f"{root.path}: {name}",
            expected=f"shards of at most {MAX_SHARD_BYTES} bytes",
            found=f"{root.grid.block_rows} rows of {row_bytes} bytes",
            remedy="make a store with a smaller block_rows",
        )
    chunk_rows = plan_chunk_rows(root.grid.block_rows, row_bytes)
    return ArrayLayout(name, shape, dtype, dimensions, root.grid.block_rows, chunk_rows, fill)


def _small_layout(name: str, dtype: str, dimensions: tuple[str, ...], shape: tuple[int, ...]) -> ArrayLayout:
    row_bytes = max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize)
    fill = math.nan if np.dtype(dtype).kind == "f" else -1 if np.dtype(dtype).kind == "i" else 0
    return ArrayLayout(
        name, shape, dtype, dimensions, max(1, min(shape[0], (32 << 20) // row_bytes)), 0, fill
    )


def text_rows(names: Sequence[str], width: int | None = None) -> NDArray[np.uint8]:
    """UTF-8, each name a row of bytes, padded with zero bytes: (names, width)."""
    encoded = [name.encode() for name in names]
    width = width or max(1, *(len(name) for name in encoded))
    return np.array([list(name.ljust(width, b"\0")) for name in encoded], dtype=np.uint8).reshape(-1, width)


def check_input_dtype(dtype: "np.dtype[Any] | str") -> None:
    """Refuse inputs that a store cannot keep. Raises ConfigError."""
    if np.dtype(dtype).name not in INPUT_DTYPES:
        raise ConfigError(
            "inputs",
            expected=f"one of the dtypes {', '.join(INPUT_DTYPES)}",
            found=str(dtype),
            remedy="convert them before they are digested, or do not store them",
        )


class SamplesWriter(PartWriter):
    """Writes `samples`: which input each row is, its label, and the input itself where wanted."""

    def __init__(
        self,
        root: Root,
        *,
        identity: Mapping[str, Any],
        class_names: Sequence[str] | None = None,
        input_shape: tuple[int, ...] | None = None,
        input_dtype: str | None = None,
        id_width: int | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin `samples`, or go on with it.

        identity: fingerprint of the transfer set, order, digest_of. input_shape, input_dtype: of one input,
        where the store keeps them. id_width: bytes of the longest id, where there are ids.
        """
        layouts = [
            _layout(root, "source", "int64", (), (), -1),
            _layout(root, "digest", "uint64", (), (), 0),
            _layout(root, "label", "int64", (), (), -1),
        ]
        if id_width:
            layouts.append(_layout(root, "id", "uint8", ("id_width",), (id_width,), 0))
        if input_shape is not None and input_dtype is not None:
            check_input_dtype(input_dtype)
            dims = [f"input_{axis}" for axis in range(len(input_shape))]
            fill = math.nan if np.dtype(input_dtype).kind == "f" else 0
            layouts.append(_layout(root, "input", input_dtype, dims, input_shape, fill))
        small = {}
        if class_names is not None:
            small["class_name"] = text_rows(class_names)
            shape = small["class_name"].shape
            layouts.append(_small_layout("class_name", "uint8", ("class", "class_name_width"), shape))
        self._id_width = id_width
        super().__init__(
            root, SAMPLES, views=1, identity=identity, notes=notes or {}, layouts=layouts, small=small
        )

    def write(
        self,
        rows: "range | slice",
        *,
        source: Int64[np.ndarray, " rows"],
        digest: UInt64[np.ndarray, " rows"],
        label: Int64[np.ndarray, " rows"],
        id: Sequence[str] | None = None,
        input: NDArray[Any] | None = None,
    ) -> None:
        """Commit a block, or check that a committed one is the same.

        Raises BadDataError for labels out of range, RowMismatch where a committed block holds other inputs.
        """
        block = self.block_of(rows)
        block_rows = self.root.grid.rows(block)
        classes = self.root.attributes.num_classes
        bad = np.flatnonzero((label < -1) | (label >= classes))
        if len(bad):
            raise BadDataError(
                f"row {block_rows.start + int(bad[0])} (index {int(source[bad[0]])} of the transfer set): label",
                expected=f"a class from 0 to {classes - 1}, or -1 for unknown",
                found=str(int(label[bad[0]])),
                remedy="mend the labels, or the number of classes",
            )
        if self.has_block(0, block):
            self._check_same(block, digest, source)
            return
        arrays: dict[str, Any] = {"source": source, "digest": digest, "label": label}
        if "id" in self.layouts:
            arrays["id"] = text_rows(id or [""] * len(block_rows), self._id_width)
        if "input" in self.layouts:
            arrays["input"] = input
        self.commit(0, block, arrays)

    def _check_same(
        self, block: int, digest: UInt64[np.ndarray, " rows"], source: Int64[np.ndarray, " rows"]
    ) -> None:
        """Compare with the digests that are there."""
        layout = self.layouts["digest"]
        key = layout.shard_key(0, block)
        rows = self.root.grid.rows(block)
        where = str(self.folder.path / key)
        try:
            data = self.folder.read(key)
        except FileNotFoundError:
            raise ShardMissing(
                where,
                expected="the shard of a block that was committed",
                found="no file",
                remedy="restore the file from a copy, or make a new store",
            ) from None
        there = decode_shard(layout, data, len(rows), where)
        check_digests(rows, digest, there, source)


def check_digests(
    rows: range,
    found: UInt64[np.ndarray, " rows"],
    expected: UInt64[np.ndarray, " rows"],
    source: Int64[np.ndarray, " rows"],
) -> None:
    """Refuse inputs that are not the ones the rows were made from. Raises RowMismatch with the first."""
    bad = np.flatnonzero(found != expected)
    if len(bad):
        first = int(bad[0])
        raise RowMismatch(
            f"row {rows.start + first} (index {int(source[first])} of the transfer set)",
            expected=f"an input with digest {int(expected[first]):016x}",
            found=f"{int(found[first]):016x} ({len(bad)} of {len(rows)} rows of this block differ)",
            remedy="use the transfer set that the store was made from, or make a new store",
        )


class CaptureWriter(PartWriter):
    """Writes the logits of one teacher. A context manager: leaving it seals what is complete."""

    def __init__(
        self,
        root: Root,
        name: str,
        *,
        identity: Mapping[str, Any],
        views: int,
        encoding: FloatEncoding,
        classes: Int64[np.ndarray, " classes"] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a capture, or go on with it.

        classes: the store's class of each column, -1 the dustbin class; all of them in order when None.
        Raises SpecMismatch where a capture of that name was begun as something else.
        """
        check_name(name, "capture")
        if views < 1:
            raise ConfigError(
                f"capture {name!r}: views", expected="at least 1", found=str(views), remedy="capture one"
            )
        num_classes = root.attributes.num_classes
        columns = np.arange(num_classes, dtype=np.int64) if classes is None else classes
        if columns.ndim != 1 or not len(columns) or ((columns < -1) | (columns >= num_classes)).any():
            raise ConfigError(
                f"capture {name!r}: classes",
                expected=f"for each column a class from 0 to {num_classes - 1}, or -1 for the dustbin class",
                found=str(columns.tolist())[:80],
                remedy="name classes of this store",
            )
        self.columns = columns
        self.encoding = encoding
        self.teacher = name
        grid = root.grid
        layouts = [
            _block_layout(
                root,
                spec.name,
                spec.dtype,
                ("view", "row", *spec.row_dimensions),
                (views, grid.num_rows, *spec.row_shape),
                spec.fill,
            )
            for spec in encoding.arrays(len(columns))
        ]
        layouts.append(_block_layout(root, "seen", "uint64", ("view", "row"), (views, grid.num_rows), 0))
        layouts.append(_small_layout("classes", "int64", ("class",), columns.shape))
        super().__init__(
            root,
            f"teachers/{name}",
            views=views,
            identity={"encoding": encoding.describe(), **identity},
            notes=notes or {},
            layouts=layouts,
            small={"classes": columns},
        )
        self._augmented = identity.get("augmentation") is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.seal()

    def write(
        self,
        rows: "range | slice",
        logits: Any,
        view: int = 0,
        seen: UInt64[np.ndarray, " rows"] | None = None,
    ) -> None:
        """Commit the logits of one block of one view. A block that is there already stays as it is.

        rows: the rows of one block, as missing_blocks() names them.
        logits: (len(rows), classes), floating, natural-log units, any additive constant per row.
        seen: `digest_rows` of the inputs as the teacher got them; may be left out where nothing is augmented.
        Raises ConfigError for other rows, BadLogitsError for NaN, infinities, wrong shapes or float16 overflow.
        """
        block = self.block_of(rows)
        if not 0 <= view < self.views:
            raise ConfigError(
                f"{self.name}: view",
                expected=f"0 to {self.views - 1}",
                found=str(view),
                remedy="begin with more views",
            )
        if self.has_block(view, block):
            return
        block_rows = self.root.grid.rows(block)
        values = np.asarray(logits)
        where = f"teacher {self.teacher!r}, view {view}"
        expected = (len(block_rows), len(self.columns))
        if values.shape != expected or values.dtype.kind != "f":
            raise BadLogitsError(
                f"{where}, rows {block_rows.start} to {block_rows.stop - 1}",
                expected=f"floating logits of shape {expected} (rows, classes)",
                found=f"{values.dtype} of shape {values.shape}",
                remedy="use a teacher with the classes of this store, and write whole blocks",
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is then refused
            values = values.astype(np.float32, copy=False)
        arrays = self.encoding.encode(values, block_rows.start, where)
        arrays["seen"] = self._seen(block_rows, seen)
        self.commit(view, block, arrays)

    def _seen(self, rows: range, seen: UInt64[np.ndarray, " rows"] | None) -> UInt64[np.ndarray, " rows"]:
        if seen is not None:
            return seen
        if self._augmented:
            raise ConfigError(
                f"{self.name}: seen",
                expected="the digests of the augmented inputs",
                found="none",
                remedy="pass seen=digest_rows(inputs) with what the teacher was given",
            )
        return PartReader(self.root.part(SAMPLES), self.root.grid).read("digest", rows)


def write_clustering(
    root: Root, name: str, arrays: Mapping[str, NDArray[Any]], *, identity: Mapping[str, Any]
) -> str:
    """Write and seal a part without blocks, `clusters/<name>`; its digest.

    arrays: by name; `_CLUSTERING` says which there may be. Writing the same one again changes nothing.
    Raises SpecMismatch where the name is taken by another.
    """
    check_name(name, "clustering")
    layouts = []
    for array, values in arrays.items():
        dimensions, dtype = _CLUSTERING[array]
        layouts.append(_small_layout(array, dtype, dimensions, values.shape))
    part = PartWriter(
        root, f"clusters/{name}", views=0, identity=identity, notes={}, layouts=layouts, small=arrays
    )
    part.seal()
    return root.part(part.name).digest


_CLUSTERING: Mapping[str, tuple[tuple[str, ...], str]] = {
    "covariance": (("class", "other_class"), "float32"),
    "assignment": (("class",), "int64"),
    "centres": (("cluster", "class"), "float32"),
    "sets": (("cluster", "member"), "int64"),
}
"""Arrays of a clustering: their dimensions and dtype."""
