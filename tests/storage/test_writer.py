"""Captures that are resumed are the same bytes, and captures that do not belong together are refused.

Real processes write small blocks, are killed with SIGKILL at random puts, and are started again; two write the same
capture at once. The tree must equal that of an uninterrupted writer, name for name and byte for byte.
"""

import copy
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import stores
from support.children import apart
from support.killed_writers import BLOCK_ROWS, CLASSES, ROWS, TEACHER, empty_store, write
from support.stores import Made, Teacher

from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.backends.lease import lease
from logitstore.storage.backends.local import Folder
from logitstore.storage.checks import check_view
from logitstore.storage.digest import digest_rows
from logitstore.storage.encodings.named import EXPECTED
from logitstore.storage.errors import (
    BadDataError,
    BadLogitsError,
    ConfigError,
    LimitExceeded,
    RowMismatch,
    ShardCorrupt,
    ShardMissing,
    SpecMismatch,
    StoreIncomplete,
)
from logitstore.storage.format.metadata import RootAttributes
from logitstore.storage.identity import difference
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.root import create_root
from logitstore.storage.parts.writer import SamplesWriter

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the tree of an uninterrupted writer."""
    made = empty_store(tmp_path_factory.mktemp("whole") / "store.zarr")
    write(made.store)
    return stores.tree(made.path)


# Killed, and two at a time


def test_killed_anywhere_and_resumed_is_the_same_bytes(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Fifteen kills, each at a random put that is still to come, over as few captures as needed."""
    reports = apart("support.killed_writers:killed", folder=str(tmp_path), kills=15, most=len(whole) // 4)
    assert [report["status"] for report in reports] == [-signal.SIGKILL] * 15
    refusals = [report["refusal"] for report in reports if report["refusal"] is not None]
    assert len(refusals) > 10
    for name, found in refusals:
        assert name == StoreIncomplete.__name__
        assert found.startswith("an unfinished part")
    paths = sorted(tmp_path.glob("store-*.zarr"))
    for path in paths:
        write(open_store(path))
        assert stores.tree(path) == whole
    assert verify(paths[-1], deep=True).exit_code == 0


def test_two_processes_write_one_capture(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    assert apart("support.killed_writers:together", path=str(path)) == [0, 0]
    assert stores.tree(path) == whole


def test_two_processes_and_one_is_killed(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    statuses = apart("support.killed_writers:together", path=str(path), kill_at=30)
    assert statuses == [-signal.SIGKILL, 0]
    assert stores.tree(path) == whole


def test_a_clock_in_the_spec_is_caught(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Negative control: a writer that notes the time is not the same bytes."""
    made = empty_store(tmp_path / "store.zarr")
    logits = stores.some_logits(2, ROWS, CLASSES)
    said = stores.provenance("wide", Teacher(views=2))
    with made.store.capture("wide", provenance=said, views=2, notes={"time": time.time_ns()}) as capture:
        for view in (0, 1):
            for rows in capture.missing_blocks(view):
                capture.write(rows, logits[view, rows.start : rows.stop], view)
    assert stores.tree(made.path) != whole


def test_blocks_may_come_in_any_order(whole: dict[str, bytes], tmp_path: Path) -> None:
    made = empty_store(tmp_path / "store.zarr")
    logits = stores.some_logits(2, ROWS, CLASSES)
    said = stores.provenance("wide", TEACHER)
    for view in (1, 0):
        with made.store.capture("wide", provenance=said, views=2) as capture:
            for rows in reversed(list(capture.missing_blocks(view))):
                inputs = made.inputs[rows.start : rows.stop]
                shown = inputs if view == 0 else stores.augment(inputs, view, np.array(rows))
                capture.write(rows, logits[view, rows.start : rows.stop], view, seen=digest_rows(shown))
        assert ("wide" in made.store.teachers) == (view == 0)
    assert stores.tree(made.path) == whole


# Shards without a record


def interrupted(path: Path) -> Made:
    """Make a capture that lacks two blocks, one of which has its shards already."""
    made = empty_store(path)
    write(made.store)
    part = path / "teachers" / "wide"
    for key in ("1-2", "1-7"):
        (part / f"__logitstore__/commits/{key}.json").unlink()
    (part / "__logitstore__/seal.json").unlink()
    (part / "__logitstore__/seal.bin").unlink()
    (path / "__logitstore__/log/2.json").unlink()
    for name, key in (("logits", "c.1.2.0"), ("peak", "c.1.2"), ("seen", "c.1.2")):
        (part / name / key).unlink()
    return made


def test_a_whole_shard_without_a_record_is_kept(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = interrupted(tmp_path / "store.zarr").path
    kept = path / "teachers/wide/logits/c.1.7.0"
    inode = kept.stat().st_ino
    with open_store(path).capture("wide", provenance=stores.provenance("wide", TEACHER), views=2) as capture:
        assert [list(capture.missing_blocks(view)) for view in (0, 1)] == [[], [range(16, 24)]]
    write(open_store(path))
    assert kept.stat().st_ino == inode
    assert stores.tree(path) == whole


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_torn_shard_without_a_record_is_written_again(
    whole: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    path = interrupted(tmp_path / "store.zarr").path
    torn = path / "teachers/wide/logits/c.1.7.0"
    data = torn.read_bytes()
    if damage == "flipped":
        stores.flip(torn, 77)
    else:
        torn.write_bytes({"cut": data[:-9], "empty": b"", "longer": data + b"\0"}[damage])
    write(open_store(path))
    assert stores.tree(path) == whole


def test_staged_files_of_killed_writers_are_deleted(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = interrupted(tmp_path / "store.zarr").path
    for folder in (path / "__logitstore__/tmp", path / "teachers/wide/__logitstore__/tmp"):
        folder.mkdir()
        (folder / "0123").write_bytes(b"half a shard")
    write(open_store(path))
    assert stores.tree(path) == whole


# Captures that do not belong together


@pytest.fixture
def begun(tmp_path: Path) -> Made:
    """Make a store with the first block of a capture."""
    made = empty_store(tmp_path / "store.zarr")
    capture = made.store.capture("wide", provenance={"teacher": {"weights": "aa", "args": {"hidden": 8}}})
    capture.write(range(8), stores.some_logits(1, 8, CLASSES)[0])
    return made


def other_teacher(weights: str, hidden: int) -> dict[str, Any]:
    return {"teacher": {"weights": weights, "args": {"hidden": hidden}}}


OTHERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "other weights": ({"provenance": other_teacher("bb", 8)}, "teacher.weights = 'aa'", "'bb'"),
    "other arguments": ({"provenance": other_teacher("aa", 9)}, "teacher.args.hidden = 8", "9"),
    "more views": ({"views": 2}, "views = 1", "2"),
    "another encoding": ({"encoding": "float32"}, "encoding.kind = 'float16'", "'float32'"),
    "other classes": ({"classes": [4, 3, 2, 1, 0]}, "the classes", "other classes"),
    "fewer classes": ({"classes": [0, 1, 2, 3]}, "the logits", "other logits"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_capture_under_the_same_name_is_refused(begun: Made, case: str) -> None:
    other, expected, found = OTHERS[case]
    before = stores.tree_digest(begun.path)
    with pytest.raises(SpecMismatch) as caught:
        begun.store.capture("wide", **{"provenance": other_teacher("aa", 8), **other})
    error = caught.value
    assert (error.where, error.found) == (f"{begun.path}: teachers/wide", found)
    assert re.fullmatch(re.escape(expected) + ",? with which it was begun", error.expected)
    assert error.remedy.startswith("change it back, or choose another name")
    assert stores.tree_digest(begun.path) == before


def test_notes_are_not_compared(begun: Made) -> None:
    capture = begun.store.capture("wide", provenance=other_teacher("aa", 8), notes={"torch": "99.0"})
    assert next(capture.missing_blocks()) == range(8, 16)


def test_a_capture_whose_first_block_is_refused_leaves_no_trace(tmp_path: Path) -> None:
    made = empty_store(tmp_path / "store.zarr")
    before = stores.tree_digest(made.path)
    logits = stores.some_logits(1, 8, CLASSES)[0]
    for name, bad in (("nan", np.nan), ("inf", np.inf), ("low", -70_000.0)):
        wrong = logits.copy()
        wrong[3, 2] = bad
        with pytest.raises(BadLogitsError), made.store.capture(name, provenance={}) as capture:
            capture.write(range(8), wrong)
    with pytest.raises(BadLogitsError), made.store.capture("shape", provenance={}) as capture:
        capture.write(range(8), logits[:, :3])
    made.store.capture("opened-and-left", provenance={})
    assert stores.tree_digest(made.path) == before
    with made.store.capture("nan", provenance={"another": "teacher"}) as capture:
        assert next(capture.missing_blocks()) == range(8)


def test_an_exception_in_the_loop_seals_nothing(tmp_path: Path) -> None:
    made = empty_store(tmp_path / "store.zarr")
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        made.store.capture("wide", provenance={}) as capture,
    ):
        capture.write(range(8), stores.some_logits(1, 8, CLASSES)[0])
        raise RuntimeError("out of memory")
    assert made.store.unsealed() == ["teachers/wide"]
    with pytest.raises(StoreIncomplete) as caught:
        _ = made.store.teachers["wide"]
    assert str(caught.value) == (
        f"{made.path}: teachers/wide: expected a sealed part, found an unfinished part (1 of 8 blocks); "
        "run the command that writes it (`logitstore cache`, `run` or `compress`) again to resume it"
    )


BLOCK, SHAPE = (
    "the rows of one block (8 from a multiple of that)",
    "floating logits of shape (8, 5) (rows, classes)",
)
WRONG_BLOCKS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "rows 1 to 9": ({"rows": range(1, 9)}, "teachers/wide: rows", BLOCK, "1 to 9"),
    "two blocks": ({"rows": range(16)}, "teachers/wide: rows", BLOCK, "0 to 16"),
    "beyond the end": ({"rows": range(56, 64)}, "teachers/wide: rows", BLOCK, "56 to 64"),
    "half a block": ({"rows": slice(0, 7)}, "teachers/wide: rows", BLOCK, "0 to 7"),
    "before the start": ({"rows": range(-8, 0)}, "teachers/wide: rows", BLOCK, "-8 to 0"),
    "view 1 of 1": ({"view": 1}, "teachers/wide: view", "0 to 0", "1"),
    # Names of files would come of them, which no reader looks for.
    "a truth as a view": ({"view": False}, "teachers/wide: view", "0 to 0", "False"),
    "too few classes": (
        {"logits": np.zeros((8, 4), np.float32)},
        "teacher 'wide', view 0, rows 0 to 7",
        SHAPE,
        "float32 of shape (8, 4)",
    ),
    "integers": (
        {"logits": np.zeros((8, 5), np.int64)},
        "teacher 'wide', view 0, rows 0 to 7",
        SHAPE,
        "int64 of shape (8, 5)",
    ),
    "too few rows": (
        {"logits": np.zeros((7, 5), np.float32)},
        "teacher 'wide', view 0, rows 0 to 7",
        SHAPE,
        "float32 of shape (7, 5)",
    ),
    "too few digests": (
        {"seen": np.zeros(7, np.uint64)},
        "teachers/wide/seen",
        "uint64 of shape (8,)",
        "uint64 of shape (7,)",
    ),
}


@pytest.mark.parametrize("case", WRONG_BLOCKS)
def test_wrong_blocks_are_refused(tmp_path: Path, case: str) -> None:
    arguments, where, *fields = WRONG_BLOCKS[case]
    made = empty_store(tmp_path / "store.zarr")
    before = stores.tree_digest(made.path)
    capture = made.store.capture("wide", provenance={})
    good: dict[str, Any] = {"rows": range(8), "logits": np.zeros((8, 5), np.float32)}
    with pytest.raises((ConfigError, BadLogitsError, BadDataError)) as caught:
        capture.write(**good | arguments)
    error = caught.value
    assert error.where.removeprefix(f"{made.path}: ") == where
    assert [error.expected, error.found] == fields
    assert stores.tree_digest(made.path) == before


def test_other_float_types_are_taken_as_they_are(tmp_path: Path) -> None:
    made = empty_store(tmp_path / "store.zarr")
    logits = stores.some_logits(1, ROWS, CLASSES)[0]
    for dtype in ("float16", "float32", "float64"):
        with made.store.capture(dtype, provenance={}, encoding="float32") as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, logits[rows.start : rows.stop].astype(dtype))
        given = logits.astype(dtype).astype(np.result_type(dtype, np.float32))
        wanted = given - given.max(axis=1, keepdims=True)
        assert np.array_equal(made.store.teachers[dtype].read(slice(None)), wanted.astype(np.float32))
    with pytest.raises(BadLogitsError, match="expected finite logits, found inf"):
        made.store.capture("huge", provenance={}).write(range(8), np.full((8, 5), 1e39))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(True, 1), (False, 0), ([1, True], [True, True]), ({"a": [{"b": 1}]}, {"a": [{"b": True}]})],
)
def test_a_truth_is_no_number_in_an_identity(ours: Any, theirs: Any) -> None:
    """Python's are: a capture of `flip = 1` was resumed by one of `flip = true`."""
    assert difference({"flip": ours}, {"flip": theirs}) is not None
    assert difference({"flip": ours}, {"flip": copy.deepcopy(ours)}) is None
    assert difference({"rate": 1}, {"rate": 1.0}) is None  # control: the same number


@pytest.mark.parametrize("constant", [0.0, 1e6, -1e9])
@pytest.mark.parametrize("as_given", [np.asarray, torch.from_numpy, lambda z: z.astype(">f8")])
def test_float64_logits_keep_their_digits_beside_a_large_constant(
    tmp_path: Path, constant: float, as_given: Callable[[Any], Any]
) -> None:
    made = empty_store(tmp_path / "store.zarr")
    logits = stores.some_logits(1, ROWS, CLASSES)[0].astype(np.float64) + constant
    with made.store.capture("wide", provenance={}, encoding="float32") as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, as_given(logits[rows.start : rows.stop].copy()))
    wanted = logits - logits.max(axis=1, keepdims=True)
    read = made.store.teachers["wide"].read(slice(None))
    np.testing.assert_allclose(read, wanted, rtol=1e-7, atol=0)
    assert np.array_equal(
        made.store.teachers["wide"].peak(slice(None)), logits.max(axis=1).astype(np.float32)
    )
    if constant:  # control: the cast alone loses them
        assert (
            abs(logits.astype(np.float32) - logits.astype(np.float32).max(1)[:, None] - wanted).max() > 1e-3
        )


MEANWHILE: dict[str, dict[str, Any]] = {
    "provenance": {"provenance": {"teacher": "other"}},
    "encoding": {"encoding": "float32"},
    "classes": {"classes": [1, 0, 2, 3, 4]},
    "views": {"views": 2},
}


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("other", MEANWHILE)
def test_a_name_that_another_teacher_took_meanwhile_is_refused(
    tmp_path: Path, other: str, is_whole: bool
) -> None:
    """Otherwise the loop finds nothing missing, and its own logits are nowhere."""
    made = empty_store(tmp_path / "store.zarr")
    arguments: dict[str, Any] = {"provenance": {"teacher": "own"}} | MEANWHILE[other]
    logits = stores.some_logits(1, ROWS, CLASSES)[0]

    def fill(capture: Any, views: int, number: int) -> None:
        for view in range(views):
            for rows in list(capture.missing_blocks(view))[:number]:
                capture.write(rows, logits[rows.start : rows.stop], view=view)

    with (
        pytest.raises(SpecMismatch, match="teachers/wide: expected"),
        made.store.capture("wide", provenance={"teacher": "own"}) as capture,
    ):
        with open_store(made.path).capture("wide", **arguments) as theirs:
            fill(theirs, arguments.get("views", 1), ROWS if is_whole else 3)
        fill(capture, 1, ROWS)
    # Control: another process of the same teacher is no other.
    with made.store.capture("deep", provenance={"teacher": "own"}) as capture:
        with open_store(made.path).capture("deep", provenance={"teacher": "own"}) as same:
            fill(same, 1, ROWS if is_whole else 3)
        fill(capture, 1, ROWS)
    assert made.store.is_whole("teachers/deep") or open_store(made.path).is_whole("teachers/deep")


def test_a_view_may_be_an_integer_of_numpy(tmp_path: Path) -> None:
    made = empty_store(tmp_path / "store.zarr")
    logits = stores.some_logits(2, ROWS, CLASSES)
    with made.store.capture("wide", provenance={"augmentation": {"name": "two"}}, views=2) as capture:
        for view in np.arange(2):
            for rows in capture.missing_blocks(view):
                seen = digest_rows(logits[view, rows.start : rows.stop])
                capture.write(rows, logits[view, rows.start : rows.stop], view=view, seen=seen)
    read = made.store.teachers["wide"].read(slice(None), np.int64(1))
    assert read.argmax(axis=1).tolist() == logits[1].argmax(axis=1).tolist()
    with pytest.raises(ConfigError, match="teachers/wide: view: expected 0 to 1, found True"):
        made.store.teachers["wide"].read(slice(None), True)
    with pytest.raises(ConfigError, match="view: expected 0 to 1, found True"):
        list(made.store.capture("other", provenance={}, views=2).missing_blocks(True))
    with pytest.raises(ConfigError, match=r"part: view: expected 0 to 1, found 1\.0; begin"):
        check_view(1.0, 2, "part", "begin with more views")


def test_values_that_a_mask_hides_are_refused(tmp_path: Path) -> None:
    made = empty_store(tmp_path / "store.zarr")
    logits = np.ma.masked_array(stores.some_logits(1, 8, CLASSES)[0])
    with made.store.capture("whole", provenance={}) as capture:
        capture.write(range(8), logits)  # control: nothing is hidden
        assert capture.num_missing == 7
    logits[3, 2] = np.ma.masked
    capture = made.store.capture("wide", provenance={})
    with pytest.raises(BadLogitsError, match="a masked array that hides 1 of 40 values"):
        capture.write(range(8), logits)


def test_probabilities_from_ones_own_loop_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = empty_store(tmp_path / "store.zarr")
    logits = np.exp(stores.some_logits(1, ROWS, CLASSES)[0].astype(np.float64))
    probabilities = logits / logits.sum(axis=1, keepdims=True)
    for name, values in (("float64", probabilities), ("float32", probabilities.astype(np.float32))):
        caplog.clear()
        with made.store.capture(name, provenance={}) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, values[rows.start : rows.stop])
        assert caplog.text.count("these look like probabilities") == 1
    caplog.clear()
    with made.store.capture("logs", provenance={}) as capture:  # control
        capture.write(range(8), np.log(probabilities[:8]))
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Wide"}, "capture: expected a name of 1 to 64 of a-z, 0-9, '.', '_' and '-'"),
        ({"views": 0}, "capture 'wide': views: expected at least 1, found 0; capture at least 1 view"),
        (
            {"encoding": "float8"},
            f"encoding: expected {EXPECTED}, found 'float8'; choose one of these",
        ),
        ({"provenance": {"a": object()}}, "expected text, finite numbers, lists and tables"),
        ({"provenance": {"a": float("nan")}}, "expected text, finite numbers, lists and tables"),
        (
            {"classes": [0, 5]},
            "capture 'wide': classes: expected for each column a class from 0 to 4, or -1 for",
        ),
        ({"classes": []}, "found []; name classes of this store"),
        ({"classes": [0, 1, 1]}, "capture 'wide': classes: expected each class once, found 1 2 times"),
        ({"classes": [0, -1, -1, -1]}, "capture 'wide': classes: expected each class once, found -1 3 times"),
        (
            {"provenance": {"views": 5, "encoding": "my own"}},
            "capture 'wide': provenance: expected no key of the writer's own, encoding and views, found encoding, views",
        ),
    ],
)
def test_wrong_captures_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    made = empty_store(tmp_path / "store.zarr")
    with pytest.raises(ConfigError, match=re.escape(message)):
        made.store.capture(**{"name": "wide", "provenance": {}, **arguments})


