"""Shards: as Zarr's `sharding_indexed` defines them, raw or compressed; a single changed bit shows."""

import re
from collections import deque
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.storage
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitstore.storage.errors import ShardCorrupt
from logitstore.storage.format import shard as shard_module
from logitstore.storage.format.codec import BLOSC, COLUMNS, RAW, ZSTD
from logitstore.storage.format.metadata import ArrayLayout
from logitstore.storage.format.shard import (
    ABSENT,
    CRC_BYTES,
    ShardEncoder,
    chunk_bytes,
    chunk_ends,
    crc32c,
    decode_chunks,
    decode_shard,
    decode_small,
    encode_shard,
    encode_small,
    index_bytes,
    is_shard_size,
    shard_bytes,
)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[tuple[Any, ...], bytes]:
    """What a layout is made from, and the bytes of up to a shard of rows."""
    dtype = draw(st.sampled_from(["float16", "float32", "uint8", "int64", "uint64"]))
    chunk_rows = 1 << draw(st.integers(0, 3))
    shard_rows = chunk_rows << draw(st.integers(0, 3))
    after = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    rows = draw(st.integers(1, shard_rows))
    fill = float("nan") if dtype.startswith("f") else 0
    names = ("row", *(f"d{axis}" for axis in range(len(after))))
    size = rows * int(np.prod(after)) * np.dtype(dtype).itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    return ("a", (rows, *after), dtype, names, shard_rows, chunk_rows, fill), data


def values_of(layout: ArrayLayout, data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, layout.numpy_dtype).reshape(layout.shape)


@given(blocks())
def test_a_shard_reads_back(block: tuple[tuple[Any, ...], bytes]) -> None:
    layout = ArrayLayout(*block[0])
    values = values_of(layout, block[1])
    shard = encode_shard(layout, values)
    assert len(shard.data) == shard_bytes(layout, len(values))
    assert len(shard.crc32c) == layout.chunks_per_shard
    assert decode_shard(layout, shard.data, len(values), "x").tobytes() == values.tobytes()
    chunks = -(-len(values) // layout.chunk_rows)
    assert not any(shard.crc32c[chunks:])
    for first in range(chunks):
        offset, end = (chunk * chunk_bytes(layout)[1] for chunk in (first, chunks))
        sums = np.array(shard.crc32c[first:chunks], dtype=np.uint32)
        rows = decode_chunks(layout, shard.data[offset:end], sums, "x", first)
        start = first * layout.chunk_rows
        assert rows[: len(values) - start].tobytes() == values[start:].tobytes()


@settings(max_examples=settings.default.max_examples // 2)
@given(blocks())
def test_zarr_reads_it_too(block: tuple[tuple[Any, ...], bytes]) -> None:
    layout = ArrayLayout(*block[0])
    values = values_of(layout, block[1])
    shard = encode_shard(layout, values)
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer
    objects = {
        "zarr.json": buffer.from_bytes(layout.to_bytes()),
        layout.shard_key(0, 0).removeprefix("a/"): buffer.from_bytes(shard.data),
    }
    array = zarr.open_array(zarr.storage.MemoryStore(objects), mode="r", zarr_format=3)
    assert np.asarray(array[...]).tobytes() == values.tobytes()


def example() -> tuple[ArrayLayout, NDArray[np.float16], bytes]:
    layout = ArrayLayout("a", (7, 3), "float16", ("row", "class"), 8, 2, float("nan"))
    values = np.arange(21, dtype=np.float16).reshape(7, 3)
    return layout, values, encode_shard(layout, values).data


def test_the_last_chunk_is_padded_with_fill_and_those_after_it_are_absent() -> None:
    layout, values, _ = example()
    shard = encode_shard(layout, values[:3])
    assert np.isnan(np.frombuffer(shard.data, "<f2")[8 + 3 : 8 + 6]).all()
    index = np.frombuffer(shard.data[-4 * 16 - 4 : -4], "<u8").reshape(4, 2)
    assert index.tolist() == [[0, 16], [16, 16], [ABSENT, ABSENT], [ABSENT, ABSENT]]


def test_every_bit_that_carries_something_counts() -> None:
    layout, values, data = example()
    for bit in range(8 * len(data)):
        torn = bytearray(data)
        torn[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ShardCorrupt):
            decode_shard(layout, bytes(torn), 7, "x")
    assert np.array_equal(decode_shard(layout, data, 7, "x"), values)


@pytest.mark.parametrize("change", [lambda d: b"", lambda d: d[:-1], lambda d: d + b"\0", lambda d: d[1:]])
def test_another_size_is_no_shard(change: Any) -> None:
    layout, _, data = example()
    torn = change(data)
    with pytest.raises(ShardCorrupt) as caught:
        decode_shard(layout, torn, 7, "a/c.0.0")
    assert str(caught.value) == (
        f"a/c.0.0: expected a whole shard of {len(data)} bytes, found {len(torn)} bytes; "
        "remove the file and resume the capture"
    )


def test_a_good_chunk_in_the_wrong_place_is_refused() -> None:
    """Its own crc32c is right; the seal's is another."""
    layout, values, data = example()
    sums = np.array(encode_shard(layout, values).crc32c, dtype=np.uint32)
    swapped = data[16:32] + data[:16]
    wrong = f"a/c.0.0, chunk 4: expected crc32c {sums[0]:08x}, found {sums[1]:08x}; run `logitstore repair`, then the command that wrote it; or restore the file from a copy"
    with pytest.raises(ShardCorrupt) as caught:
        decode_chunks(layout, swapped, sums[:2], "a/c.0.0", first=4)
    assert str(caught.value).startswith(wrong)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 3))
