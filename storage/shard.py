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


def encode_shard(layout: ArrayLayout, values: NDArray[Any]) -> Shard:
    """Lay out `values` (rows, *row_shape), at most a shard's rows, as one shard of `layout`."""
    values = np.ascontiguousarray(values, dtype=layout.numpy_dtype)
    rows, chunk_rows = len(values), layout.chunk_rows
    pieces: list[bytes] = []
    checksums: list[int] = []
    index = np.full((layout.chunks_per_shard, 2), ABSENT, dtype="<u8")
    offset = 0
    for chunk, start in enumerate(range(0, rows, chunk_rows)):
        part = values[start : start + chunk_rows]
        if len(part) < chunk_rows:
            padded = np.full((chunk_rows, *layout.row_shape), layout.fill, dtype=layout.numpy_dtype)
            padded[: len(part)] = part
            part = padded
        payload = part.tobytes()
        checksum = crc32c(payload)
        pieces += [payload, checksum.to_bytes(CRC_BYTES, "little")]
        checksums.append(checksum)
        index[chunk] = offset, len(payload) + CRC_BYTES
        offset += len(payload) + CRC_BYTES
    checksums += [0] * (layout.chunks_per_shard - len(checksums))
    footer = index.tobytes()
    pieces += [footer, crc32c(footer).to_bytes(CRC_BYTES, "little")]
    return Shard(b"".join(pieces), tuple(checksums))


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
    layout: ArrayLayout, data: bytes, expected: NDArray[np.uint32], where: str, first: int = 0
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
                remedy="restore the file from a copy, or capture this part again under another name",
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


def decode_small(layout: ArrayLayout, chunks: list[bytes]) -> NDArray[Any]:
    """A small array from its chunks; the caller has compared their sha256 with the seal."""
    payload = b"".join(chunk[:-CRC_BYTES] for chunk in chunks)
    rows = np.frombuffer(payload, dtype=layout.numpy_dtype).reshape(-1, *layout.row_shape)
    return rows[: layout.shape[0]]