def test_an_augmented_capture_needs_the_digests_of_its_inputs(tmp_path: Path) -> None:
    made = empty_store(tmp_path / "store.zarr")
    capture = made.store.capture("wide", provenance={"augmentation": dict(stores.AUGMENTATION)})
    with pytest.raises(ConfigError, match=r"pass seen=digest_rows\(inputs\) with what the teacher was given"):
        capture.write(range(8), np.zeros((8, 5), np.float32))


def test_shards_over_a_gibibyte_are_refused(tmp_path: Path) -> None:
    root = create_root(tmp_path / "store.zarr", RootAttributes(1 << 20, 1 << 15, 1 << 16))
    with pytest.raises(
        LimitExceeded, match="found 65536 rows of 65536 bytes; make a store with a smaller block_rows"
    ):
        Store(root).capture("wide", provenance={})


def test_the_first_difference_is_named() -> None:
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ("a", "[1, {'b': 2}]", "[1, {'b': 3}]")
    assert difference({"a": 1}, {"a": 1, "b": None}) is None
    assert difference({"a": {"b": 1}}, {"a": None}) == ("a", "{'b': 1}", "nothing")
    # A key of one side alone: an augmentation that was left out on resuming, say.
    assert difference({"a": 1}, {"a": 1, "b": 2}) == ("b", "nothing", "2")
    assert difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {}}) == ("b.c", "2", "nothing")


