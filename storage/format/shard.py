"""Shards: the encoding of a block of one array, and its decoding.

A shard (Zarr's `sharding_indexed`) holds its inner chunks one after another, each followed by its crc32c, then an index
of (offset, length) of each chunk, then the index's crc32c:

    ┌─────────┬─────┬─────────┬─────┬───┬────────────────────────────┬─────┐
    │ chunk 0 │ crc │ chunk 1 │ crc │ … │ offset, length of each, u8 │ crc │
    └─────────┴─────┴─────────┴─────┴───┴────────────────────────────┴─────┘

A chunk is raw or compressed; only the index locates compressed chunks.

We write shards ourselves, whole, once. Zarr would read, change and rewrite a shard, which loses data if two writers do
so at once, and fails if the old shard is torn.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import ShardCorrupt
from .codec import RAW, compress, decompress, most_bytes
from .metadata import ArrayLayout

CRC_BYTES = 4
UNSEALABLE = "do not read this part: no writer of this format sealed it"
REMAKE = "run `logitstore repair`, then the command that wrote it; or restore the file from a copy"
COPY = "restore the file from a copy"
"""The remedy of a file that neither `repair` nor a writer brings back."""
COPY_OF_SEAL = "restore the file from a copy; if the copy has the same file or none, restore the log"
"""The same of a seal, whose sha256 stands in a record of the log: the last record is vouched for by nothing."""
ABSENT = 2**64 - 1
"""Offset and length, in a shard's index, of an absent chunk."""


