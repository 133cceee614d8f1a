"""How does a block of one array become the bytes of one shard, and back?

A shard (Zarr's `sharding_indexed`) is its inner chunks one after another, each followed by its crc32c,
then an index of (offset, length) for each chunk, then the index's crc32c:

    ┌─────────┬─────┬─────────┬─────┬───┬────────────────────────────┬─────┐
    │ chunk 0 │ crc │ chunk 1 │ crc │ … │ offset, length of each, u8 │ crc │
    └─────────┴─────┴─────────┴─────┴───┴────────────────────────────┴─────┘

We write shards ourselves, whole, once: a shard written through Zarr is read, changed and written back,
which loses data where two writers meet and fails where the old one is torn.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from .errors import ShardCorrupt
from .format import ArrayLayout

CRC_BYTES = 4
ABSENT = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that is not there."""


@dataclass(frozen=True)
class Shard:
    """The bytes of a shard and the checksums that bind each chunk to its place."""

    data: bytes
    """The whole shard, as it is stored."""
    crc32c: tuple[int, ...]
    """crc32c of each inner chunk's payload; 0 where the chunk is absent."""


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """crc32c (Castagnoli) of bytes, or of a read-only contiguous array, as an unsigned integer.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return int(google_crc32c.value(data))


class ShardEncoder:
    """Lays out the rows of a block as one shard, piece by piece, without copying them.

    `append` gives the buffers to write; `check`, which may run while they are written, hashes them and compares each
    chunk's checksum again.
    """

    def __init__(self, layout: ArrayLayout) -> None:
        self._layout = layout
        self._num_rows = 0  # in the chunk that is open
        self._running = self._again = 0  # its checksum so far, taken before and after it was handed out
        self._unchecked: list[tuple[NDArray[np.uint8], int | None]] = []
        self._index = np.full((layout.chunks_per_shard, 2), ABSENT, dtype="<u8")
        self._crc32c: list[int] = []
        self._sha256 = sha256()
        self.size = 0
        """Bytes so far."""

    def append(self, values: NDArray[Any]) -> list[memoryview]:
        """The bytes that follow from the next rows: (rows, *row_shape), any number of them, not to be changed after."""
        rows = np.ascontiguousarray(values, dtype=self._layout.numpy_dtype)
        buffers: list[memoryview] = []
        while len(rows):
            room = self._layout.chunk_rows - self._num_rows
            piece, rows = rows[:room], rows[room:]
            payload = piece.reshape(-1).view(np.uint8)
            self._running = int(google_crc32c.extend(self._running, payload))
            self._num_rows += len(piece)
            buffers.append(self._hand_out(payload))
            if self._num_rows == self._layout.chunk_rows:
                buffers.append(self._end_chunk())
        return buffers

    def finish(self) -> list[memoryview]:
        """The fill of the last chunk where there is any, and the index."""
        buffers: list[memoryview] = []
        if self._num_rows:
            shape = (self._layout.chunk_rows - self._num_rows, *self._layout.row_shape)
            buffers = self.append(np.full(shape, self._layout.fill, dtype=self._layout.numpy_dtype))
        index = self._index.tobytes()
        footer = index + crc32c(index).to_bytes(CRC_BYTES, "little")
        self._running = crc32c(footer)
        return [*buffers, self._hand_out(np.frombuffer(footer, np.uint8), self._running)]

    def check(self) -> None:
        """Hash what was handed out since the last call. Raises ShardCorrupt where a chunk has changed since."""
        for buffer, ends_with in self._unchecked:
            self._sha256.update(buffer.data)
            if ends_with is None or len(buffer) > CRC_BYTES:
                self._again = int(google_crc32c.extend(self._again, buffer))
            if ends_with is None:
                continue
            if self._again != ends_with:
                raise ShardCorrupt(
                    self._layout.name,
                    expected="a block that stays as it was encoded",
                    found="one that changed in memory",
                    remedy="check this machine's memory; nothing of the block was kept",
                )
            self._again = 0
        self._unchecked = []

    @property
    def crc32c(self) -> tuple[int, ...]:
        """crc32c of each inner chunk's payload; 0 where the chunk is absent."""
        return (*self._crc32c, *[0] * (self._layout.chunks_per_shard - len(self._crc32c)))

    @property
    def sha256(self) -> str:
        """Of all bytes that were checked."""
        return self._sha256.hexdigest()

    def _end_chunk(self) -> memoryview:
        payload_bytes = self._layout.chunk_rows * self._layout.row_bytes
        self._index[len(self._crc32c)] = self.size - payload_bytes, payload_bytes + CRC_BYTES
        self._crc32c.append(self._running)
        checksum = np.frombuffer(self._running.to_bytes(CRC_BYTES, "little"), np.uint8)
        buffer = self._hand_out(checksum, self._running)
        self._running = self._num_rows = 0
        return buffer

    def _hand_out(self, buffer: NDArray[np.uint8], ends_with: int | None = None) -> memoryview:
        """ends_with: the checksum of what is complete with this buffer."""
        self._unchecked.append((buffer, ends_with))
        self.size += len(buffer)
        return buffer.data


def shard_of(layout: ArrayLayout, values: NDArray[Any]) -> tuple[bytes, ShardEncoder]:
    """The bytes of one shard that holds `values`, and the encoder that knows their checksums and digest."""
    encoder = ShardEncoder(layout)
    buffers = [*encoder.append(values), *encoder.finish()]
    encoder.check()
    return b"".join(buffers), encoder


