"""Codecs: a chunk comes back whole, and no false size reaches the memory of its reader."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from logitstore.storage.format.codec import (
    BLOSC,
    COLUMNS,
    RAW,
    ZSTD,
    codec_metadata,
    codec_of,
    compress,
    decompress,
    most_bytes,
    transpose_metadata,
)

CODECS = [(ZSTD, "|u1"), (BLOSC, "<u2"), (BLOSC, "<u4"), (BLOSC, "<f2"), (COLUMNS, "<u2"), (COLUMNS, "<f2")]


def whole(codec: str, data: bytes, like: NDArray[Any]) -> NDArray[Any]:
    """What a chunk decodes to, into an array of a known size with a border that must stay as it is."""
    guarded = np.full(like.nbytes + 64, 0xA5, np.uint8)
    out = guarded[32:-32].view(like.dtype).reshape(like.shape)
    try:
        decompress(codec, np.frombuffer(data, np.uint8), out)
    finally:
        assert (guarded[:32] == 0xA5).all()
        assert (guarded[-32:] == 0xA5).all()
    return out.copy()


def codes(dtype: str, size: int = 600, seed: int = 0) -> NDArray[Any]:
    """Numbers that a codec makes smaller."""
    values = np.abs(np.random.default_rng(seed).normal(0, 20, size)).astype(np.uint8)
    return values.astype(dtype)


@pytest.mark.parametrize(("codec", "dtype"), CODECS)
@given(st.sampled_from([1, 2, 3, 15, 16, 17, 255, 256, 4097, 70_000, 300_001]), st.integers(0, 3))
def test_what_was_compressed_comes_back(codec: str, dtype: str, size: int, kind: int) -> None:
    rng = np.random.default_rng(size)
    values = {
        0: codes(dtype, size),
        1: np.zeros(size, dtype),
        2: rng.integers(0, 256, size * np.dtype(dtype).itemsize).astype(np.uint8).view(dtype),
        3: (np.arange(size) % 2000).astype(dtype),
    }[kind]
    data = compress(codec, values)
    assert 1 <= len(data) <= most_bytes(values.nbytes)
    assert whole(codec, data, values).tobytes() == values.tobytes()
    assert data == compress(codec, values.reshape(-1, 1))  # the same bytes, whatever the shape


def test_the_settings_are_those_of_the_metadata() -> None:
    """zarr.json promises them; numcodecs is asked for the same."""
    assert codec_metadata(RAW, 4) == []
    values = codes("<u2", 500_000)
    for codec in (BLOSC, COLUMNS):
        ((described),) = codec_metadata(codec, 2)
        settings: Any = described["configuration"]
        assert compress(codec, values) == blosc.compress(
            values,
            settings["cname"].encode(),
            settings["clevel"],
            {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[settings["shuffle"]],
            settings["blocksize"],
            settings["typesize"],
        )
    assert compress(ZSTD, values) == zstd.compress(
        values, codec_metadata(ZSTD, 1)[0]["configuration"]["level"]
    )  # type: ignore[index]


@pytest.mark.parametrize("codec", [RAW, ZSTD, BLOSC, COLUMNS])
def test_a_codec_is_recognised_by_its_metadata(codec: str) -> None:
    chain = [
        *transpose_metadata(codec, 1, 3),
        {"name": "bytes"},
        *codec_metadata(codec, 2),
        {"name": "crc32c"},
    ]
    assert codec_of(chain) == codec


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (24, 5), (1024, 177), (6, 2, 3)])
def test_columns_lie_one_behind_the_other(shape: tuple[int, ...]) -> None:
    """The order that `transpose` names is that of the bytes: all rows of the first column first."""
    values = codes("<u2", int(np.prod(shape))).reshape(shape)
    data = compress(COLUMNS, values)
    behind = np.frombuffer(blosc.decompress(data), "<u2")
    ((transpose),) = transpose_metadata(COLUMNS, 0, len(shape))
    order: Any = transpose["configuration"]
    assert behind.tobytes() == values.transpose(order["order"]).tobytes()
    assert whole(COLUMNS, data, values).tobytes() == values.tobytes()


# Lies


def blosc_header(data: bytes, *, at: int, value: int) -> bytes:
    """A blosc buffer with another 32-bit number: 4 its content, 8 its blocks, 12 its own size."""
    return data[:at] + value.to_bytes(4, "little") + data[at + 4 :]


def zstd_frames() -> dict[str, bytes]:
    """Frames of 600 bytes that say something else, or nothing."""
    values = codes("|u1")
    good = compress(ZSTD, values)
    assert good[4] == 0x60  # a single segment, whose size has two bytes
    magic, blocks = good[:4], good[7:]
    return {
        "says one more": magic + bytes([0x60]) + (601 - 256).to_bytes(2, "little") + blocks,
        "says one less": magic + bytes([0x60]) + (599 - 256).to_bytes(2, "little") + blocks,
        "says a terabyte": magic + bytes([0xE0]) + (1 << 40).to_bytes(8, "little") + blocks,
        "says all that there is": magic + bytes([0xE0]) + b"\xff" * 8 + blocks,
        "says nothing": magic + bytes([0x00, 0x58]) + blocks,
        "holds more than it says": magic
        + bytes([0x60])
        + (600 - 256).to_bytes(2, "little")
        + compress(ZSTD, codes("|u1", 1000))[7:],
        "holds less than it says": magic
        + bytes([0x60])
        + (600 - 256).to_bytes(2, "little")
        + compress(ZSTD, codes("|u1", 300))[7:],
        "a reserved block": magic + bytes([0x60]) + (600 - 256).to_bytes(2, "little") + b"\xff" * 40,
        "a dictionary": magic + bytes([0x63]) + b"\1\0\0\0" + (600 - 256).to_bytes(2, "little") + blocks,
        "another magic": b"\x50\x2a\x4d\x18" + good[4:],
        "no more than a head": good[:7],
        "nothing": b"",
        "a byte": b"\x28",
        "its magic": magic,
        "twice": good + good,
        "a frame of another size behind it": good + compress(ZSTD, codes("|u1", 50)),
        "the other codec": compress(BLOSC, values),
    }


def blosc_buffers() -> dict[str, bytes]:
    """Buffers of 600 numbers of two bytes that say something else."""
    values = codes("<u2")
    good = compress(BLOSC, values)
    size = len(good)
    return {
        "says one more": blosc_header(good, at=4, value=1201),
        "says one less": blosc_header(good, at=4, value=1199),
        "says two gigabytes": blosc_header(good, at=4, value=2**31 - 1),
        "says a negative number": blosc_header(good, at=4, value=2**32 - 1),
        "says nothing": blosc_header(good, at=4, value=0),
        "blocks of nothing": blosc_header(good, at=8, value=0),
        "blocks larger than all": blosc_header(good, at=8, value=1201),
        "blocks of two gigabytes": blosc_header(good, at=8, value=2**31 - 1),
        "longer than it is": blosc_header(good, at=12, value=size + 1),
        "shorter than it is": blosc_header(good, at=12, value=size - 1),
        "a gigabyte long": blosc_header(good, at=12, value=1 << 30),
        "of no length": blosc_header(good, at=12, value=0),
        "elements of four bytes": good[:3] + b"\4" + good[4:],
        "elements of no bytes": good[:3] + b"\0" + good[4:],
        "no more than a head": blosc_header(good[:16], at=12, value=16),
        "half a head": good[:9],
        "nothing": b"",
        "holds less than it says": blosc_header(compress(BLOSC, codes("<u2", 300)), at=4, value=1200),
        "the other codec": compress(ZSTD, values),
    }


LIES = [(ZSTD, "|u1", *lie) for lie in zstd_frames().items()] + [
    (codec, "<u2", *lie) for codec in (BLOSC, COLUMNS) for lie in blosc_buffers().items()
]


@pytest.mark.parametrize(("codec", "dtype", "lie", "data"), LIES, ids=[f"{x[0]}-{x[2]}" for x in LIES])
def test_a_lie_about_its_size_is_refused(codec: str, dtype: str, lie: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        whole(codec, data, codes(dtype))


@pytest.mark.parametrize(("codec", "dtype"), CODECS)
def test_every_flipped_bit_is_refused_or_gives_the_right_size(codec: str, dtype: str) -> None:
    """What is then in it is for the checksum to say; that nothing else is touched, `whole` sees."""
    values = codes(dtype, 300)
    good = compress(codec, values)
    refused = silent = 0
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        try:
            silent += whole(codec, bytes(data), values).nbytes == values.nbytes
        except ValueError:
            refused += 1
    assert refused + silent == 8 * len(good)
    assert refused > 20


@pytest.mark.parametrize(("codec", "dtype"), CODECS)
def test_every_length_but_its_own_is_refused(codec: str, dtype: str) -> None:
    values = codes(dtype, 300)
    good = compress(codec, values)
    for length in range(len(good)):
        with pytest.raises(ValueError, match=r"."):
            whole(codec, good[:length], values)
    for behind in (b"\0", b"\0" * 16, b"\xff" * 4):
        with pytest.raises(ValueError, match=r"."):
            whole(codec, good + behind, values)


@pytest.mark.parametrize(("codec", "dtype"), CODECS)
@given(data=st.binary(max_size=80))
def test_any_bytes_behind_a_plausible_head_are_survived(codec: str, dtype: str, data: bytes) -> None:
    values = codes(dtype, 40)
    heads = [b""]
    if codec == ZSTD:
        heads.append(bytes.fromhex("28b52ffd2028"))
    else:
        sizes = (values.nbytes, values.nbytes, 16 + len(data))
        for flags in (0x01, 0x81, 0x83, 0x91, 0x21, 0x61):
            heads.append(
                bytes([2, 1, flags, values.itemsize]) + b"".join(n.to_bytes(4, "little") for n in sizes)
            )
    for head in heads:
        try:
            found = whole(codec, head + data, values)
        except ValueError:
            continue
        assert found.nbytes == values.nbytes


BOMBS = """
import resource, sys
import numpy as np
from numcodecs import blosc, zstd
from logitstore.storage.format.codec import BLOSC, COLUMNS, ZSTD, compress, decompress
out8, out16 = np.zeros(1000, np.uint8), np.zeros(500, np.uint16)
decompress(ZSTD, np.frombuffer(compress(ZSTD, out8), np.uint8), out8)
decompress(BLOSC, np.frombuffer(compress(BLOSC, out16), np.uint8), out16)
bomb8, bomb16 = compress(ZSTD, np.zeros(1 << 28, np.uint8)), compress(BLOSC, np.zeros(1 << 27, np.uint16))
said = bomb8[:4] + bytes([0x60]) + (1000 - 256).to_bytes(2, "little") + bomb8[bomb8[4] == 0xa0 and 9 or 13:]
blocks = bomb16[:4] + (1000).to_bytes(4, "little") + bomb16[8:]
whole = blocks[:8] + (1000).to_bytes(4, "little") + blocks[12:]
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = held + (16 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for codec, data, out in ((ZSTD, bomb8, out8), (ZSTD, said, out8), (BLOSC, bomb16, out16), (BLOSC, blocks, out16),
                         (BLOSC, whole, out16), (COLUMNS, bomb16, out16), (COLUMNS, blocks, out16.reshape(100, 5))):
    try:
        decompress(codec, np.frombuffer(data, np.uint8), out)
        print("decoded")
    except ValueError as error:
        print("refused")
try:
    np.zeros(1 << 26, np.uint8)[:] = 1
    print("no limit")
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a limit of memory")
def test_a_bomb_takes_no_more_memory_than_its_size_allows() -> None:
    """256 MiB of zeros in some kilobytes, that say so or do not, with 16 MiB of memory to spare."""
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *tried, limited = done.stdout.split()
    assert limited == "limited"
    assert tried[0] == tried[1] == tried[2] == tried[5] == "refused"
    assert set(tried) <= {"refused", "decoded"}


# Threads


@pytest.mark.parametrize(("codec", "dtype"), CODECS)
def test_every_thread_makes_the_same_bytes(codec: str, dtype: str) -> None:
    """Also several at once, and also where somebody else told blosc to use threads of its own."""
    values = [codes(dtype, 400_000, seed) for seed in range(3)]
    wanted = [compress(codec, v) for v in values]
    before = blosc.use_threads
    try:
        for setting in (None, True, False):
            blosc.use_threads = setting
            assert [compress(codec, v) for v in values] == wanted
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda v: compress(codec, v), values * 4))
                assert found == wanted * 4
                back = list(
                    pool.map(lambda pair: whole(codec, *pair), zip(wanted * 4, values * 4, strict=True))
                )
            assert all(b.tobytes() == v.tobytes() for b, v in zip(back, values * 4, strict=True))
        thread = threading.Thread(target=lambda: found.append(compress(codec, values[0])))
        thread.start()
        thread.join()
        assert found[-1] == wanted[0]
    finally:
        blosc.use_threads = before
