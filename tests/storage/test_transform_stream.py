"""Streams of captures in the transform encoding: rows equal to those of the formula, in every order and division.

`decoded_by_hand` reads with Zarr's own reader and decodes by the formula of the format page, in float64.
"""

import gc
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import transform_stores
from support.stores import softmax
from support.transform_stores import CLASSES, MAX_KL, ROWS, VIEWS, Transformed, decoded_by_hand, escaped_rows

from logitstore.storage.encodings.refine import ESCAPED
from logitstore.storage.errors import ConfigError, ManifestInvalid, ShardCorrupt
from logitstore.storage.parts.reader import CaptureReader
from logitstore.storage.stream import escaped, picker, shared_basis
from logitstore.storage.stream.batch import Batch, TransformRows
from logitstore.storage.stream.escaped import EscapedRows
from logitstore.storage.stream.stream import Stream
from logitstore.storage.stream.window import Buffers

TEACHERS = ("wide", "deep")
Truth = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Transformed:
    """Make the store of these tests."""
    return transform_stores.make(tmp_path_factory.mktemp("transform") / "store.zarr")


@pytest.fixture(scope="module")
def truth(made: Transformed) -> Truth:
    """Return the rows by teacher, (view, row, class), decoded by hand."""
    return {name: np.stack([decoded_by_hand(made, name, view) for view in range(VIEWS)]) for name in TEACHERS}


@pytest.fixture
def nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave windows no room for escaped rows, which are then read with their batch."""
    monkeypatch.setattr(escaped.EscapedField, "most_rows", lambda *_: 0)


def stream_of(made: Transformed, **settings: Any) -> Stream:
    return made.store.stream(
        **{"batch_size": 16, "teachers": TEACHERS, "inputs": False, "seed": 3} | settings
    )


def rows_of(batch: Batch, name: str) -> TransformRows:
    """Return the rows of a teacher as they are stored."""
    stored = batch.logits[name]
    assert isinstance(stored, TransformRows)
    return stored


def dense(batch: Batch, name: str) -> NDArray[Any]:
    """Return the logits of a teacher, decoded now or already."""
    logits = batch.logits[name]
    return logits.decode() if isinstance(logits, TransformRows) else np.asarray(logits)


def assert_belongs(batch: Batch, truth: Truth) -> None:
    """Assert that the logits are those of the batch's rows and views."""
    for name in batch.logits:
        np.testing.assert_allclose(dense(batch, name), truth[name][batch.views, batch.rows], atol=2e-5)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"views": "all"},
    {"views": "all", "window": 20, "batch_size": 50},
    {"views": 1, "shuffle": False, "batch_size": 1000},
    {"views": "all", "rows": [3, 3, 3, 4, 13, 14, 100, 149], "batch_size": 3},
    {"strata": [range(70), [3, 13, 23, 24]], "shares": [3, 1], "window": 16},
    {"views": "all", "batch_size": 7, "drop_last": True},
]


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_row_is_that_of_its_place(
    made: Transformed, truth: Truth, settings: dict[str, Any], decode: bool
) -> None:
    stream = stream_of(made, decode=decode, **settings)
    for _ in range(2):  # "cycle" takes the other view
        batches = list(stream)
        assert sum(map(len, batches))
        for batch in batches:
            assert_belongs(batch, truth)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_escaped_rows_that_no_window_holds_are_read_with_their_batch(
    made: Transformed, truth: Truth, settings: dict[str, Any], nothing_is_held: None
) -> None:
    for batch in stream_of(made, **settings):
        assert_belongs(batch, truth)


def test_some_escaped_rows_are_held_and_others_are_not(
    made: Transformed, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escaped.EscapedField, "most_rows", lambda *_: 5)
    for batch in stream_of(made, views="all", decode=False):
        assert_belongs(batch, truth)