def encode_shard(layout: ArrayLayout, values: NDArray[Any]) -> Shard:
    """Lay out `values` (rows, *row_shape), at most a shard's rows, as one shard of `layout`."""
    data, encoder = shard_of(layout, values)
    return Shard(data, encoder.crc32c)


def shard_bytes(layout: ArrayLayout, rows: int) -> int:
    """Bytes of a shard that holds `rows` rows."""
    chunks = -(-rows // layout.chunk_rows)
    index = layout.chunks_per_shard * 16 + CRC_BYTES
    return chunks * (layout.chunk_rows * layout.row_bytes + CRC_BYTES) + index


def chunk_span(layout: ArrayLayout, first: int, last: int) -> tuple[int, int]:
    """Offset and length, in a shard, of the inner chunks first…last (included), checksums and all."""
    stride = layout.chunk_rows * layout.row_bytes + CRC_BYTES
    return first * stride, (last - first + 1) * stride


def decode_chunks(
    layout: ArrayLayout,
    data: bytes | NDArray[np.uint8],
    expected: NDArray[np.uint32],
    where: str,
    first: int = 0,
) -> NDArray[Any]:
    """The rows of consecutive inner chunks, checked: (chunks x chunk_rows, *row_shape).

    data: the chunks' payloads, each followed by its crc32c, as they lie in the shard.
    expected: the crc32c that the seal has for each of them. first: number of the first chunk, for messages.
    Raises ShardCorrupt where a chunk is not the one that was committed.
    """
    payload = layout.chunk_rows * layout.row_bytes
    table = np.frombuffer(data, dtype=np.uint8).reshape(len(expected), payload + CRC_BYTES)
    for chunk, wanted in enumerate(expected):
        found = crc32c(table[chunk, :payload])
        if found != wanted:
            raise ShardCorrupt(
                f"{where}, chunk {first + chunk}",
                expected=f"crc32c {int(wanted):08x}",
                found=f"{found:08x}",
                remedy="run `logitstore repair`, and then again what wrote it; or restore the file from a copy",
            )
    rows = np.ascontiguousarray(table[:, :payload]).view(layout.numpy_dtype)
    return rows.reshape(-1, *layout.row_shape)


def decode_shard(layout: ArrayLayout, data: bytes, rows: int, where: str) -> NDArray[Any]:
    """A whole shard by its own index and checksums, without a seal. Raises ShardCorrupt.

    For recovery, where a shard is there and its commit record is not.
    """
    shard_ok = len(data) == shard_bytes(layout, rows)
    if shard_ok:
        footer = data[-layout.chunks_per_shard * 16 - CRC_BYTES : -CRC_BYTES]
        shard_ok = crc32c(footer).to_bytes(CRC_BYTES, "little") == data[-CRC_BYTES:]
    if not shard_ok:
        raise ShardCorrupt(
            where,
            expected=f"a whole shard of {shard_bytes(layout, rows)} bytes",
            found=f"{len(data)} bytes that are not one",
            remedy="remove the file and resume the capture",
        )
    chunks = -(-rows // layout.chunk_rows)
    offset, length = chunk_span(layout, 0, chunks - 1)
    body = data[offset : offset + length]
    stride = length // chunks
    stored = np.array(
        [
            int.from_bytes(body[(i + 1) * stride - CRC_BYTES : (i + 1) * stride], "little")
            for i in range(chunks)
        ],
        dtype=np.uint32,
    )
    return decode_chunks(layout, body, stored, where)[:rows]


def encode_small(layout: ArrayLayout, values: NDArray[Any]) -> list[bytes]:
    """The chunks of a small array (no rows): each its bytes, padded to a full chunk, and their crc32c."""
    values = np.ascontiguousarray(values, dtype=layout.numpy_dtype)
    chunks = []
    for start in range(0, len(values), layout.shard_rows):
        part = np.full((layout.shard_rows, *layout.row_shape), layout.fill, dtype=layout.numpy_dtype)
        piece = values[start : start + layout.shard_rows]
        part[: len(piece)] = piece
        payload = part.tobytes()
        chunks.append(payload + crc32c(payload).to_bytes(CRC_BYTES, "little"))
    return chunks


def decode_small(layout: ArrayLayout, chunks: list[bytes], where: str = "") -> NDArray[Any]:
    """A small array from its chunks, each checked by size and by its own crc32c. Raises ShardCorrupt.

    The caller has compared their sha256 with the seal: that they are the ones that were sealed, not that they are
    chunks of this array. where: the array, for messages.
    """
    size = layout.shard_rows * layout.row_bytes + CRC_BYTES
    for number, chunk in enumerate(chunks):
        if (
            len(chunk) != size
            or crc32c(chunk[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != chunk[-CRC_BYTES:]
        ):
            raise ShardCorrupt(
                f"{where or layout.name}, chunk {number}",
                expected=f"a chunk of {size} bytes that ends in its crc32c",
                found=f"{len(chunk)} bytes" if len(chunk) != size else "another crc32c",
                remedy="restore the file from a copy, or make this part again under another name",
            )
    payload = b"".join(chunk[:-CRC_BYTES] for chunk in chunks)
    rows = np.frombuffer(payload, dtype=layout.numpy_dtype).reshape(-1, *layout.row_shape)
    return rows[: layout.shape[0]]
