"""Reads of rows by slices, ranges and lists, and those that are refused."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import stores
from support.questions import QUESTIONS
from support.stores import Made

from logitstore.storage.backends import posix
from logitstore.storage.errors import ConfigError, ShardCorrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store of small blocks of one chunk."""
    return stores.make(tmp_path_factory.mktemp("reader") / "store.zarr")


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store of blocks of two chunks; the last has rows in its first alone."""
    path = tmp_path_factory.mktemp("reader") / "chunked.zarr"
    return stores.make(path, rows=4500, block_rows=2048, teachers={"wide": stores.Teacher()}, names=False)


@given(rows=QUESTIONS, view=st.integers(0, 1), teacher=st.sampled_from(["wide", "deep"]))
def test_reading_is_indexing(made: Made, rows: Any, view: int, teacher: str) -> None:
    wanted = made.centred(teacher, {"wide": "float16", "deep": "float32"}[teacher])[view]
    index = rows if isinstance(rows, slice) else np.array(rows, dtype=np.int64)
    capture = made.store.teachers[teacher]
    found = capture.read(rows, view)
    assert found.dtype == np.float32
    assert found.tobytes() == wanted[index].tobytes()
    assert capture.peak(rows, view).tobytes() == made.logits[teacher][view].max(axis=1)[index].tobytes()
    assert np.array_equal(capture.seen(rows, view), made.store.samples.digests[index])
    assert made.store.samples.inputs is not None
    assert np.array_equal(made.store.samples.inputs[rows], made.inputs[index])


@given(rows=st.lists(st.integers(0, 4499), max_size=20).map(sorted), start=st.integers(0, 4499))
def test_reading_over_chunks_and_blocks(chunked: Made, rows: list[int], start: int) -> None:
    wanted = chunked.centred("wide")[0]
    capture = chunked.store.teachers["wide"]
    assert np.array_equal(capture.read(rows), wanted[np.array(rows, dtype=np.int64)])
    assert np.array_equal(capture.read(slice(start, start + 1500)), wanted[start : start + 1500])


def test_only_the_chunks_that_hold_the_rows_are_read(chunked: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from logitstore.storage.backends.local import Folder

    asked: list[tuple[str, int, int]] = []
    read: Callable[..., int] = Folder.read_through

    def counted(self: Folder, key: str, offset: int, length: int, *how: Any) -> int:
        asked.append((key, offset, length))
        return read(self, key, offset, length, *how)

    capture = chunked.store.teachers["wide"]
    monkeypatch.setattr(Folder, "read_through", counted)
    capture.read([1024, 1025, 4096])
    chunk = 1024 * 5 * 2 + 4
    assert asked == [("logits/c.0.0.0", chunk, chunk), ("logits/c.0.2.0", 0, chunk)]


def test_the_chunk_that_is_wrong_is_named(tmp_path: Path) -> None:
    made = stores.make(
        tmp_path / "s", rows=2048, block_rows=2048, teachers={"wide": stores.Teacher()}, names=False
    )
    key = "teachers/wide/logits/c.0.0.0"
    stores.flip(made.path / key, 8 * (1024 * 5 * 2 + 4) + 100)
    capture = made.store.teachers["wide"]
    assert capture.read(slice(0, 1024)).shape == (1024, 5)
    for rows in ([1500], slice(1000, 1100)):
        with pytest.raises(ShardCorrupt) as caught:
            capture.read(rows)
        assert str(caught.value).startswith(f"{made.path / key} (rows 0 to 2047), chunk 1: expected crc32c ")


# Chunks that are large enough to be read into their place


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store of blocks of two chunks of 400 KB."""
    path = tmp_path_factory.mktemp("reader") / "large.zarr"
    teachers = {"wide": stores.Teacher(), "codes": stores.Teacher(encoding={"max_kl": 1e-6})}
    return stores.make(path, rows=3500, classes=200, block_rows=2048, teachers=teachers, names=False)