@pytest.mark.parametrize("begun_with_more", [True, False])
def test_a_capture_is_not_resumed_with_a_setting_more_or_less(tmp_path: Path, begun_with_more: bool) -> None:
    store = empty_store(tmp_path / "store.zarr").store
    least, most = {"teacher": "t"}, {"teacher": "t", "precision": "float16"}
    first, second = (most, least) if begun_with_more else (least, most)
    store.capture("wide", provenance=first).write(range(8), np.zeros((8, 5), np.float32))
    with pytest.raises(SpecMismatch, match="precision = ") as caught:
        store.capture("wide", provenance=second)
    assert caught.value.found == ("nothing" if begun_with_more else "'float16'")


# Samples


def samples_writer(store: Store) -> SamplesWriter:
    identity = {
        "transfer_set": "f00",
        "order": {"kind": "as_is"},
        "digest_of": "array",
        "label_kind": "class",
    }
    return SamplesWriter(store.root, identity=identity, example=np.zeros((3, 2), np.uint8))


def write_samples(writer: SamplesWriter, rows: range, **other: Any) -> None:
    inputs = stores.some_inputs(ROWS)[rows.start : rows.stop]
    columns: dict[str, Any] = {
        "source": np.arange(100 + rows.start, 100 + rows.stop),
        "digest": digest_rows(inputs),
        "label": np.zeros(len(rows), np.int64),
        "input": inputs,
    }
    writer.write(rows, **columns | other)


