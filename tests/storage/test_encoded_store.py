"""Encoded captures, written, resumed, read, streamed, verified and repaired as any other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import stores
from support.divergences import kl
from support.encoded import CLASSES, ENCODINGS, make
from support.questions import QUESTIONS
from support.stores import Made, Teacher

from logitstore.storage.api import Capture, Store, create_store, open_store
from logitstore.storage.backends.local import Folder
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.encodings.top_k import TopK
from logitstore.storage.errors import (
    BadLogitsError,
    ConfigError,
    ShardCorrupt,
    ShardMissing,
    SpecMismatch,
    StoreCorrupt,
    WrongStore,
)
from logitstore.storage.format.constants import TEMPERATURES
from logitstore.storage.integrity.repair import DONE, repair
from logitstore.storage.integrity.verify import CLEAN, CORRUPT, verify
from logitstore.storage.parts import part_writer
from logitstore.storage.stream.batch import TopKRows
from logitstore.storage.stream.window import Buffers

pytestmark = pytest.mark.usefixtures("without_fsync")

ENCODED = ("codes", "bytes", "shifted", "largest")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store of small blocks of one chunk."""
    with mock.patch("os.fsync"):
        return make(tmp_path_factory.mktemp("encoded") / "store.zarr")


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store of blocks of two chunks; the last has rows in its first alone."""
    with mock.patch("os.fsync"):
        return make(
            tmp_path_factory.mktemp("encoded") / "chunked.zarr", rows=4500, block_rows=2048, names=False
        )


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    """Return the small store, to be damaged."""
    shutil.copytree(made.path, tmp_path / "store.zarr")
    return Made(
        tmp_path / "store.zarr", open_store(tmp_path / "store.zarr"), made.inputs, made.labels, made.logits
    )


def wanted(made: Made, name: str, temperature: float | None = None) -> NDArray[np.float32]:
    """Return the logits (view, row, class) that should come back, by the encoding alone."""
    encoding = encoding_named(ENCODINGS[name])
    views = [encoding.encode(view, 0, "x") for view in made.logits[name]]
    return np.stack([encoding.decode(view, CLASSES, temperature) for view in views])


# Reading


@given(rows=QUESTIONS, view=st.integers(0, 1), name=st.sampled_from(ENCODED), temperature=st.floats(0.5, 20))
def test_reading_is_indexing(made: Made, rows: Any, view: int, name: str, temperature: float) -> None:
    index = rows if isinstance(rows, slice) else np.array(rows, dtype=np.int64)
    capture = made.store.teachers[name]
    found = capture.read(rows, view, temperature)
    assert found.dtype == np.float32
    assert found.tobytes() == wanted(made, name, temperature)[view][index].tobytes()
    assert capture.peak(rows, view).tobytes() == made.logits[name][view].max(axis=1)[index].tobytes()
    assert np.array_equal(capture.seen(rows, view), made.store.samples.digests[index])


@given(rows=st.lists(st.integers(0, 4499), max_size=20).map(sorted), start=st.integers(0, 4499))
def test_reading_over_chunks_and_blocks(chunked: Made, rows: list[int], start: int) -> None:
    for name in ("codes", "bytes", "largest"):
        truth = chunked_truth(chunked, name)
        capture = chunked.store.teachers[name]
        scattered = capture.read(rows, 1, 2.0)
        assert scattered.tobytes() == truth[np.array(rows, dtype=np.int64)].tobytes()
        assert (
            capture.read(slice(start, start + 1500), 1, 2.0).tobytes()
            == truth[start : start + 1500].tobytes()
        )


TRUTHS: dict[tuple[Path, str], NDArray[np.float32]] = {}


def chunked_truth(made: Made, name: str) -> NDArray[np.float32]:
    """Make view 1 at T = 2 once."""
    if (made.path, name) not in TRUTHS:
        TRUTHS[made.path, name] = wanted(made, name, 2.0)[1]
    return TRUTHS[made.path, name]


def test_only_the_chunks_that_hold_the_rows_are_read_and_an_index_once(
    chunked: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int]] = []
    read: Callable[..., tuple[bytes, int]] = Folder.read_range
    read_through: Callable[..., int] = Folder.read_through

    def counted(self: Folder, key: str, offset: int, length: int) -> tuple[bytes, int]:
        asked.append((key, offset, length))
        return read(self, key, offset, length)

    def counted_through(self: Folder, key: str, offset: int, length: int, *how: Any) -> int:
        asked.append((key, offset, length))
        return read_through(self, key, offset, length, *how)

    capture = open_store(chunked.path).teachers["codes"]
    file = capture.part.folder.path / "logits/c.0.0.0"
    size, table = file.stat().st_size, np.frombuffer(file.read_bytes()[-36:-4], "<u8").tolist()
    monkeypatch.setattr(Folder, "read_range", counted)
    monkeypatch.setattr(Folder, "read_through", counted_through)
    capture.read([1024, 1025])
    assert asked == [("logits/c.0.0.0", size - 36, 36), ("logits/c.0.0.0", table[2], table[3])]
    asked.clear()
    capture.read([3, 4])
    assert asked == [("logits/c.0.0.0", 0, table[1])]


def test_what_a_capture_says_of_itself(made: Made) -> None:
    codes, largest = made.store.teachers["codes"], made.store.teachers["largest"]
    assert codes.shape == largest.shape == (2, 37, CLASSES)
    assert codes.provenance["encoding"] == encoding_named(ENCODINGS["codes"]).describe()
    assert codes.encoding.bound(3.0) == pytest.approx(1e-3 * (1.5 / 3) ** 2)
    assert largest.encoding.bound(3.0) is None
    assert repr(largest) == f"<Capture 'largest' (view, row, class) = (2, 37, {CLASSES}), top-k>"
    assert set(codes.read_stored([0])) == {"logits"}
    assert set(largest.read_stored([0])) == {"index", "logits", "tail"}
    assert made.store.teachers["bytes"].read_stored([0])["logits"].dtype == np.uint8


@pytest.mark.parametrize("name", ENCODED)
def test_the_divergence_that_is_stored_is_the_divergence(made: Made, name: str) -> None:
    capture = made.store.teachers[name]
    for view in (0, 1):
        stored = capture.divergence(slice(3, 30), view)
        assert stored.shape == (27, len(TEMPERATURES))
        for column, temperature in enumerate(TEMPERATURES):
            truth = kl(made.logits[name][view], capture.read(slice(None), view, temperature), temperature)[
                3:30
            ]
            assert (stored[:, column] >= truth * 0.9999 - 1e-12).all()
            assert (stored[:, column] <= truth * 1.005 + 1e-12).all()
            bound = capture.encoding.bound(temperature)
            if bound is not None and temperature >= 1.5:
                assert truth.max() <= bound
                assert truth.max() > 0


def test_where_nothing_was_measured_there_is_no_divergence(made: Made) -> None:
    with pytest.raises(ConfigError, match="teachers/plain: divergence: expected an encoded capture"):
        made.store.teachers["plain"].divergence()


def test_top_k_rows_need_a_temperature(made: Made) -> None:
    capture = made.store.teachers["largest"]
    message = "teachers/largest: temperature: expected the temperature of the softmax"
    calls: list[Callable[[], Any]] = [
        lambda: capture.read([0]),
        capture.dask,
        lambda: made.store.stream(teachers=["plain", "largest"]),
    ]
    for refused in calls:
        with pytest.raises(ConfigError, match=message):
            refused()
    with pytest.raises(ConfigError, match="temperature: expected a temperature from 1e-06"):
        capture.read([0], temperature=0.0)
    assert made.store.teachers["codes"].read([0]).shape == (1, CLASSES)


def test_dask_is_read(made: Made) -> None:
    for name in ENCODED:
        capture = made.store.teachers[name]
        array = capture.dask(temperature=4.0)
        assert (array.dtype, array.shape) == (np.float32, (2, 37, CLASSES))
        found = array.compute(scheduler="synchronous")
        assert found.tobytes() == wanted(made, name, 4.0).tobytes()
    hot, cold = (made.store.teachers["largest"].dask(t)[0].compute(scheduler="threads") for t in (8.0, 1.0))
    assert not np.array_equal(hot, cold)


def test_a_store_is_opened_as_of_a_digest(made: Made) -> None:
    assert open_store(made.path, expect=made.store.digest).digest == made.store.digest
    with pytest.raises(WrongStore):
        open_store(made.path, expect="sha256:" + "0" * 64)


# Streams


@pytest.mark.parametrize("window", [None, 10])
def test_a_stream_of_several_encodings(made: Made, window: int | None) -> None:
    stream = made.store.stream(batch_size=7, views="all", window=window, temperature=4.0)
    seen = 0
    for batch in stream:
        assert batch.scale == {}
        for name in ENCODINGS:
            found = batch.logits[name]
            assert isinstance(found, np.ndarray)
            truth = wanted(made, name, 4.0)[batch.views, batch.rows]
            assert found.tobytes() == truth.tobytes()
        seen += len(batch)
    assert seen == 2 * 37


def test_a_stream_of_what_is_stored(made: Made) -> None:
    """Integers up to the device, without a temperature."""
    stream = made.store.stream(batch_size=9, views="all", decode=False)
    for batch in stream:
        scales = {name: encoding_named(ENCODINGS[name]).scale for name in ("codes", "bytes", "shifted")}
        assert batch.scale == scales
        for name in ("codes", "bytes", "shifted"):
            stored = batch.logits[name]
            assert isinstance(stored, np.ndarray)
            assert stored.dtype == (np.uint8 if name == "bytes" else np.uint16)
            decoded = stored.astype(np.float32) * np.float32(batch.scale[name])
            assert np.array_equal(decoded, wanted(made, name)[batch.views, batch.rows])
        rows = batch.logits["largest"]
        assert isinstance(rows, TopKRows)
        assert (rows.index.dtype, rows.logits.dtype, rows.tail.dtype) == (np.uint16, np.float16, np.float32)
        assert rows.num_classes == CLASSES
        stored_rows = {"index": rows.index, "logits": rows.logits, "tail": rows.tail}
        decoded = TopK(4).decode(stored_rows, CLASSES, 2.0)
        assert decoded.tobytes() == wanted(made, "largest", 2.0)[batch.views, batch.rows].tobytes()


@pytest.mark.parametrize("window", [None, 8])
def test_windows_take_what_is_said_beforehand(
    made: Made, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    stream = made.store.stream(batch_size=5, views="all", window=window, temperature=1.0)
    sizes = set()
    take = Buffers.take

    def counted(self: Buffers, rows: int) -> dict[str, NDArray[Any]]:
        arrays = take(self, rows)
        sizes.add(sum(array.nbytes for array in arrays.values()))
        return arrays

    monkeypatch.setattr(Buffers, "take", counted)
    list(stream)
    index = 8 * (stream.window_bytes // stream.row_bytes)
    assert sizes == {stream.window_bytes - index}
    # Codes are held as they are stored: a quarter of float32, and an eighth.
    for name, width in (("codes", 2 * CLASSES), ("bytes", CLASSES), ("largest", 4 * (2 + 2) + 12)):
        assert made.store.stream(teachers=[name], inputs=False, temperature=1.0).row_bytes == width + 32


# Writing


def write(store: Store, name: str, logits: NDArray[np.float32], blocks: int | None = None) -> None:
    """Write some blocks of each view, or all missing ones."""
    with store.capture(name, provenance={}, views=len(logits), encoding=ENCODINGS[name]) as capture:
        for view in range(len(logits)):
            for number, rows in enumerate(capture.missing_blocks(view)):
                if blocks is None or number < blocks:
                    capture.write(rows, logits[view, rows.start : rows.stop], view=view)


def empty_store(path: Path, rows: int = 37, classes: int = CLASSES, block_rows: int = 8) -> Store:
    return create_store(
        path,
        num_rows=rows,
        num_classes=classes,
        digests=np.arange(rows, dtype=np.uint64),
        block_rows=block_rows,
    )


@pytest.mark.parametrize("name", ENCODED)
def test_a_resumed_capture_has_the_bytes_of_one_that_was_never_stopped(
    made: Made, tmp_path: Path, name: str
) -> None:
    for place, legs in (("once", [None]), ("legs", [1, 2, None])):
        for blocks in legs:
            path = tmp_path / place
            store = open_store(path) if path.exists() else empty_store(path)
            write(store, name, made.logits[name], blocks)
            assert (name in open_store(path).teachers) is (blocks is None)
    assert stores.tree(tmp_path / "once") == stores.tree(tmp_path / "legs")
    assert verify(tmp_path / "legs", deep=True).exit_code == CLEAN


@pytest.mark.parametrize("name", ENCODED)
def test_the_pieces_in_which_a_block_is_encoded_leave_no_trace(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = stores.some_logits(1, 2500, CLASSES)
    for place, piece in (("whole", 1 << 20), ("pieces", 5000)):
        monkeypatch.setattr(part_writer, "_PIECE_BYTES", piece)
        write(empty_store(tmp_path / place, rows=2500, block_rows=2048), name, logits)
    assert stores.tree(tmp_path / "whole") == stores.tree(tmp_path / "pieces")


def test_another_encoding_is_another_capture(made: Made, tmp_path: Path) -> None:
    store = empty_store(tmp_path / "s")
    write(store, "codes", made.logits["codes"], 1)
    budget = ErrorBudget(1e-3, 1.5)
    for other in (
        "float16",
        {"top_k": 4},
        {"max_kl": 1e-3},
        {"max_kl": 1.1e-3, "min_temperature": 1.5},
        ErrorBudget(1e-3, 1.5, dtype="uint8"),
        ErrorBudget(1e-3, 1.5, shift=1),
        ErrorBudget(1e-3, 1.5, source_error=1e-3),
    ):
        with pytest.raises(SpecMismatch):
            open_store(tmp_path / "s").capture("codes", provenance={}, views=2, encoding=other).close()
    open_store(tmp_path / "s").capture("codes", provenance={}, views=2, encoding=budget).close()


@pytest.mark.parametrize("name", ["codes", "bytes", "largest"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e20])
def test_a_first_row_that_is_refused_leaves_nothing_behind(tmp_path: Path, name: str, bad: float) -> None:
    store = empty_store(tmp_path / "s")
    before = stores.tree(tmp_path / "s")
    logits = stores.some_logits(2, 37, CLASSES)
    logits[0, 3, 7] = bad
    with pytest.raises(BadLogitsError, match=f"teacher '{name}', view 0, row 3, class 7: expected"):
        write(store, name, logits)
    assert stores.tree(tmp_path / "s") == before
    logits[0, 3, 7] = 0
    write(open_store(tmp_path / "s"), name, logits)
    assert verify(tmp_path / "s", deep=True).exit_code == CLEAN


def test_a_k_beyond_the_classes_leaves_nothing_behind(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "s")
    before = stores.tree(tmp_path / "s")
    for encoding, classes in (({"top_k": 31}, None), ({"top_k": 4}, [0, 1, -1])):
        with pytest.raises(ConfigError, match="encoding: top_k: expected at most"):
            store.capture("largest", provenance={}, encoding=encoding, classes=classes)
    assert stores.tree(tmp_path / "s") == before


def test_columns_of_a_specialist_may_be_encoded(tmp_path: Path) -> None:
    classes = [5, 3, 20, -1]
    logits = stores.some_logits(1, 37, 4)[0]
    store = empty_store(tmp_path / "s")
    for name, encoding in (("codes", {"max_kl": 1e-3}), ("largest", {"top_k": 2}), ("all", {"top_k": 4})):
        with store.capture(name, provenance={}, encoding=encoding, classes=classes) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, logits[rows.start : rows.stop])
        found = open_store(tmp_path / "s").teachers[name]
        # Top-k rows have the class of the lower number first, the dustbin last.
        order = [0, 1, 2, 3] if name == "codes" else [1, 0, 2, 3]
        assert found.classes.tolist() == [classes[column] for column in order]
        assert found.shape == (1, 37, 4)
        assert kl(logits[:, order], found.read(slice(None), temperature=1.0), 1.0).max() < (
            5 if name == "largest" else 1e-3
        )


@pytest.mark.parametrize(("classes", "dtype"), [(65_535, "uint16"), (65_536, "uint32")])
def test_many_classes(tmp_path: Path, classes: int, dtype: str) -> None:
    logits = stores.some_logits(1, 3, classes)
    logits[0, :, -1] = 20
    store = empty_store(tmp_path / "s", rows=3, classes=classes, block_rows=2)
    write(store, "largest", logits)
    capture = open_store(tmp_path / "s").teachers["largest"]
    assert capture.read_stored(slice(None))["index"].dtype == dtype
    assert capture.read_stored(slice(None))["index"][:, 0].tolist() == [classes - 1] * 3
    assert capture.read([1], temperature=1.0)[0, -1] == 0
    assert verify(tmp_path / "s", deep=True).exit_code == CLEAN


# Damage

ARRAYS = {"codes": ("logits", "error"), "bytes": ("logits",), "largest": ("logits", "index", "tail", "error")}
SHARDS = [(name, array) for name, arrays in ARRAYS.items() for array in arrays]


def read_of(capture: Capture, array: str, rows: Any) -> Any:
    """Return a read that needs an array."""
    return capture.divergence(rows, 1) if array == "error" else capture.read(rows, 1, 2.0)


def shard_of(made: Made, name: str, array: str) -> Path:
    """Return the shard of view 1, block 2 (rows 16 to 23)."""
    (file,) = (made.path / f"teachers/{name}/{array}").glob("c.1.2*")
    return file


@pytest.mark.parametrize(("name", "array"), SHARDS)
def test_a_damaged_shard_is_found_by_who_reads_it_and_by_verify(copy: Made, name: str, array: str) -> None:
    assert verify(copy.path, deep=True).exit_code == CLEAN
    file = shard_of(copy, name, array)
    good = file.read_bytes()
    damages: dict[str, bytes | None] = {
        "a bit": good[:5] + bytes([good[5] ^ 8]) + good[6:],
        "cut": good[:-1],
        "longer": good + b"\0",
        "empty": b"",
        "another block": (file.parent / file.name.replace("c.1.2", "c.1.1")).read_bytes(),
        "gone": None,
    }
    for damage, data in damages.items():
        file.unlink(missing_ok=True)
        if data is not None:
            file.write_bytes(data)
        capture = open_store(copy.path).teachers[name]
        with pytest.raises(ShardMissing if data is None else ShardCorrupt) as caught:
            read_of(capture, array, [17])
        assert str(caught.value).startswith(f"{file} (rows 16 to 23)"), damage
        assert len(read_of(capture, array, [3, 24])) == 2  # the rest can be read
        report = verify(copy.path, deep=damage == "a bit" or damage == "another block")
        assert report.exit_code == CORRUPT, damage
        assert [problem.where.partition(" ")[0].partition(",")[0] for problem in report.problems] == [
            str(file)
        ]
    file.write_bytes(good)
    assert verify(copy.path, deep=True).exit_code == CLEAN


@pytest.mark.parametrize("name", ["codes", "bytes"])
def test_every_byte_of_a_coded_shard_is_checked(copy: Made, name: str) -> None:
    """Also bits of its index, by which chunks are found. No read looks at a chunk's own checksum: the seal has it."""
    file = shard_of(copy, name, "logits")
    size = file.stat().st_size
    own = range(size - 20 - 4, size - 20)
    truth = wanted(copy, name)[1, 16:24].tobytes()
    for bit in range(3, size * 8, 41):
        stores.flip(file, bit)
        if bit // 8 in own:
            assert open_store(copy.path).teachers[name].read(slice(16, 24), 1).tobytes() == truth
            assert verify(copy.path, deep=True).exit_code == CORRUPT
        else:
            with pytest.raises(ShardCorrupt):
                open_store(copy.path).teachers[name].read(slice(16, 24), 1)
        stores.flip(file, bit)
    assert open_store(copy.path).teachers[name].read(slice(16, 24), 1).tobytes() == truth