@pytest.mark.parametrize("mistake", ["order", "view", "places"])
def test_escaped_rows_of_others_are_noticed(
    made: Transformed, truth: Truth, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """Run the tests above on three mistakes."""
    if mistake == "order":
        pick = EscapedRows.pick
        monkeypatch.setattr(EscapedRows, "pick", lambda self, *of: pick(self, *of)[::-1])
    elif mistake == "view":
        monkeypatch.setattr(escaped.EscapedField, "most_rows", lambda *_: 0)
        read = escaped.EscapedField.read
        monkeypatch.setattr(
            escaped.EscapedField,
            "read",
            lambda self, rows, views: read(self, (rows // 10) * 10 + 3, views * 0),
        )
    else:
        add = EscapedRows.read
        monkeypatch.setattr(
            EscapedRows, "read", lambda self, run, begin, refine: add(self, run, begin + 10, refine)
        )
    with pytest.raises((AssertionError, ManifestInvalid)):
        for batch in stream_of(made, views="all", batch_size=50):
            assert_belongs(batch, truth)


def test_rows_are_within_the_budget(made: Transformed) -> None:
    for batch in stream_of(made, views="all"):
        exact = made.logits["wide"][batch.views, batch.rows]
        for temperature in (1, 2, 4, 8):
            p, q = softmax(exact, temperature), softmax(dense(batch, "wide"), temperature)
            assert (p * (np.log(p) - np.log(q))).sum(axis=1).max() <= MAX_KL


def test_rows_as_stored_are_those_of_the_arrays(made: Transformed) -> None:
    for batch in stream_of(made, views="all", decode=False):
        for name in TEACHERS:
            rows, reader = rows_of(batch, name), made.store.teachers[name].reader
            is_escaped = rows.refine == ESCAPED
            assert rows.num_classes == CLASSES
            assert rows.escape.shape == (int(is_escaped.sum()), CLASSES)
            for number, (view, row) in enumerate(zip(batch.views.tolist(), batch.rows.tolist(), strict=True)):
                assert np.array_equal(rows.codes[number], reader.read("codes", [row], view)[0])
                assert rows.refine[number] == reader.read("refine", [row], view)[0]
                assert is_escaped[number] == (row in escaped_rows(made, name, view))
        assert not batch.scale and not batch.decoded_for


def test_restoring_at_every_batch_gives_the_same_tail(made: Transformed) -> None:
    def bits(batch: Batch) -> tuple[bytes, ...]:
        stored = [rows_of(batch, name) for name in TEACHERS]
        arrays = [batch.rows, batch.views, *(a for s in stored for a in (s.codes, s.refine, s.escape))]
        return tuple(array.tobytes() for array in arrays)

    settings: dict[str, Any] = {"views": "all", "window": 40, "decode": False}
    stream = stream_of(made, **settings)
    states, seen = [stream.state_dict()], []
    for batch in stream:
        seen.append(bits(batch))
        states.append(stream.state_dict())
    for number, state in enumerate(states[:-1]):
        again = stream_of(made, **settings)
        again.load_state_dict(state)
        assert [bits(batch) for batch in again] == seen[number:]


# What is read and held


def test_chunks_of_escaped_rows_are_read_once_a_window(
    made: Transformed, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = CaptureReader.read_escaped

    def counted(self: CaptureReader, rows: Any, view: Any = 0) -> Any:
        reads.append(len(rows))
        return read(self, rows, view)

    monkeypatch.setattr(CaptureReader, "read_escaped", counted)
    list(stream_of(made, views="all", teachers=["wide"]))
    runs = VIEWS * -(-ROWS // made.store.teachers["wide"].reader.grid.run_rows)
    assert sum(reads) == sum(len(escaped_rows(made, "wide", view)) for view in range(VIEWS))
    assert len(reads) == runs
    # Control: without room in the window, they are read batch by batch.
    monkeypatch.setattr(escaped.EscapedField, "most_rows", lambda *_: 0)
    list(stream_of(made, views="all", teachers=["wide"]))
    assert len(reads) > 2 * runs


def test_a_capture_without_escaped_rows_reads_none(
    made: Transformed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(CaptureReader, "read_escaped", refuse)
    none_escaped = [row for row in range(ROWS) if row % 10 > 5]
    assert list(stream_of(made, rows=none_escaped))
    with pytest.raises(AssertionError, match="read"):
        list(stream_of(made))  # control


def test_windows_hold_codes_and_few_whole_rows(made: Transformed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escaped, "HELD_BYTES", 400)
    taken: dict[int, int] = {}
    take = Buffers.take

    def counted(self: Buffers, rows: int) -> dict[str, NDArray[Any]]:
        arrays = take(self, rows)
        taken[id(arrays)] = sum(array.nbytes for array in arrays.values())
        return arrays

    monkeypatch.setattr(Buffers, "take", counted)
    stream = stream_of(made, views="all", window=64, teachers=["wide"])
    list(stream)
    components = made.store.teachers["wide"].part.layouts["codes"].row_shape[0]
    rows = stream.window_bytes // (stream.row_bytes + 2 * components)
    assert stream.row_bytes == 3 * 8 + 2 * components + 1 + 8
    assert stream.window_bytes <= rows * (stream.row_bytes + 3 * components)
    assert stream.window_bytes < rows * (stream.row_bytes + 2 * CLASSES)  # what whole rows would take
    assert len(taken) <= 2 and max(taken.values()) + 8 * rows <= stream.window_bytes
    one_batch = stream_of(made, views="all", window=64, teachers=["wide"], batch_size=1)
    assert (
        stream.memory_bytes - one_batch.memory_bytes == 2 * 15 * 6 * CLASSES
    )  # all rows are picked together
    monkeypatch.setattr(picker, "_TOGETHER_BYTES", 0)
    assert stream.memory_bytes - one_batch.memory_bytes == 2 * 15 * (stream.row_bytes + 6 * CLASSES)


# The basis


def test_all_batches_refer_to_one_basis(made: Transformed) -> None:
    batches = [*stream_of(made, decode=False), *stream_of(made, decode=False, views=1)]
    for name in TEACHERS:
        bases = {id(rows_of(batch, name).basis) for batch in batches}
        assert len(bases) == 1
    assert rows_of(batches[0], "wide").basis is not rows_of(batches[0], "deep").basis


def test_a_pickled_batch_holds_no_basis(made: Transformed) -> None:
    stream = stream_of(made, decode=False)
    batch = next(iter(stream))
    dense(batch, "wide")  # The basis is read.
    sent = pickle.dumps(batch)
    basis = rows_of(batch, "wide").basis.encoding.basis
    assert basis is not None
    for values in basis.arrays().values():
        assert values.tobytes() not in sent
    assert rows_of(batch, "wide").codes.tobytes() in sent  # control
    back = pickle.loads(sent)
    assert rows_of(back, "wide").basis is rows_of(batch, "wide").basis
    assert np.array_equal(dense(back, "wide"), dense(batch, "wide"))


def test_a_pickled_stream_holds_no_basis_and_streams_the_same(made: Transformed, truth: Truth) -> None:
    stream = stream_of(made)
    batches = list(stream)
    sent = pickle.dumps(stream)
    basis = made.store.teachers["wide"].encoding.basis  # type: ignore[attr-defined]
    assert basis.basis.tobytes() not in sent and basis.weight.tobytes() not in sent
    again = pickle.loads(sent)
    again.set_epoch(0)
    for here, there in zip(batches, again, strict=True):
        assert np.array_equal(dense(here, "wide"), dense(there, "wide"))
        assert_belongs(there, truth)


LOADED = """
import pickle, sys
from logitstore.storage.api import open_store
from logitstore.storage.errors import ConfigError

sent = sys.stdin.buffer.read()
early = pickle.loads(sent)
try:
    early.logits["wide"].decode()
except ConfigError as error:
    print(error)
stream = open_store(sys.argv[1]).stream(16, teachers=["wide", "deep"], decode=False, inputs=False)
print(pickle.loads(sent).logits["wide"].decode().tobytes().hex())
"""


def test_a_batch_decodes_in_another_process_that_streams_the_capture(made: Transformed) -> None:
    batch = next(iter(stream_of(made, decode=False)))
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(made.path)],
        input=pickle.dumps(batch),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    refusal, bits = done.stdout.decode().splitlines()
    assert refusal.startswith("a batch of another process: expected a stream of the capture sha256:")
    assert refusal.endswith(
        "found 0 streams of it; make the stream before its batches are loaded, and keep it, or send batches that are "
        "decoded"
    )
    assert bytes.fromhex(bits) == dense(batch, "wide").tobytes()


def test_a_basis_goes_with_the_last_stream_and_batch(made: Transformed) -> None:
    gc.collect()  # streams of other tests
    stream = stream_of(made, decode=False)
    batch = next(iter(stream))
    sent, key = pickle.dumps(batch), rows_of(batch, "wide").basis._key
    del stream
    gc.collect()
    assert key in shared_basis._known
    dense(pickle.loads(sent), "wide")
    del batch
    gc.collect()
    assert key not in shared_basis._known
    with pytest.raises(ConfigError, match="found 0 streams of it"):
        dense(pickle.loads(sent), "wide")


def test_one_capture_in_stores_of_other_classes_has_a_basis_for_each_order(
    made: Transformed, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = transform_stores.open_store(made.path).teachers["wide"]
    in_order = shared_basis.share_basis(capture)
    assert shared_basis.share_basis(capture) is in_order
    monkeypatch.setattr(CaptureReader, "has_all_classes", False)
    assert shared_basis.share_basis(capture) is not in_order


@pytest.mark.parametrize("decode", [True, False])
def test_no_temperature_is_needed_and_none_is_noted(made: Transformed, decode: bool) -> None:
    streams: list[Callable[[], Stream]] = [
        lambda: stream_of(made, decode=decode),
        lambda: stream_of(made, decode=decode, temperature=3.0),
    ]
    for make in streams:
        batch = next(iter(make()))
        assert not batch.decoded_for
    assert np.array_equal(dense(next(iter(streams[0]())), "wide"), dense(next(iter(streams[1]())), "wide"))


def test_a_damaged_escaped_row_never_reaches_a_batch(made: Transformed, tmp_path: Path) -> None:
    path = tmp_path / "damaged.zarr"
    shutil.copytree(made.path, path)
    files = [file for file in (path / "teachers/wide/escape").rglob("*") if file.is_file()]
    shard = max((file for file in files if file.suffix != ".json"), key=lambda file: file.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    store = transform_stores.open_store(path)
    with pytest.raises(ShardCorrupt, match="/escape/"):
        list(store.stream(16, teachers=["wide"], views="all", inputs=False))