@pytest.fixture
def half(tmp_path: Path) -> Store:
    """Make a store whose samples were interrupted after a block."""
    store = Store(create_root(tmp_path / "half.zarr", RootAttributes(ROWS, CLASSES, BLOCK_ROWS)))
    write_samples(samples_writer(store), range(8))
    return store


def test_samples_resume(half: Store) -> None:
    writer = samples_writer(half)
    assert not writer.seal()
    assert next(writer.missing_blocks()) == range(8, 16)
    for rows in list(writer.missing_blocks()):
        write_samples(writer, rows)
    assert writer.seal()
    assert half.samples.source.tolist() == list(range(100, 100 + ROWS))


def test_a_transfer_set_that_changed_is_named(half: Store) -> None:
    wrong = digest_rows(stores.some_inputs(ROWS)[:8])
    was = int(wrong[5])
    wrong[5] ^= np.uint64(1)
    with pytest.raises(RowMismatch) as caught:
        write_samples(samples_writer(half), range(8), digest=wrong)
    assert str(caught.value) == (
        f"row 5 (index 105 of the transfer set): expected an input with digest {was:016x}, "
        f"found {was ^ 1:016x} (1 of 8 rows of this block differ); "
        "use the transfer set that the store was made from, or make a new store"
    )
    write_samples(samples_writer(half), range(8))