@dataclass(frozen=True)
class Shard:
    """The bytes of a shard, and the checksums that bind each chunk to its place."""

    data: bytes
    """The whole shard, as stored."""
    crc32c: tuple[int, ...]
    """crc32c of each inner chunk's payload; 0 for an absent chunk."""


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """Compute crc32c (Castagnoli) of bytes, or of a contiguous array, as an unsigned integer.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return int(google_crc32c.value(data))


class ShardEncoder:
    """An encoder of the rows of a block as one shard, piece by piece; raw chunks are not copied.

    `append` returns the buffers to write. `check`, which may run in another thread meanwhile, hashes them, decompresses
    compressed chunks, and compares each chunk's checksum again. Each of the two runs in one thread at a time.
    """

    def __init__(self, layout: ArrayLayout) -> None:
        self._layout = layout
        self._num_rows = 0  # of the open chunk
        self._open: list[NDArray[np.uint8]] = []  # its bytes, if a codec needs them together
        self._payload_bytes = 0  # of the open chunk, as handed out
        self._running = self._again = 0  # its checksum so far: when handed out, when checked
        self._unchecked: deque[tuple[NDArray[np.uint8], int | None]] = deque()
        self._undecoded: deque[tuple[NDArray[np.uint8], int]] = deque()
        self._index = np.full((layout.chunks_per_shard, 2), ABSENT, dtype="<u8")
        self._crc32c: list[int] = []
        self._sha256 = sha256()
        self.size = 0
        """Bytes so far."""

    def append(self, values: NDArray[Any]) -> list[memoryview]:
        """Return the buffers to write for the next rows, (rows, *row_shape); the caller must not change them."""
        rows = np.asarray(values)
        buffers: list[memoryview] = []
        while len(rows):
            room = self._layout.chunk_rows - self._num_rows
            # A chunk at a time: values may be one number in memory, of many rows.
            piece = np.ascontiguousarray(rows[:room], dtype=self._layout.numpy_dtype)
            rows = rows[room:]
            payload = piece.reshape(-1).view(np.uint8)
            self._num_rows += len(piece)
            if self._layout.codec == RAW:
                buffers.append(self._hand_out_payload(payload))
            else:
                self._open.append(payload)
            if self._num_rows == self._layout.chunk_rows:
                buffers += self._end_chunk()
        return buffers

    def finish(self) -> list[memoryview]:
        """Return the buffers of the last chunk's fill, and of the index."""
        buffers: list[memoryview] = []
        if self._num_rows:
            shape = (self._layout.chunk_rows - self._num_rows, *self._layout.row_shape)
            buffers = self.append(np.full(shape, self._layout.fill, dtype=self._layout.numpy_dtype))
        index = self._index.tobytes()
        footer = index + crc32c(index).to_bytes(CRC_BYTES, "little")
        self._running = crc32c(footer)
        return [*buffers, self._hand_out(np.frombuffer(footer, np.uint8), self._running)]

    def check(self) -> None:
        """Hash the buffers handed out since the last call. Raises ShardCorrupt if a chunk has changed since."""
        while self._unchecked:
            buffer, ends_with = self._unchecked.popleft()
            self._sha256.update(buffer.data)
            if ends_with is None or len(buffer) > CRC_BYTES:
                self._again = int(google_crc32c.extend(self._again, buffer))
            if ends_with is None:
                continue
            if self._again != ends_with:
                raise self._changed(
                    f"crc32c {ends_with:08x}, as encoded", f"{self._again:08x}, changed in memory"
                )
            self._again = 0
        while self._undecoded:
            compressed, checksum = self._undecoded.popleft()
            decoded = np.empty((self._layout.chunk_rows, *self._layout.row_shape), self._layout.numpy_dtype)
            try:
                decompress(self._layout.codec, compressed, decoded)
            except ValueError as error:
                raise self._changed("a chunk that can be decompressed", str(error)) from None
            again = crc32c(decoded.reshape(-1).view(np.uint8))
            if again != checksum:
                raise self._changed(f"crc32c {checksum:08x} of the decompressed chunk", f"{again:08x}")

    def _changed(self, expected: str, found: str) -> ShardCorrupt:
        return ShardCorrupt(
            self._layout.name,
            expected=expected,
            found=found,
            remedy="test this machine's memory; nothing of the block was kept",
        )

    @property
    def crc32c(self) -> tuple[int, ...]:
        """crc32c of each inner chunk's payload; 0 for an absent chunk."""
        return (*self._crc32c, *[0] * (self._layout.chunks_per_shard - len(self._crc32c)))

    @property
    def sha256(self) -> str:
        """sha256 of all bytes that were checked."""
        return self._sha256.hexdigest()

    def _end_chunk(self) -> list[memoryview]:
        buffers = []
        if self._layout.codec != RAW:
            whole = np.concatenate(self._open) if len(self._open) > 1 else self._open[0]
            rows = whole.view(self._layout.numpy_dtype).reshape(self._layout.chunk_rows, -1)
            data = compress(self._layout.codec, rows)
            compressed = np.frombuffer(data, np.uint8)
            self._undecoded.append((compressed, crc32c(whole)))
            self._open = []
            buffers.append(self._hand_out_payload(compressed))
        start = self.size - self._payload_bytes
        self._index[len(self._crc32c)] = start, self._payload_bytes + CRC_BYTES
        self._crc32c.append(self._running)
        checksum = np.frombuffer(self._running.to_bytes(CRC_BYTES, "little"), np.uint8)
        buffers.append(self._hand_out(checksum, self._running))
        self._running = self._num_rows = self._payload_bytes = 0
        return buffers

    def _hand_out_payload(self, payload: NDArray[np.uint8]) -> memoryview:
        """Hand out bytes of the open chunk, as stored."""
        self._running = int(google_crc32c.extend(self._running, payload))
        self._payload_bytes += len(payload)
        return self._hand_out(payload)

    def _hand_out(self, buffer: NDArray[np.uint8], ends_with: int | None = None) -> memoryview:
        """Return a buffer to write. ends_with: the checksum of the chunk, or the index, that this buffer completes."""
        self._unchecked.append((buffer, ends_with))
        self.size += len(buffer)
        return buffer.data