def test_small_arrays_read_back(rows: int, chunk: int, width: int) -> None:
    layout = ArrayLayout("a", (rows, width), "int64", ("class", "x"), chunk, 0, -1)
    values = np.arange(rows * width).reshape(rows, width)
    chunks = encode_small(layout, values)
    assert len(chunks) == -(-rows // chunk)
    assert {len(c) for c in chunks} == {chunk * width * 8 + 4}
    assert all(crc32c(c[:-4]) == int.from_bytes(c[-4:], "little") for c in chunks)
    assert np.array_equal(decode_small(layout, chunks), values)


# Chunks that a codec made smaller


def coded_layout(codec: str = BLOSC, rows: int = 7, chunk_rows: int = 2, shard_rows: int = 8) -> ArrayLayout:
    dtype = {ZSTD: "uint8", BLOSC: "uint16", COLUMNS: "uint16"}[codec]
    fill = int(np.iinfo(dtype).max)
    return ArrayLayout("a", (rows, 40), dtype, ("row", "class"), shard_rows, chunk_rows, fill, codec)


def coded(layout: ArrayLayout, seed: int = 0) -> NDArray[Any]:
    """Numbers that a codec makes smaller, of some chunks more than of others."""
    rng = np.random.default_rng(seed)
    rows = np.abs(rng.normal(0, 3, layout.shape)) * (1 + np.arange(layout.shape[0]) // 2 * 7)[:, None]
    return rows.astype(layout.numpy_dtype)


@st.composite
def coded_blocks(draw: st.DrawFn) -> tuple[str, int, int, int, int]:
    """What a layout with a codec is made from, and a seed for up to a shard of rows."""
    chunk_rows = 1 << draw(st.integers(0, 3))
    shard_rows = chunk_rows << draw(st.integers(0, 3))
    codec, rows = draw(st.sampled_from([ZSTD, BLOSC, COLUMNS])), draw(st.integers(1, shard_rows))
    return codec, rows, chunk_rows, shard_rows, draw(st.integers(0, 2**32))


def made_of(block: tuple[str, int, int, int, int]) -> tuple[ArrayLayout, NDArray[Any]]:
    layout = coded_layout(*block[:4])
    return layout, coded(layout, block[4])


@given(coded_blocks(), st.data())
def test_coded_rows_read_back_in_any_run_of_chunks(
    block: tuple[str, int, int, int, int], data: st.DataObject
) -> None:
    layout, values = made_of(block)
    shard = encode_shard(layout, values)
    size, rows = len(shard.data), len(values)
    assert is_shard_size(layout, rows, size)
    assert size <= shard_bytes(layout, rows)
    assert decode_shard(layout, shard.data, rows, "x").tobytes() == values.tobytes()
    ends = chunk_ends(layout, shard.data[-index_bytes(layout) :], rows, size, "x")
    chunks = -(-rows // layout.chunk_rows)
    assert len(ends) == chunks
    assert ends[-1] == size - index_bytes(layout)
    assert not any(shard.crc32c[chunks:])
    first = data.draw(st.integers(0, chunks - 1))
    last = data.draw(st.integers(first, chunks - 1))
    offset = int(ends[first - 1]) if first else 0
    sums = np.array(shard.crc32c[first : last + 1], dtype=np.uint32)
    found = decode_chunks(
        layout, shard.data[offset : int(ends[last])], sums, "x", first, ends[first : last + 1] - offset
    )
    wanted = values[first * layout.chunk_rows : (last + 1) * layout.chunk_rows]
    assert found[: len(wanted)].tobytes() == wanted.tobytes()
    assert (found[len(wanted) :] == layout.fill).all()


@given(coded_blocks())
def test_zarr_reads_coded_chunks_too(block: tuple[str, int, int, int, int]) -> None:
    layout, values = made_of(block)
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer
    objects = {
        "zarr.json": buffer.from_bytes(layout.to_bytes()),
        layout.shard_key(0, 0).removeprefix("a/"): buffer.from_bytes(encode_shard(layout, values).data),
    }
    array = zarr.open_array(zarr.storage.MemoryStore(objects), mode="r", zarr_format=3)
    assert np.asarray(array[...]).tobytes() == values.tobytes()


@given(coded_blocks(), st.lists(st.integers(0, 64), max_size=5))
def test_a_coded_shard_is_the_same_however_its_rows_come(
    block: tuple[str, int, int, int, int], cuts: list[int]
) -> None:
    layout, values = made_of(block)
    encoder = ShardEncoder(layout)
    buffers: list[memoryview] = []
    for piece in np.split(values, sorted(cut for cut in cuts if cut < len(values))):
        buffers += encoder.append(piece)
        encoder.check()
    buffers += encoder.finish()
    encoder.check()
    whole = encode_shard(layout, values)
    assert b"".join(buffers) == whole.data
    assert encoder.crc32c == whole.crc32c
    assert encoder.size == len(whole.data)


@pytest.mark.parametrize("codec", [ZSTD, BLOSC, COLUMNS])
def test_every_bit_of_a_coded_shard_counts(codec: str) -> None:
    layout = coded_layout(codec)
    values = coded(layout)
    data = encode_shard(layout, values).data
    for bit in range(8 * len(data)):
        torn = bytearray(data)
        torn[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ShardCorrupt):
            decode_shard(layout, bytes(torn), 7, "x")
    assert np.array_equal(decode_shard(layout, data, 7, "x"), values)


def with_index(layout: ArrayLayout, data: bytes, table: NDArray[Any]) -> bytes:
    """A shard with another index, whose checksum is right."""
    index = table.astype("<u8").tobytes()
    return data[: -index_bytes(layout)] + index + crc32c(index).to_bytes(CRC_BYTES, "little")


def index_of(layout: ArrayLayout, data: bytes) -> NDArray[Any]:
    return np.frombuffer(data[-index_bytes(layout) : -CRC_BYTES], "<u8").reshape(-1, 2).copy()


LIES: dict[str, Any] = {
    "a gap": lambda t: t.__setitem__((1, 0), t[1, 0] + 1),
    "an overlap": lambda t: t.__setitem__((1, 0), t[1, 0] - 1),
    "a longer chunk": lambda t: t.__setitem__((0, 1), t[0, 1] + 1),
    "a shorter last chunk": lambda t: t.__setitem__((3, 1), t[3, 1] - 1),
    "two exchanged": lambda t: t.__setitem__([0, 1], t[[1, 0]]),
    "one twice": lambda t: t.__setitem__(1, t[0]),
    "an absent chunk that has rows": lambda t: t.__setitem__(3, ABSENT),
    "a chunk that has no rows": lambda t: t.__setitem__(4, t[3]),
    "beyond the file": lambda t: t.__setitem__((3, 0), 1 << 40),
    "a length without end": lambda t: t.__setitem__((0, 1), ABSENT - 1),
    "a length that wraps": lambda t: t.__setitem__((0, 1), 1 << 63),
    "an empty chunk": lambda t: t.__setitem__((0, 1), 0),
    "a checksum alone": lambda t: t.__setitem__((0, 1), CRC_BYTES),
    "not from the start": lambda t: t.__setitem__((slice(4), 0), t[:4, 0] + 4),
}


@pytest.mark.parametrize("codec", [ZSTD, BLOSC, COLUMNS])
@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(codec: str, lie: str) -> None:
    """Its checksum is right: only the chunks, one after another to the end, are believed."""
    layout = coded_layout(codec, rows=7, chunk_rows=2, shard_rows=16)
    data = encode_shard(layout, coded(layout)).data
    assert with_index(layout, data, index_of(layout, data)) == data
    table = index_of(layout, data)
    LIES[lie](table)
    bad = with_index(layout, data, table)
    with pytest.raises(ShardCorrupt) as caught:
        chunk_ends(layout, bad[-index_bytes(layout) :], 7, len(bad), "a/c.0.0")
    assert str(caught.value).startswith(
        "a/c.0.0: expected an index of 4 chunks, one after another, found "
        f"{index_bytes(layout)} bytes that are not such an index; run `logitstore repair`"
    )
    with pytest.raises(ShardCorrupt):
        decode_shard(layout, bad, 7, "x")


def test_an_index_of_another_length_or_checksum_is_refused() -> None:
    layout = coded_layout()
    data = encode_shard(layout, coded(layout)).data
    index = data[-index_bytes(layout) :]
    for bad in (b"", index[:-1], index + b"\0", index[:-1] + bytes([index[-1] ^ 1]), index[16:]):
        with pytest.raises(ShardCorrupt, match="an index of 4 chunks"):
            chunk_ends(layout, bad, 7, len(data), "x")
    with pytest.raises(ShardCorrupt, match="an index of 4 chunks"):
        chunk_ends(layout, index, 7, len(data) + 1, "x")


@pytest.mark.parametrize("codec", [ZSTD, BLOSC, COLUMNS])
def test_a_checksum_that_is_not_the_seals_is_refused_before_anything_is_decoded(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = coded_layout(codec)
    shard = encode_shard(layout, coded(layout))
    ends = chunk_ends(layout, shard.data[-index_bytes(layout) :], 7, len(shard.data), "x")
    body = shard.data[: int(ends[-1])]
    sums = np.array(shard.crc32c, dtype=np.uint32)
    monkeypatch.setattr(shard_module, "decompress", lambda *_: pytest.fail("decoded before it was checked"))
    wrong = sums.copy()
    wrong[2] ^= 1
    with pytest.raises(ShardCorrupt, match=r"a/c\.0\.0, chunk 6: expected crc32c"):
        decode_chunks(layout, body, wrong, "a/c.0.0", 4, ends)


@pytest.mark.parametrize("codec", [ZSTD, BLOSC, COLUMNS])
def test_a_chunk_of_another_size_that_was_sealed_is_refused(codec: str) -> None:
    """Its checksum is the seal's: what it decodes to is not."""
    layout = coded_layout(codec)
    other = ArrayLayout("a", (7, 41), layout.dtype, layout.dimensions, 8, 2, layout.fill, codec)
    shard = encode_shard(other, coded(other))
    ends = chunk_ends(other, shard.data[-index_bytes(other) :], 7, len(shard.data), "x")
    sums = np.array(shard.crc32c, dtype=np.uint32)
    size = 2 * layout.row_bytes
    with pytest.raises(ShardCorrupt) as caught:
        decode_chunks(layout, shard.data[: int(ends[-1])], sums, "a/c.0.0", ends=ends)
    assert str(caught.value).startswith(
        f"a/c.0.0, chunk 0: expected a chunk that decompresses to {size} bytes, found"
    )


def test_the_sizes_that_a_coded_shard_can_have() -> None:
    layout = coded_layout()
    fewest, most = chunk_bytes(layout)
    index = index_bytes(layout)
    for size, possible in (
        (4 * fewest + index - 1, False),
        (4 * fewest + index, True),
        (4 * most + index, True),
        (4 * most + index + 1, False),
        (index, False),
        (0, False),
    ):
        assert is_shard_size(layout, 7, size) is possible
    raw = ArrayLayout("a", (7, 40), "uint16", ("row", "class"), 8, 2, 0, RAW)
    assert chunk_bytes(raw) == (164, 164)


# Memory that changes under the writer


@pytest.mark.parametrize("codec", [ZSTD, BLOSC, COLUMNS])
def test_a_codec_that_errs_is_noticed_before_the_block_is_committed(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit while a chunk is compressed has a checksum that is right: so each chunk is decoded again."""
    layout = coded_layout(codec)
    values = coded(layout)
    compress = shard_module.compress
    found = set()
    size = len(compress(codec, values[:2]))
    for bit in range(0, 8 * size, 7):

        def errs(codec: str, payload: NDArray[Any], bit: int = bit) -> bytes:
            data = bytearray(compress(codec, payload))
            data[bit // 8 % len(data)] ^= 1 << bit % 8
            return bytes(data)

        monkeypatch.setattr(shard_module, "compress", errs)
        try:
            encode_shard(layout, values)
        except ShardCorrupt as error:
            found.add(re.sub("[0-9a-f]{8}", "…", error.expected))
            assert error.remedy == "test this machine's memory; nothing of the block was kept"
            continue
        # What no reader looks at (a level, a version) may change: the numbers are the same.
        monkeypatch.setattr(shard_module, "compress", compress)
        assert bit // 8 < 16 or codec == ZSTD
    assert found == {"a chunk that can be decompressed", "crc32c … of the decompressed chunk"}


@pytest.mark.parametrize("codec", [ZSTD, BLOSC, COLUMNS])
def test_a_bit_that_flips_in_what_was_handed_out_is_noticed(codec: str) -> None:
    layout = coded_layout(codec)
    encoder = ShardEncoder(layout)
    (payload, _) = encoder.append(coded(layout)[:2])
    assert payload.readonly  # nobody changes it by mistake; memory may
    unchecked = [np.array(buffer) for buffer, _ in encoder._unchecked]
    unchecked[0][3] ^= 16
    encoder._unchecked = deque(
        (new, end) for new, (_, end) in zip(unchecked, encoder._unchecked, strict=True)
    )
    with pytest.raises(ShardCorrupt, match=r"expected crc32c .*, as encoded, found .*, changed in memory"):
        encoder.check()


def test_rows_that_change_after_they_were_compressed_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum is taken of the rows after the codec had them: one of the two is then wrong."""
    layout = coded_layout()
    values = coded(layout)
    compress = shard_module.compress

    def changed_after(codec: str, payload: NDArray[Any]) -> bytes:
        data = compress(codec, payload)
        values[1, 3] ^= 4
        return data

    monkeypatch.setattr(shard_module, "compress", changed_after)
    with pytest.raises(ShardCorrupt, match=r"expected crc32c .* of the decompressed chunk"):
        encode_shard(layout, values)