def test_samples_that_are_wrong_are_refused(half: Store) -> None:
    writer = samples_writer(half)
    before = stores.tree_digest(half.path)
    label = np.array([0, 1, 5, 7, 0, 0, 0, 0])
    with pytest.raises(
        BadDataError, match=r"^row 10 \(index 110 of the transfer set\): label: expected a class from 0"
    ):
        write_samples(writer, range(8, 16), label=label)
    with pytest.raises(
        BadDataError, match=r"samples/input: expected uint8 of shape \(8, 3, 2\), found float32"
    ):
        write_samples(writer, range(8, 16), input=np.zeros((8, 3, 2), np.float32))
    with pytest.raises(BadDataError, match=r"found uint8 of shape \(8, 2, 3\); pass an item a row"):
        write_samples(writer, range(8, 16), input=np.zeros((8, 2, 3), np.uint8))
    assert stores.tree_digest(half.path) == before


def test_a_committed_block_that_vanished_is_said(half: Store) -> None:
    (half.path / "samples/digest/c.0").unlink()
    with (
        lease(Folder(half.path / "samples")),
        pytest.raises(ShardMissing, match="expected the shard of a committed block, found no file"),
    ):
        write_samples(samples_writer(half), range(8))  # another writer is at work: nothing is recovered


def test_a_committed_block_with_bytes_beyond_its_end_is_said(half: Store) -> None:
    """Read to its size alone it would be compared, and found the same."""
    for key in ("digest", "source", "label"):
        with lease(Folder(half.path / "samples")):  # another writer is at work: nothing is recovered
            writer = samples_writer(half)
            write_samples(writer, range(8))
            shard = half.path / f"samples/{key}/c.0"
            whole = shard.read_bytes()
            shard.write_bytes(whole + b"\0")
            with pytest.raises(ShardCorrupt, match=rf"{key}/c\.0: expected a whole shard of \d+ bytes"):
                write_samples(writer, range(8))
            shard.write_bytes(whole)
            writer.close()