@pytest.mark.parametrize(("name", "array"), SHARDS)
def test_a_torn_shard_is_thrown_away_and_made_again(copy: Made, name: str, array: str) -> None:
    whole = stores.tree(copy.path)
    file = shard_of(copy, name, array)
    file.write_bytes(file.read_bytes()[:-3])
    done = repair(copy.path)
    assert done.exit_code == DONE
    assert list(done.removed) == [file.relative_to(copy.path).as_posix()]
    store = open_store(copy.path)
    stores.write_capture(
        store, name, copy.logits[name], Teacher(views=2, encoding=ENCODINGS[name]), copy.inputs
    )
    assert stores.tree(copy.path) == whole


@pytest.mark.parametrize(
    ("name", "array"), [*SHARDS, ("codes", "classes"), ("largest", "classes"), ("bytes", "error")]
)
def test_lost_metadata_of_an_array_are_put_back_by_its_writer(copy: Made, name: str, array: str) -> None:
    whole = stores.tree(copy.path)
    key = f"teachers/{name}/{array}/zarr.json"
    (copy.path / key).unlink()
    with pytest.raises(StoreCorrupt):
        _ = open_store(copy.path).teachers[name].classes
    done = repair(copy.path)
    assert (done.missing, done.exit_code) == ([key], DONE)
    stores.write_capture(
        open_store(copy.path),
        name,
        copy.logits[name],
        Teacher(views=2, encoding=ENCODINGS[name]),
        copy.inputs,
    )
    assert stores.tree(copy.path) == whole


