"""Compression of inner chunks, and decompression that does not trust the size that a chunk states.

Two codecs of Zarr's core in three fixed settings, chosen by measurement (docs/encodings.md):

    zstd     codes of one byte: entropy coding is the only gain
    blosc    codes of two bytes and the arrays of top-k: bytes shuffled by significance, then zstd
    columns  codes of components, most of which are small: rows last (Zarr's transpose), bits shuffled, then zstd

        row 0   a0 b0 c0                    a0 a1 a2 …  one column: numbers of one size, whose upper bits are 0
        row 1   a1 b1 c1    ─ transpose ─>  b0 b1 b2 …
        row 2   a2 b2 c2                    c0 c1 c2 …

All other arrays are raw. The settings are part of the format: `zarr.json` spells them out.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RAW, ZSTD, BLOSC, COLUMNS = "raw", "zstd", "blosc", "columns"
_ZSTD_LEVEL: Final = 1
_BLOSC_LEVELS: Final = {BLOSC: 1, COLUMNS: 5}
_SHUFFLES: Final = {BLOSC: "shuffle", COLUMNS: "bitshuffle"}
_BLOSC_BLOCK_BYTES: Final = 1 << 18
_BLOSC_HEADER_BYTES: Final = 16
_LINE_BYTES: Final = 64
"""Bytes of a line of a core's cache."""
_ZSTD_MAGIC: Final = bytes.fromhex("28b52ffd")


def codec_metadata(codec: str, item_bytes: int) -> list[dict[str, object]]:
    """Return a codec's entries in Zarr's list of codecs, after `bytes`: none for raw chunks. item_bytes: of an element.

    >>> codec_metadata("zstd", 1)
    [{'name': 'zstd', 'configuration': {'level': 1, 'checksum': False}}]
    """
    if codec == RAW:
        return []
    if codec == ZSTD:
        return [{"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}]
    settings: dict[str, object] = {
        "typesize": item_bytes,
        "cname": "zstd",
        "clevel": _BLOSC_LEVELS[codec],
        "shuffle": _SHUFFLES[codec],
        "blocksize": _BLOSC_BLOCK_BYTES,
    }
    return [{"name": "blosc", "configuration": settings}]


def transpose_metadata(codec: str, row_axis: int, num_dimensions: int) -> list[dict[str, object]]:
    """Return a codec's entries in Zarr's list of codecs before `bytes`: the rows moved behind the columns, or none.

    >>> transpose_metadata("columns", 1, 3), transpose_metadata("blosc", 1, 3)
    ([{'name': 'transpose', 'configuration': {'order': [0, 2, 1]}}], [])
    """
    if codec != COLUMNS:
        return []
    order = [axis for axis in range(num_dimensions) if axis != row_axis] + [row_axis]
    return [{"name": "transpose", "configuration": {"order": order}}]


def codec_of(entries: Collection[Mapping[str, Any]]) -> str:
    """Return the codec that Zarr's list of codecs may be of, by names and shuffle alone; the caller compares the lists.

    >>> codec_of(codec_metadata("columns", 2)), codec_of([{"name": "bytes"}])
    ('columns', 'raw')
    """
    for entry in entries:
        if entry["name"] == "zstd":
            return ZSTD
        if entry["name"] == "blosc":
            return COLUMNS if entry["configuration"]["shuffle"] == _SHUFFLES[COLUMNS] else BLOSC
    return RAW


def most_bytes(payload_bytes: int) -> int:
    """Return the most bytes of a compressed chunk: incompressible data grows a little.

    >>> most_bytes(1 << 20)
    1056768
    """
    return payload_bytes + payload_bytes // 256 + 4096


def compress(codec: str, payload: NDArray[Any]) -> bytes:
    """Compress a contiguous chunk, to the same bytes every time (with the same versions of the libraries).

    payload: rows first; only `COLUMNS` looks at its shape.
    """
    from numcodecs import blosc, zstd

    if codec == ZSTD:
        return bytes(zstd.compress(payload, _ZSTD_LEVEL))
    if codec == COLUMNS:
        payload = np.ascontiguousarray(payload.reshape(len(payload), -1).T)
    # blosc's own threads write their pieces in the order in which they finish. We have our own threads.
    blosc.use_threads = False
    shuffle = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[_SHUFFLES[codec]]
    level, item_bytes = _BLOSC_LEVELS[codec], payload.dtype.itemsize
    return bytes(blosc.compress(payload, b"zstd", level, shuffle, _BLOSC_BLOCK_BYTES, item_bytes))


def decompress(codec: str, data: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decompress a chunk into `out`; refuse one that states another size before anything is written.

    out: contiguous, rows first. Raises ValueError for data that are not a chunk of that size.
    """
    from numcodecs import blosc, zstd

    stated = _zstd_content_bytes(data) if codec == ZSTD else _blosc_content_bytes(data, out.dtype.itemsize)
    if stated != out.nbytes:
        raise ValueError(f"{len(data)} bytes that do not decode to {out.nbytes}")
    table = out.reshape(len(out), -1) if codec == COLUMNS else out
    target = np.empty(table.shape[::-1], out.dtype) if codec == COLUMNS else out
    flat = target.reshape(-1).view(np.uint8)
    try:
        if codec == ZSTD:
            zstd.decompress(data, flat)
        else:
            blosc.use_threads = False
            blosc.decompress(data, flat)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if codec == COLUMNS:
        _transpose(target, table)


def _transpose(columns: NDArray[Any], out: NDArray[Any]) -> None:
    """Copy columns (columns, rows) to rows (rows, columns).

    A chunk has a power of two of rows. Elements of neighbouring columns would then fall on the same few lines of a core's
    cache, and each would be loaded anew for every row. A copy with a line between the columns is five times faster.
    """
    count, rows = columns.shape
    apart = np.empty((count, rows + _LINE_BYTES // columns.itemsize), columns.dtype)
    apart[:, :rows] = columns
    out[...] = apart[:, :rows].T


def _blosc_content_bytes(data: NDArray[np.uint8], item_bytes: int) -> int:
    """Return the size that a blosc buffer states; -1 if its header contradicts its length, which blosc would trust."""
    if len(data) < _BLOSC_HEADER_BYTES or int(data[3]) != item_bytes:
        return -1
    content, block, own = (int(number) for number in data[4:16].view("<u4"))
    return content if own == len(data) and 0 < block <= max(content, 1) else -1


def _zstd_content_bytes(data: NDArray[np.uint8]) -> int:
    """Return the size that a zstd frame states (RFC 8878, 3.1.1.1); -1 if it states none."""
    head = data[:18].tobytes()
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return -1
    descriptor = head[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not width or len(head) < start + width:
        return -1
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)