def test_a_writer_that_is_alone_makes_a_block_again_that_vanished(half: Store) -> None:
    before = (half.path / "samples/digest/c.0").read_bytes()
    (half.path / "samples/digest/c.0").unlink()
    write_samples(samples_writer(half), range(8))
    assert (half.path / "samples/digest/c.0").read_bytes() == before


def test_no_capture_rests_on_samples_that_are_not_sealed(half: Store) -> None:
    with pytest.raises(StoreIncomplete, match=r"samples: expected a sealed part, found an unfinished part"):
        half.capture("wide", provenance={}).write(range(8), np.zeros((8, 5), np.float32))


def test_stores_written_twice_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        made = stores.make(tmp_path / name)
        stores.add_clustering(made.store)
        stores.add_clustering(made.store)  # again, which changes nothing
    assert stores.tree(tmp_path / "a") == stores.tree(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(
        SpecMismatch, match=r"wide-2x2: expected clusters = 2, with which it was begun, found 3"
    ):
        arrays = {"assignment": np.zeros(5, np.int64)}
        identity = {"capture": made.store.teachers["wide"].digest, "clusters": 3}
        made.store.write_clustering("wide-2x2", arrays, identity=identity)


def test_a_store_of_a_large_block_has_several_chunks(tmp_path: Path) -> None:
    """One block of a store of 1500 rows, two chunks; the second holds rows and fill."""
    inputs = stores.some_inputs(1500)
    store = create_store(tmp_path / "store.zarr", num_classes=3, inputs=inputs, block_rows=2048)
    logits = stores.some_logits(1, 1500, 3)[0]
    with store.capture("wide", provenance={}) as capture:
        capture.write(range(1500), logits)
    wanted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float16)
    assert np.array_equal(store.teachers["wide"].read([0, 1023, 1024, 1499]), wanted[[0, 1023, 1024, 1499]])
