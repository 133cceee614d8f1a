"""Is a shard what Zarr's `sharding_indexed` says, and does a single bit show?"""

from typing import Any

import numpy as np
import pytest
import zarr
import zarr.storage
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitstore.storage.errors import ShardCorrupt
from logitstore.storage.format import ArrayLayout
from logitstore.storage.shard import (
    ABSENT,
    chunk_span,
    crc32c,
    decode_chunks,
    decode_shard,
    decode_small,
    encode_shard,
    encode_small,
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
        offset, length = chunk_span(layout, first, chunks - 1)
        sums = np.array(shard.crc32c[first:chunks], dtype=np.uint32)
        rows = decode_chunks(layout, shard.data[offset : offset + length], sums, "x", first)
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
    wrong = f"a/c.0.0, chunk 4: expected crc32c {sums[0]:08x}, found {sums[1]:08x}; run `logitstore repair`, and then again what wrote it; or restore the file from a copy"
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