def shard_of(layout: ArrayLayout, values: NDArray[Any]) -> tuple[bytes, ShardEncoder]:
    """Encode `values` as one shard; return its bytes, and the encoder, for checksums and digest."""
    encoder = ShardEncoder(layout)
    buffers = [*encoder.append(values), *encoder.finish()]
    encoder.check()
    return b"".join(buffers), encoder


def encode_shard(layout: ArrayLayout, values: NDArray[Any]) -> Shard:
    """Encode `values` (rows, *row_shape), at most a shard's rows, as one shard of `layout`."""
    data, encoder = shard_of(layout, values)
    return Shard(data, encoder.crc32c)


def index_bytes(layout: ArrayLayout) -> int:
    """Return the bytes of the index at the end of a shard, checksum included."""
    return layout.chunks_per_shard * 16 + CRC_BYTES


def chunk_bytes(layout: ArrayLayout) -> tuple[int, int]:
    """Return the fewest and most bytes of an inner chunk, checksum included; equal for raw chunks."""
    payload = layout.chunk_rows * layout.row_bytes
    if layout.codec == RAW:
        return payload + CRC_BYTES, payload + CRC_BYTES
    return 1 + CRC_BYTES, most_bytes(payload) + CRC_BYTES


def shard_bytes(layout: ArrayLayout, rows: int) -> int:
    """Return the bytes of a shard that holds `rows` rows; the most of them if chunks are compressed."""
    return -(-rows // layout.chunk_rows) * chunk_bytes(layout)[1] + index_bytes(layout)


def is_shard_size(layout: ArrayLayout, rows: int, size: int) -> bool:
    """Return whether a shard that holds `rows` rows can have `size` bytes."""
    fewest, most = chunk_bytes(layout)
    chunks = -(-rows // layout.chunk_rows)
    return chunks * fewest <= size - index_bytes(layout) <= chunks * most


def check_shard_bytes(layout: ArrayLayout, rows: int, size: int, where: str, remedy: str) -> None:
    """Refuse a size, of a file or stated by a seal, that no shard of `rows` rows has. Raises ShardCorrupt."""
    if not is_shard_size(layout, rows, size):
        at_most = "" if layout.codec == RAW else "at most "
        raise ShardCorrupt(
            where,
            expected=f"a whole shard of {at_most}{shard_bytes(layout, rows)} bytes",
            found=f"{size} bytes",
            remedy=remedy,
        )


def chunk_ends(layout: ArrayLayout, index: bytes, rows: int, size: int, where: str) -> NDArray[np.int64]:
    """Return the end of each inner chunk that has rows, checksum included, from the index of a shard: (chunks,).

    index: the last `index_bytes` of the shard. size: of the shard. Raises ShardCorrupt unless the chunks lie one after
    another and fill the shard.
    """
    chunks = -(-rows // layout.chunk_rows)
    body, checksum = index[:-CRC_BYTES], index[-CRC_BYTES:]
    if len(index) == index_bytes(layout) and crc32c(body).to_bytes(CRC_BYTES, "little") == checksum:
        table = np.frombuffer(body, dtype="<u8").reshape(-1, 2)
        fewest, most = chunk_bytes(layout)
        starts, lengths = table[:chunks, 0], table[:chunks, 1]
        if ((lengths >= fewest) & (lengths <= most)).all() and (table[chunks:] == ABSENT).all():
            ends = np.cumsum(lengths.astype(np.int64))
            are_adjacent = starts[0] == 0 and (starts[1:] == ends[:-1].astype(np.uint64)).all()
            if are_adjacent and ends[-1] + len(index) == size:
                return ends
    raise ShardCorrupt(
        where,
        expected=f"an index of {chunks} chunks, one after another",
        found=f"{len(index)} bytes that are not such an index",
        remedy=REMAKE,
    )


def check_crc32c(found: Iterable[int], expected: NDArray[np.uint32], where: str, first: int = 0) -> None:
    """Compare the crc32c of the payloads of inner chunks with those in the seal. Raises ShardCorrupt.

    first: number of the first chunk, for messages.
    """
    for chunk, (stored, sealed) in enumerate(zip(found, expected, strict=True)):
        if stored != sealed:
            raise ShardCorrupt(
                f"{where}, chunk {first + chunk}",
                expected=f"crc32c {int(sealed):08x}",
                found=f"{stored:08x}",
                remedy=REMAKE,
            )


def decode_chunk(
    layout: ArrayLayout, payload: NDArray[np.uint8], out: NDArray[Any], where: str, chunk: int
) -> None:
    """Decompress a chunk, whose checksum is right, into `out`. Raises ShardCorrupt."""
    try:
        decompress(layout.codec, payload, out)
    except ValueError as error:
        raise ShardCorrupt(
            f"{where}, chunk {chunk}",
            expected=f"a chunk that decompresses to {out.nbytes} bytes",
            found=str(error),
            remedy=UNSEALABLE,
        ) from None


def decode_chunks(
    layout: ArrayLayout,
    data: bytes | NDArray[np.uint8],
    expected: NDArray[np.uint32],
    where: str,
    first: int = 0,
    ends: NDArray[np.int64] | None = None,
) -> NDArray[Any]:
    """Decode consecutive inner chunks, checked against the seal: (chunks x chunk_rows, *row_shape).

    data: the chunks' payloads, each followed by its crc32c, as they lie in the shard. expected, first: of `check_crc32c`.
    ends: the end of each chunk in `data`; for compressed chunks. Raises ShardCorrupt.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    if ends is None:
        table = buffer.reshape(len(expected), chunk_bytes(layout)[1])[:, :-CRC_BYTES]
        check_crc32c(map(crc32c, table), expected, where, first)
        rows = np.ascontiguousarray(table).view(layout.numpy_dtype)
        return rows.reshape(-1, *layout.row_shape)
    starts = [0, *ends[:-1].tolist()]
    payloads = [buffer[start : end - CRC_BYTES] for start, end in zip(starts, ends.tolist(), strict=True)]
    check_crc32c(map(crc32c, payloads), expected, where, first)
    out = np.empty((len(payloads), layout.chunk_rows, *layout.row_shape), layout.numpy_dtype)
    for chunk, payload in enumerate(payloads):
        decode_chunk(layout, payload, out[chunk], where, first + chunk)
    return out.reshape(-1, *layout.row_shape)


def decode_shard(layout: ArrayLayout, data: bytes, rows: int, where: str) -> NDArray[Any]:
    """Decode a whole shard by its own index and checksums: for a shard without a commit record. Raises ShardCorrupt."""
    remedy = "remove the file and resume the capture"
    check_shard_bytes(layout, rows, len(data), where, remedy)
    body = len(data) - index_bytes(layout)
    ends = chunk_ends(layout, data[body:], rows, len(data), where)
    stored = [int.from_bytes(data[end - CRC_BYTES : end], "little") for end in ends.tolist()]
    expected = np.array(stored, dtype=np.uint32)
    decoded = decode_chunks(layout, data[:body], expected, where, ends=None if layout.codec == RAW else ends)
    return decoded[:rows]


def encode_small(layout: ArrayLayout, values: NDArray[Any]) -> list[bytes]:
    """Encode a small array (no rows) as chunks: the bytes, padded to a full chunk, then their crc32c."""
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
    """Decode a small array from its chunks, each checked by size and by its own crc32c. Raises ShardCorrupt.

    The caller has compared their sha256 with the seal, which proves that they were sealed, not that they are chunks of
    this array. where: the array, for messages.
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
                found=f"{len(chunk)} bytes" if len(chunk) != size else f"{size} bytes with a wrong crc32c",
                remedy="restore the file from a copy, or make this part again under another name",
            )
    payload = b"".join(chunk[:-CRC_BYTES] for chunk in chunks)
    rows = np.frombuffer(payload, dtype=layout.numpy_dtype).reshape(-1, *layout.row_shape)
    return rows[: layout.shape[0]]