@pytest.mark.parametrize("piece", [70_000, 100_000, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_large_chunks_are_read_by_pieces_of_any_length(
    large: Made, piece: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into their place and through a buffer in turn, whatever the operating system returns of a piece."""
    random, preadv = np.random.default_rng(seed), os.preadv
    lengths: list[int] = []

    def some(handle: int, buffers: Sequence[memoryview], offset: int) -> int:
        most = 1 + int(random.integers(len(buffers[0]) if seed else 1 << 30))
        lengths.append(len(buffers[0]))
        return preadv(handle, [buffers[0][:most]], offset)

    wanted = large.centred("wide")[0]
    codes = {rows: large.store.teachers["codes"].read(slice(*rows)).tobytes() for rows in SPANS}
    monkeypatch.setattr(posix, "PIECE_BYTES", piece)
    monkeypatch.setattr("os.preadv", some)
    for rows in SPANS:
        found = large.store.teachers["wide"].read(slice(*rows))
        assert found.tobytes() == wanted[slice(*rows)].tobytes()
        assert large.store.teachers["codes"].read(slice(*rows)).tobytes() == codes[rows]
    # A whole chunk is read into its place, and then the checksum behind it.
    assert piece < 1 << 20 or {1024 * 200 * 2, 4} <= set(lengths)


SPANS = [(0, 3500), (1, 3000), (1024, 2048), (2000, 2100), (3072, 3500)]
"""Whole chunks, and parts of them."""


@pytest.mark.parametrize("place", [0, 65_535, 65_536, 200_001, 409_599])
def test_a_bit_of_a_large_chunk_is_noticed(large: Made, place: int) -> None:
    key, chunk = "teachers/wide/logits/c.0.0.0", 1024 * 200 * 2 + 4
    for number in (0, 1):
        stores.flip(large.path / key, 8 * (number * chunk + place))
        try:
            with pytest.raises(ShardCorrupt, match=rf"chunk {number}: expected crc32c "):
                large.store.teachers["wide"].read(slice(0, 2048))
        finally:
            stores.flip(large.path / key, 8 * (number * chunk + place))
    assert large.store.teachers["wide"].read(slice(0, 2048)).shape == (2048, 200)


@pytest.mark.parametrize("kept", [0, 100, 409_600, 409_602, 409_604, 600_000, 819_208])
def test_a_file_that_ends_within_a_large_chunk_is_noticed(large: Made, tmp_path: Path, kept: int) -> None:
    """Also one that is cut between `fstat` and the read, of which nothing but the read knows."""
    file = large.path / "teachers/wide/logits/c.0.0.0"
    whole = file.read_bytes()
    try:
        os.truncate(file, kept)
        found = f"found {kept}"
        with pytest.raises(ShardCorrupt, match=found):
            large.store.teachers["wide"].read(slice(0, 2048))
        with mock.patch("os.fstat", lambda handle: SimpleNamespace(st_mode=0o100644, st_size=len(whole))):
            if kept < 819_208:
                with pytest.raises(ShardCorrupt, match=found):
                    large.store.teachers["wide"].read(slice(0, 2048))
    finally:
        file.write_bytes(whole)


def test_large_arrays_lie_apart_from_the_bytes_of_a_file() -> None:
    for shape, dtype in (((40, 1000), "float32"), ((70_001,), "uint8"), ((3, 20_000), "int64")):
        array = posix.room_for(shape, np.dtype(dtype))
        assert array.shape == shape and array.dtype == np.dtype(dtype) and array.flags.c_contiguous
        assert array.ctypes.data % 4096 == 2048
    assert posix.room_for((5, 3), np.dtype("float16")).flags.owndata


_SORT = "sort them, and leave out those that the store does not have"
_NUMBERS = "pass one list of whole numbers"


REFUSED: dict[str, tuple[Any, str, str]] = {
    "row 37 of 37": ([37], "row 37", _SORT),
    "row -1": ([-1, 2], "row -1", _SORT),
    "descending": ([5, 4], "rows that go down", _SORT),
    "a descending slice": (slice(None, None, -1), "rows that go down", _SORT),
    "a range beyond the end": (range(30, 40), "30 to 40", _SORT),
    "a range before the start": (range(-3, 3), "-3 to 3", _SORT),
    "a number": (3, "an array of shape () and dtype int64", _NUMBERS),
    "two axes": ([[1, 2]], "an array of shape (1, 2) and dtype int64", _NUMBERS),
    "a mask": ([True, False], "an array of shape (2,) and dtype bool", "pass np.flatnonzero(mask)"),
    "fractions": ([0.5], "an array of shape (1,) and dtype float64", _NUMBERS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_out_of_order_or_range_are_refused(made: Made, case: str) -> None:
    rows, found, remedy = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        made.store.teachers["wide"].read(rows)
    error = caught.value
    assert (error.where, error.found, error.remedy) == ("rows", found, remedy)
    assert error.expected == "a slice, or ascending integers from 0 to 36"


@pytest.mark.parametrize("view", [-1, 2])
def test_views_out_of_range_are_refused(made: Made, view: int) -> None:
    message = f"teachers/wide: view: expected 0 to 1, found {view}; choose a view that was captured"
    with pytest.raises(ConfigError, match=re.escape(message)):
        made.store.teachers["wide"].read(slice(None), view)


def test_the_attributes_of_a_store(made: Made) -> None:
    samples, wide = made.store.samples, made.store.teachers["wide"]
    assert (made.store.num_rows, made.store.num_classes, made.store.block_rows) == (37, 5, 8)
    assert np.array_equal(samples.labels, made.labels)
    assert samples.source.tolist() == list(range(37))
    assert samples.ids == [f"row-{row}" for row in range(37)]
    assert made.store.class_names == [f"clàss {c}" for c in range(5)]
    assert wide.shape == (2, 37, 5)
    assert wide.classes.tolist() == [0, 1, 2, 3, 4]
    assert wide.provenance["teacher"] == {"name": "wide"}
    assert wide.provenance["encoding"] == {"kind": "float16"}
    assert repr(wide) == "<Capture 'wide' (view, row, class) = (2, 37, 5), float16>"


def test_what_a_caller_changes_is_not_what_the_next_one_reads(made: Made) -> None:
    """Arrays that callers share are read-only, lists are their own."""
    samples = made.store.samples
    for shared in (samples.labels, samples.source, samples.digests, made.store.teachers["wide"].classes):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = 1
    names, ids = list(made.store.class_names), samples.ids
    assert ids is not None
    made.store.class_names.sort(reverse=True)
    ids.clear()
    assert made.store.class_names == names and samples.ids
    own = samples.labels.copy()  # control: a copy is free
    own[0] = -1


def test_inputs_are_lazy_and_behave_as_an_array(made: Made) -> None:
    inputs = made.store.samples.inputs
    assert inputs is not None
    assert (inputs.shape, inputs.dtype, len(inputs)) == ((37, 3, 2), np.uint8, 37)
    assert np.array_equal(inputs[7], made.inputs[7])
    assert np.array_equal(list(inputs), made.inputs)


def test_names_and_inputs_may_be_absent(chunked: Made, tmp_path: Path) -> None:
    assert chunked.store.samples.ids is None
    assert chunked.store.class_names == ["0", "1", "2", "3", "4"]
    assert stores.make(tmp_path / "s", rows=3, teachers={}, store_inputs=False).store.samples.inputs is None


def test_a_reader_that_is_off_by_one_is_noticed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of `test_reading_is_indexing`."""
    from logitstore.storage.parts.part_reader import PartReader

    read = PartReader.read

    def shifted(self: PartReader, array: str, rows: Any, view: int = 0) -> Any:
        return np.roll(read(self, array, rows, view), 1, axis=0)

    monkeypatch.setattr(PartReader, "read", shifted)
    found = made.store.teachers["wide"].read(slice(None))
    assert found.tobytes() != made.centred("wide")[0].tobytes()