@pytest.mark.parametrize("name", ["codes", "largest"])
def test_a_lost_table_of_the_seal_is_rebuilt(copy: Made, name: str) -> None:
    """From the commit records, or from the shards if one of these is lost, too."""
    whole = stores.tree(copy.path)
    folder = copy.path / f"teachers/{name}/__logitstore__"
    (folder / "seal.bin").unlink()
    (folder / "commits/1-2.json").unlink()
    assert repair(copy.path).exit_code == DONE
    assert stores.tree(copy.path) == whole


@pytest.mark.parametrize("name", ENCODED)
def test_whole_blocks_without_a_record_are_adopted_and_torn_ones_made_again(
    made: Made, tmp_path: Path, name: str
) -> None:
    """The remains of a writer that was killed between its shards and its record, or within a shard."""
    write(empty_store(tmp_path / "whole"), name, made.logits[name])
    write(empty_store(tmp_path / "s"), name, made.logits[name], 3)
    part = tmp_path / f"s/teachers/{name}"
    (part / "__logitstore__/commits/0-1.json").unlink()
    (part / "__logitstore__/commits/1-2.json").unlink()
    (file,) = (part / "logits").glob("c.1.2*")
    file.write_bytes(file.read_bytes()[:-9])
    store = open_store(tmp_path / "s")
    capture = store.capture(name, provenance={}, views=2, encoding=ENCODINGS[name])
    assert [len(list(capture.missing_blocks(view))) for view in (0, 1)] == [2, 3]
    capture.close()
    write(open_store(tmp_path / "s"), name, made.logits[name])
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "whole")
