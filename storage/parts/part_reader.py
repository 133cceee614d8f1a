"""Rows of a sealed part, read without trust in its bytes.

1. The seal holds the size of each shard and the checksum of each of its chunks.
2. The chunks that hold the rows are read at once, a run of chunks a shard.
3. Each chunk's crc32c is compared with that of the seal, not only with the shard's own. A sound chunk in the wrong
   place is therefore an error. So is a missing shard, which is never replaced by fill values.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, SupportsIndex

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..backends.place import SealedShard
from ..backends.pointers import naming_pointer_at
from ..backends.posix import LARGE, room_for
from ..checks import check_view
from ..errors import ConfigError, LimitExceeded, PartNotFound, ShardCorrupt, ShardMissing
from ..format.codec import RAW
from ..format.grid import Grid
from ..format.metadata import ArrayLayout
from ..format.shard import (
    CRC_BYTES,
    REMAKE,
    UNSEALABLE,
    check_crc32c,
    check_shard_bytes,
    chunk_bytes,
    chunk_ends,
    decode_chunk,
    index_bytes,
)
from .sealed_part import SealedPart

_AT_ONCE = 16
"""Shards of a remote store that are read at once."""
_BYTES_AT_ONCE = 128 << 20
"""Bytes of such shards together."""
_MOST_SHARDS = 4096
"""Shards of which a reader keeps what it has checked, of 8 bytes a chunk."""


def check_rows(rows: Any, num_rows: int, name: str = "rows") -> range | NDArray[np.int64]:
    """Return rows as a contiguous range or ascending int64. Raises ConfigError for rows out of order or range.

    A slice beyond the rows is clipped, as everywhere in Python. name: the argument, for messages.

    >>> check_rows(slice(2, None), 5), check_rows([0, 3, 3], 5).tolist()
    (range(2, 5), [0, 3, 3])
    """

    def bad(found: str, remedy: str) -> ConfigError:
        expected = f"a slice, or ascending integers from 0 to {num_rows - 1}"
        return ConfigError(name, expected=expected, found=found, remedy=remedy)

    unsorted = "sort them, and leave out those that the store does not have"
    if isinstance(rows, slice):
        try:
            rows = range(*rows.indices(num_rows))
        except (TypeError, ValueError) as error:
            raise bad(f"{rows} ({error})", "pass whole numbers") from None
    if isinstance(rows, range) and rows.step == 1:
        if rows.start < 0 or rows.stop > num_rows:
            raise bad(f"{rows.start} to {rows.stop}", unsorted)
        return rows
    try:
        values = np.asarray(rows)
    except ValueError:
        raise bad(repr(rows)[:80], "pass one list of whole numbers") from None
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
        remedy = "pass np.flatnonzero(mask)" if values.dtype.kind == "b" else "pass one list of whole numbers"
        raise bad(f"an array of shape {values.shape} and dtype {values.dtype}", remedy)
    numbers = values.astype(np.int64)
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= num_rows or (np.diff(numbers) < 0).any()):
        outside = numbers[(numbers < 0) | (numbers >= num_rows)]
        raise bad(f"row {outside[0]}" if len(outside) else "rows that go down", unsorted)
    return numbers


class _Chunks:
    """Takes the bytes of consecutive chunks piecewise; copies payloads to their places and sums them up."""

    def __init__(self, payloads: Sequence[NDArray[np.uint8]]) -> None:
        self._payloads = payloads
        self._number = self._done = self._running = 0  # current chunk, its bytes so far, their checksum
        self._checksum = np.empty(CRC_BYTES, np.uint8)
        self._placed = False  # whether the next bytes are read into their place
        self.taken = 0
        """Bytes so far."""
        self.crc32c: list[int] = []
        """Checksum of each complete payload."""

    def place(self) -> NDArray[np.uint8] | None:
        """Return the target of the next bytes; None if few of them remain of a payload."""
        payload = self._payloads[self._number]
        if self._placed and self._done >= len(payload):
            return self._checksum[self._done - len(payload) :]
        rest = payload[self._done :]
        self._placed = len(rest) >= LARGE
        return rest if self._placed else None

    def take(self, piece: NDArray[np.uint8]) -> None:
        """Take the next bytes, any number of them."""
        self.taken += len(piece)
        while len(piece):
            payload = self._payloads[self._number]
            part = piece[: max(0, len(payload) - self._done)]
            if len(part):
                if not self._placed:
                    payload[self._done : self._done + len(part)] = part
                self._running = int(google_crc32c.extend(self._running, part))
            else:
                part = piece[: len(payload) + CRC_BYTES - self._done]
            self._done += len(part)
            piece = piece[len(part) :]
            if self._done == len(payload) + CRC_BYTES:
                self.crc32c.append(self._running)
                self._number, self._done, self._running = self._number + 1, 0, 0


@dataclass(frozen=True)
class _Shard:
    """A shard as its seal and its index have it, checked once for all its chunks."""

    where: str
    """Its file and rows, in messages."""
    sealed: SealedShard
    """Its key, size and digest."""
    checksums: NDArray[np.uint32]
    """crc32c of each chunk, by the seal."""
    ends: NDArray[np.int64]
    """The end of each chunk that has rows, checksum included."""

    def check_size(self, size: int) -> None:
        """Refuse a file of another size. Raises ShardCorrupt."""
        if size != self.sealed.size:
            raise ShardCorrupt(
                self.where, expected=f"{self.sealed.size} bytes", found=str(size), remedy=REMAKE
            )

    def missing(self, part: SealedPart) -> ShardMissing:
        """Return the error of a file that is not there."""
        found, remedy = "no file", REMAKE
        if part.is_gone:
            found, remedy = "no file: `logitstore rm` has removed this part", "read another capture"
        expected = f"a shard of {self.sealed.size} bytes"
        return ShardMissing(self.where, expected=expected, found=found, remedy=remedy)


class PartReader:
    """A reader of the block arrays of one sealed part."""

    def __init__(self, part: SealedPart, grid: Grid) -> None:
        self.part = part
        self.grid = grid
        self._shards: dict[tuple[str, int, int], _Shard] = {}

    def sealed_shard(self, array: str, view: int, block: int) -> SealedShard:
        """Return key, size and digest of a shard, as the seal has them."""
        table, key = self.part.table, self.part.layouts[array].shard_key(view, block)
        return SealedShard(key, table.size(array, view, block), table.sha256(array, view, block))

    def layout(self, array: str) -> ArrayLayout:
        """Return the layout of a block array. Raises PartNotFound for another name."""
        layout = self.part.layouts.get(array)
        if layout is None or not layout.is_block_array:
            raise PartNotFound(
                str(self.part.folder.path),
                expected="one of its arrays of rows",
                found=repr(array),
                remedy="look at the parts with `logitstore inspect`",
            )
        return layout

    def read(self, array: str, rows: Any, view: SupportsIndex = 0) -> NDArray[Any]:
        """Return rows of one view of an array as stored, (len(rows), *row shape).

        Raises ConfigError for rows or a view out of range, LimitExceeded for rows that exceed the memory,
        ShardMissing, ShardCorrupt.
        """
        layout = self.layout(array)
        rows = check_rows(rows, self.grid.num_rows)
        try:
            out = room_for((len(rows), *layout.row_shape), layout.numpy_dtype)
            self.read_into(array, rows, view, out)
        except MemoryError:
            raise LimitExceeded(
                f"{self.part.folder.path}: {array}",
                expected="rows that fit into memory",
                found=f"{len(rows)} rows of {layout.row_bytes} bytes",
                remedy="read fewer rows at a time",
            ) from None
        return out

    def read_into(self, array: str, rows: Any, view: SupportsIndex, out: NDArray[Any]) -> None:
        """Read rows into `out`: contiguous, (len(rows), *row shape), of the array's dtype.

        Whole chunks of an uncompressed array are read straight into their place.
        """
        layout = self.layout(array)
        rows = check_rows(rows, self.grid.num_rows)
        views = max(1, self.part.seal.views) if layout.row_axis else 1
        view = check_view(view, views, self.part.name, "choose a view that was captured")
        if isinstance(rows, range):
            spans = list(self.grid.split(rows.start, rows.stop))

            def read(place: tuple[int, range]) -> None:
                block, span = place
                into = out[span.start - rows.start : span.stop - rows.start]
                self._read_span(layout, view, block, span, into)

            if self.part.folder.is_remote and len(spans) > 1:
                largest = max(1, self.grid.block_rows * layout.row_bytes)
                with ThreadPoolExecutor(max(1, min(_AT_ONCE, _BYTES_AT_ONCE // largest))) as threads:
                    list(threads.map(read, spans))
            else:
                for place in spans:
                    read(place)
        else:
            self._read_scattered(layout, view, rows, out)

    def _read_span(self, layout: ArrayLayout, view: int, block: int, rows: range, out: NDArray[Any]) -> None:
        """Read consecutive rows of one block into `out`."""
        size = layout.chunk_rows
        start = rows.start - block * self.grid.block_rows
        stop = start + len(rows)
        first, last = start // size, (stop - 1) // size
        targets, copies = [], []
        for chunk in range(first, last + 1):
            begin, end = max(start, chunk * size), min(stop, (chunk + 1) * size)
            target = out[begin - start : end - start]
            if end - begin < size:  # A part of a chunk is copied from the whole chunk.
                whole = room_for((size, *layout.row_shape), layout.numpy_dtype)
                copies.append((target, whole[begin - chunk * size : end - chunk * size]))
                target = whole
            targets.append(target)
        self._read_chunks(layout, view, block, first, targets)
        for target, values in copies:
            target[...] = values

    def _read_scattered(
        self, layout: ArrayLayout, view: int, rows: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Read ascending rows into `out`; neighbouring chunks at once, chunks without rows not at all."""
        if not len(rows):
            return
        per_block = self.grid.block_rows // layout.chunk_rows
        breaks: list[int] = []
        if int(rows[0]) // layout.chunk_rows != int(rows[-1]) // layout.chunk_rows:
            apart = (np.diff(rows // layout.chunk_rows) > 1) | (np.diff(rows // self.grid.block_rows) > 0)
            breaks = (np.flatnonzero(apart) + 1).tolist()
        for begin, end in pairwise([0, *breaks, len(rows)]):
            first, last = int(rows[begin]) // layout.chunk_rows, int(rows[end - 1]) // layout.chunk_rows
            block = first // per_block
            shape = (last - first + 1, layout.chunk_rows, *layout.row_shape)
            decoded = room_for(shape, layout.numpy_dtype)
            self._read_chunks(layout, view, block, first - block * per_block, list(decoded))
            flat = decoded.reshape(-1, *layout.row_shape)
            out[begin:end] = flat[rows[begin:end] - first * layout.chunk_rows]

    def _read_chunks(
        self, layout: ArrayLayout, view: int, block: int, first: int, targets: Sequence[NDArray[Any]]
    ) -> None:
        """Read inner chunks first, first + 1, … of a shard, each into a target of a chunk's rows, and check them."""
        try:
            self._read_checked(layout, view, block, first, targets)
        except ShardCorrupt as error:
            # Of a remote store, the bytes may have changed on the disk of this machine.
            sealed = self.sealed_shard(layout.name, view, block)
            if not self.part.folder.forget(sealed):
                raise naming_pointer_at(error, self.part.folder, sealed.key) from None
            self._shards.pop((layout.name, view, block), None)
            self._read_checked(layout, view, block, first, targets)

    def _read_checked(
        self, layout: ArrayLayout, view: int, block: int, first: int, targets: Sequence[NDArray[Any]]
    ) -> None:
        shard = self._shards.get((layout.name, view, block)) or self._shard(layout, view, block)
        end = first + len(targets)
        borders = [int(shard.ends[first - 1]) if first else 0, *shard.ends[first:end].tolist()]
        if layout.codec == RAW:
            payloads = [target.reshape(-1).view(np.uint8) for target in targets]
        else:
            payloads = [
                room_for((stop - start - CRC_BYTES,), np.dtype(np.uint8)) for start, stop in pairwise(borders)
            ]
        chunks = _Chunks(payloads)
        offset, length = borders[0], borders[-1] - borders[0]
        try:
            size = self.part.folder.read_sealed(shard.sealed, offset, length, chunks.take, chunks.place)
        except FileNotFoundError:
            raise shard.missing(self.part) from None
        shard.check_size(size if chunks.taken == length else offset + chunks.taken)
        # With those of the seal, not those behind the chunks.
        check_crc32c(chunks.crc32c, shard.checksums[first:end], shard.where, first)
        if layout.codec != RAW:
            for chunk, (payload, target) in enumerate(zip(payloads, targets, strict=True), first):
                decode_chunk(layout, payload, target, shard.where, chunk)

    def _shard(self, layout: ArrayLayout, view: int, block: int) -> _Shard:
        """Return what is known of a shard; the index of compressed chunks is read once. Raises ShardCorrupt."""
        rows, table = self.grid.rows(block), self.part.table
        sealed = self.sealed_shard(layout.name, view, block)
        where = f"{self.part.folder.path / sealed.key} (rows {rows.start} to {rows.stop - 1})"
        size = sealed.size
        check_shard_bytes(layout, len(rows), size, where, UNSEALABLE)
        # All chunks of one length, unless an index tells.
        ends = np.arange(1, -(-len(rows) // layout.chunk_rows) + 1) * chunk_bytes(layout)[1]
        shard = _Shard(where, sealed, table.checksums(layout.name, view, block), ends)
        if layout.codec != RAW:
            length = index_bytes(layout)
            pieces: list[bytes] = []
            try:
                found = self.part.folder.read_sealed(
                    sealed, size - length, length, lambda piece: pieces.append(piece.tobytes())
                )
            except FileNotFoundError:
                raise shard.missing(self.part) from None
            index = b"".join(pieces)
            shard.check_size(found if len(index) == length else size - length + len(index))
            shard = replace(shard, ends=chunk_ends(layout, index, len(rows), size, where))
        if len(self._shards) >= _MOST_SHARDS:
            self._shards.clear()
        self._shards[layout.name, view, block] = shard
        return shard


class LazyRows:
    """A block array that is read on indexing: `inputs[10:20]`, `inputs[[3, 7]]`, `len(inputs)`."""

    def __init__(self, reader: PartReader, array: str) -> None:
        self._reader = reader
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *row shape)."""
        return self._reader.layout(self._array).shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of its elements."""
        return self._reader.layout(self._array).numpy_dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, int | np.integer):
            return np.asarray(self._reader.read(self._array, range(int(rows), int(rows) + 1))[0])
        return self._reader.read(self._array, rows)
