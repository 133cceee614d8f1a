"""A set that grew or changed: rows of an earlier store are taken by digest, and the teacher runs on the rest alone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from support import experiments
from support.children import Countdown
from support.experiments import Recorder, contents, parsed
from support.hands import Net

import logitstore
from logitstore.pipeline.augment import mixup, shift
from logitstore.pipeline.cache import capture as capture_pass
from logitstore.pipeline.cache import rest, reuse, stage
from logitstore.pipeline.plan.reuse import plan_reuse
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store
from logitstore.storage.backends.local import Folder, NewObject
from logitstore.storage.errors import (
    BadLogitsError,
    ConfigError,
    LogitStoreError,
    ManifestInvalid,
    SpecMismatch,
    StoreCorrupt,
)
from logitstore.storage.integrity.verify import verify

pytestmark = pytest.mark.usefixtures("without_fsync")
OLD, NEW, VIEWS = 130, 150, 2
BLOCK_ROWS, BATCH = 64, 24
INPUTS, LABELS = experiments.some_digits(NEW, 1)
NAMES = [f"stroke {number}" for number in range(experiments.CLASSES)]


def cached(place: Path, inputs: NDArray[Any] = INPUTS, labels: Any = LABELS, **changes: Any) -> Store:
    """Stage one of a network in hand, two views, the rows in the order of the set."""
    settings: dict[str, Any] = {
        "class_names": NAMES,
        "views": VIEWS,
        "augment": shift(1),
        "order": "as_is",
        "block_rows": BLOCK_ROWS,
        "batch_size": BATCH,
        "device": "cpu",
        "progress": Recorder(),
    }
    teachers = changes.pop("teachers", None) or {"net": Net()}
    return logitstore.cache(place, teachers, (inputs, labels), **settings | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the first rows."""
    place = tmp_path_factory.mktemp("old") / "old.zarr"
    with mock.patch("os.fsync"):
        cached(place, INPUTS[:OLD], LABELS[:OLD])
    return place


@pytest.fixture
def old(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "old.zarr")


@contextmanager
def rows_run() -> Iterator[list[int]]:
    """Count the rows of each run of a teacher."""
    counts, genuine = [], capture_pass.teacher_logits

    def counting(runner: Any, shown: Any, logits: Any) -> None:
        counts.append(len(shown.inputs))
        genuine(runner, shown, logits)

    with mock.patch.object(capture_pass, "teacher_logits", counting):
        yield counts


def arrays_of(store: Store, view: int, rows: slice = slice(None)) -> dict[str, NDArray[Any]]:
    """Every array of rows of the capture, as it is stored."""
    capture = store.teachers["net"]
    names = [name for name, layout in capture.part.layouts.items() if layout.is_block_array]
    return {name: capture.reader.read(name, rows, view) for name in names}


def same_as_whole(store: Store, whole: Store, teacher: str = "net") -> bool:
    """Whether every logit is that of a run over all rows, but for the last bits, of the same inputs."""
    ours, theirs = store.teachers[teacher], whole.teachers[teacher]
    return all(
        np.array_equal(ours.seen(slice(None), view), theirs.seen(slice(None), view))
        and np.allclose(ours.read(slice(None), view), theirs.read(slice(None), view), rtol=2e-3, atol=2e-3)
        for view in range(ours.num_views)
    )


# Which rows are taken


def test_the_teacher_runs_on_the_rows_that_are_new(tmp_path: Path, old: Path) -> None:
    shown = Recorder()
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", reuse=old, progress=shown)
    assert sum(counts) == VIEWS * (NEW - OLD)
    before = logitstore.open_store(old)
    for view in range(VIEWS):
        for name, values in arrays_of(before, view).items():
            assert arrays_of(store, view, slice(OLD))[name].tobytes() == values.tobytes(), name
    assert same_as_whole(store, cached(tmp_path / "whole.zarr"))
    assert not verify(Folder(tmp_path / "new.zarr"), deep=True).problems
    assert store.teachers["net"].provenance["reused_from"] == [before.digest_of("teachers/net")]
    assert f"reused {VIEWS * OLD} of {VIEWS * NEW} rows" in shown.calls[-1][-1]


def test_nothing_is_left_to_do_without_the_old_store(tmp_path: Path, old: Path) -> None:
    store = cached(tmp_path / "new.zarr", reuse=old)
    shutil.rmtree(old)
    before = contents(tmp_path / "new.zarr")
    for again in ({}, {"reuse": old}):
        with rows_run() as counts:
            assert cached(tmp_path / "new.zarr", **again).digest == store.digest
        assert not counts
    assert contents(tmp_path / "new.zarr") == before


def changed_rows() -> NDArray[Any]:
    """The rows, of which one is another and two are exchanged."""
    inputs = INPUTS.copy()
    inputs[3] ^= 1
    inputs[[70, 5]] = inputs[[5, 70]]
    return inputs


def test_a_changed_row_is_run_and_a_moved_one_is_found(tmp_path: Path, old: Path) -> None:
    inputs = changed_rows()
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", inputs, reuse=old)
    # In view 0 the exchanged rows are found by digest; their draws of view 1 belong to the number of a row.
    assert sum(counts) == (NEW - OLD + 1) + (NEW - OLD + 3)
    assert same_as_whole(store, cached(tmp_path / "whole.zarr", inputs))


def test_a_search_by_number_alone_would_be_caught(tmp_path: Path, old: Path) -> None:
    """Negative control: without digests, rows of other inputs are taken, and the comparison above sees it."""

    def blind(self: Any, view: int, numbers: Any, digests: Any, seen: Any) -> Any:
        return np.where(numbers < OLD, numbers, -1)

    inputs = changed_rows()
    with mock.patch.object(reuse.OldCapture, "find", blind):
        store = cached(tmp_path / "new.zarr", inputs, reuse=old)
    assert not same_as_whole(store, cached(tmp_path / "whole.zarr", inputs))


def test_shuffled_rows_are_found_where_they_are_not_augmented(tmp_path: Path) -> None:
    earlier = cached(tmp_path / "old.zarr", INPUTS[:OLD], LABELS[:OLD], order="shuffled")
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", order="shuffled", reuse=earlier)
    assert NEW - OLD < sum(counts) <= NEW - OLD + NEW
    assert same_as_whole(store, cached(tmp_path / "whole.zarr", order="shuffled"))


@pytest.mark.parametrize(
    ("changes", "run"),
    [
        ({"augment_seed": 1}, NEW - OLD + NEW),  # view 0 shows the rows
        ({"augment": shift(2)}, NEW - OLD + NEW),
        ({"first_view": 0}, 2 * NEW),
        ({"views": 3}, 2 * (NEW - OLD) + NEW),
        ({"views": 1, "augment": None}, NEW - OLD),
        ({"batch_size": 32, "threads": 1}, 2 * (NEW - OLD)),
    ],
)
def test_views_are_taken_where_the_same_input_was_seen(
    tmp_path: Path, old: Path, changes: dict[str, Any], run: int
) -> None:
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", reuse=old, **changes)
    assert sum(counts) == run
    assert same_as_whole(store, cached(tmp_path / "whole.zarr", **changes))


def test_a_mixture_is_taken_where_its_partner_is_the_same(tmp_path: Path) -> None:
    """Partners follow from the number of rows: in a set that grew, hardly any is the same."""
    mixed: dict[str, Any] = {"augment": mixup(), "order": "as_is"}
    earlier = cached(tmp_path / "old.zarr", INPUTS[:OLD], LABELS[:OLD], **mixed)
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", reuse=earlier, **mixed)
    assert sum(counts) > (NEW - OLD) + NEW - OLD // 4
    assert same_as_whole(store, cached(tmp_path / "whole.zarr", **mixed))
    # The teachers of a file and those in hand are other factories: a plan is made of what `cached` runs.
    calls = list[Any]()
    with mock.patch.object(stage, "old_sets", lambda work: calls.append(work) or reuse.old_sets(work)):
        cached(tmp_path / "planned.zarr", reuse=earlier, **mixed)
    (planned,) = plan_reuse(Workspace.of_store(calls[0].experiment, tmp_path / "none.zarr", reuse=[earlier]))
    assert (planned.reused, planned.rows) == (OLD, VIEWS * NEW)


def test_several_stores_and_an_input_that_is_there_twice(tmp_path: Path, old: Path) -> None:
    inputs, labels = np.concatenate([INPUTS, INPUTS[:4]]), np.concatenate([LABELS, LABELS[:4]])
    later = cached(tmp_path / "later.zarr", INPUTS[OLD:140], LABELS[OLD:140], views=1, augment=None)
    one_view: dict[str, Any] = {"views": 1, "augment": None}
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", inputs, labels, reuse=[old, later], **one_view)
    assert sum(counts) == NEW - 140
    assert same_as_whole(store, cached(tmp_path / "whole.zarr", inputs, labels, **one_view))
    np.testing.assert_array_equal(
        store.teachers["net"].read(slice(NEW, NEW + 4)), store.teachers["net"].read(slice(4))
    )
    assert len(store.teachers["net"].provenance["reused_from"]) == 2


def test_a_teacher_without_rows_there_runs_on_all(
    tmp_path: Path, old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teachers = {"net": Net(), "other": Net(seed=1)}
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", reuse=old, teachers=teachers)
    assert sum(counts) == VIEWS * (NEW - OLD) + VIEWS * NEW
    assert "teacher other: no row of" in caplog.text
    whole = cached(tmp_path / "whole.zarr", teachers=teachers)
    assert same_as_whole(store, whole) and same_as_whole(store, whole, "other")


def test_labels_are_those_of_the_set_and_a_change_is_warned_of(
    tmp_path: Path, old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = LABELS.copy()
    labels[[7, 100]] = (labels[[7, 100]] + 1) % len(NAMES)
    store = cached(tmp_path / "new.zarr", labels=labels, reuse=old)
    np.testing.assert_array_equal(store.samples.labels, labels)
    assert caplog.text.count("has the label") == 1 and f"row 7 has the label {labels[7]}" in caplog.text
    assert "2 rows have another label than in an earlier store" in caplog.text
    caplog.clear()
    cached(tmp_path / "same.zarr", reuse=old)  # negative control
    assert "has the label" not in caplog.text


# Encodings


ENCODINGS: dict[str, Any] = {
    "float32": "float32",
    "budget": {"max_kl": 1e-3},
    "top-k": {"top_k": 3},
    "transform": {"transform": {"max_kl": 1e-2, "rows": 40}},
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_rows_of_the_same_encoding_are_copied(tmp_path: Path, kind: str) -> None:
    encoding = ENCODINGS[kind]
    earlier = cached(tmp_path / "old.zarr", INPUTS[:OLD], LABELS[:OLD], encoding=encoding)
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", encoding=encoding, reuse=earlier)
    assert sum(counts) == VIEWS * (NEW - OLD)
    for view in range(VIEWS):
        for name, values in arrays_of(earlier, view).items():
            assert arrays_of(store, view, slice(OLD))[name].tobytes() == values.tobytes(), name
    assert not verify(Folder(tmp_path / "new.zarr"), deep=True).problems
    if kind == "transform":  # in the axes of the rows that are copied: no calibration
        notes = [one.teachers["net"].part.spec.notes["basis"] for one in (earlier, store)]
        assert notes[0] == notes[1]


@pytest.mark.parametrize("kind", ["float16", *ENCODINGS])
def test_from_float32_every_encoding_is_that_of_the_teacher(tmp_path: Path, kind: str) -> None:
    """Rows that are encoded from float32 have the bytes that they have from the teacher, in the same batches."""
    encoding = ENCODINGS.get(kind, kind)
    earlier = cached(tmp_path / "old.zarr", encoding="float32")
    with rows_run() as counts:
        store = cached(tmp_path / "new.zarr", encoding=encoding, reuse=earlier)
    assert not counts
    whole = cached(tmp_path / "whole.zarr", encoding=encoding)
    for view in range(VIEWS):
        for name, values in arrays_of(whole, view).items():
            assert arrays_of(store, view)[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("encoding", ["float32", {"max_kl": 1e-3}])
def test_rounded_logits_are_no_source_of_another_encoding(
    tmp_path: Path, old: Path, encoding: Any, sentence: Any
) -> None:
    with pytest.raises(ConfigError) as error:
        cached(tmp_path / "new.zarr", encoding=encoding, reuse=old)
    sentence(error.value)
    assert not (tmp_path / "new.zarr").exists()


# What is refused


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"teachers": {"net": Net(seed=1)}}, ConfigError),
        ({"precision": "bfloat16"}, ConfigError),
        ({"class_names": NAMES[::-1]}, SpecMismatch),
        ({"class_names": [*NAMES, "more"], "teachers": {"net": Net()}}, LogitStoreError),
    ],
)
def test_a_store_of_another_teacher_or_of_other_classes(
    tmp_path: Path, old: Path, changes: dict[str, Any], kind: type[LogitStoreError], sentence: Any
) -> None:
    with pytest.raises(kind) as error:
        cached(tmp_path / "new.zarr", reuse=old, **changes)
    sentence(error.value)
    assert not (tmp_path / "new.zarr").exists()


def test_teachers_that_are_still_to_be_trained(tmp_path: Path, old: Path, sentence: Any) -> None:
    """Their weights follow from the new set: hours of training come before no refusal."""
    experiments.write_data(tmp_path)
    content = experiments.document()
    with (
        mock.patch.object(stage, "train_teacher", side_effect=AssertionError("a teacher was trained")),
        pytest.raises(ConfigError) as error,
    ):
        stage.cache(
            Workspace.of_store(parsed(content, tmp_path), tmp_path / "new.zarr", device="cpu", reuse=[old])
        )
    sentence(error.value)


def test_the_store_itself(tmp_path: Path, old: Path, sentence: Any) -> None:
    with pytest.raises(ConfigError) as error:
        cached(old, INPUTS[:OLD], LABELS[:OLD], teachers={"more": Net(seed=2)}, reuse=old)
    sentence(error.value)


def test_a_compressed_capture_is_not_the_teachers_own(tmp_path: Path, old: Path) -> None:
    """Its error is bound to another capture: nothing of it may pass for rows of the teacher."""
    from logitstore.pipeline.compress.stage import compress

    earlier = logitstore.open_store(old)
    encoding = {"transform": {"max_kl": 1e-2, "rows": 40}}
    compress(earlier, "net", name="small", encoding=encoding)
    with pytest.raises(ConfigError, match="only float32 can be encoded"):
        cached(tmp_path / "new.zarr", encoding=encoding, reuse=earlier)


@pytest.mark.parametrize("kind", ["float16", *ENCODINGS])
def test_logits_of_a_teacher_that_only_looks_the_same(tmp_path: Path, kind: str) -> None:
    """An identity cannot state all: some rows are run again, and compared. Every other test here passes that comparison."""
    encoding = ENCODINGS.get(kind, kind)
    other = Net(seed=1)
    earlier = cached(
        tmp_path / "old.zarr", INPUTS[:OLD], LABELS[:OLD], teachers={"net": other}, encoding=encoding
    )
    with (
        mock.patch.object(reuse, "_unlike", lambda *identities: None),
        pytest.raises(BadLogitsError, match=r"the logits that .* has of the same input"),
    ):
        cached(tmp_path / "new.zarr", teachers={"net": Loud(other)}, reuse=earlier, encoding=encoding)
    assert "net" not in logitstore.open_store(tmp_path / "new.zarr").teachers


class Loud(Net):
    """A network that gives other logits than the one that it is made from: those of the next class."""

    def __init__(self, other: Net) -> None:
        super().__init__()
        self.load_state_dict(other.state_dict())

    def forward(self, inputs: Any) -> Any:
        return 3 * super().forward(inputs).roll(1, dims=1)


def test_the_origin_of_rows_is_noted_and_other_versions_are_warned_of(
    tmp_path: Path, old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = cached(tmp_path / "new.zarr", reuse=old)
    (noted,) = store.teachers["net"].provenance["reused"]
    theirs = logitstore.open_store(old).teachers["net"].provenance
    assert noted["batch_size"] == str(BATCH) and noted["torch"] == theirs["torch"]
    assert "computed otherwise" not in caplog.text
    one = reuse.OldCapture(reuse.OldSet(store), store.teachers["net"], None)
    reuse.warn_of_other_versions("net", {**theirs, "device": "cuda"}, [one])
    assert "computed otherwise: device cpu there and cuda here" in caplog.text


def test_damaged_rows_are_never_taken(tmp_path: Path, old: Path) -> None:
    shard = next((old / "teachers" / "net" / "logits").glob("c.0.0*"))
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreCorrupt):
        cached(tmp_path / "new.zarr", reuse=old)
    assert "net" not in logitstore.open_store(tmp_path / "new.zarr").teachers


def test_sealed_numbers_that_no_writer_stores(tmp_path: Path, old: Path) -> None:
    """A store may be sealed by anyone: logits that are not centred are refused."""
    genuine = logitstore.storage.parts.reader.CaptureReader.read_stored

    def shifted(self: Any, *arguments: Any) -> Any:
        return {name: values - 1 for name, values in genuine(self, *arguments).items()}

    with (
        mock.patch.object(logitstore.storage.parts.reader.CaptureReader, "read_stored", shifted),
        pytest.raises(ManifestInvalid, match="rows as a writer stores them"),
    ):
        cached(tmp_path / "new.zarr", reuse=old)


# Resumed


def begun(place: Path, put: int, **changes: Any) -> bool:
    """Interrupt a capture at its `put`-th object; return whether it was interrupted."""
    puts = Countdown(None)

    def failing(genuine: Any) -> Any:
        def publish(self: Any) -> Any:
            puts.count += 1
            if puts.count > put:
                raise KeyboardInterrupt
            return genuine(self)

        return publish

    with mock.patch.object(NewObject, "publish", failing(NewObject.publish)):
        try:
            cached(place, **changes)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("encoding", ["float16", ENCODINGS["transform"]], ids=["float16", "transform"])
def test_an_interrupted_capture_ends_with_the_same_bytes(tmp_path: Path, encoding: Any) -> None:
    earlier = cached(tmp_path / "old.zarr", INPUTS[:OLD], LABELS[:OLD], encoding=encoding)
    settings: dict[str, Any] = {"encoding": encoding, "reuse": earlier}
    cached(tmp_path / "whole.zarr", **settings)
    expected, put = contents(tmp_path / "whole.zarr"), 3
    while begun(place := tmp_path / f"put-{put}.zarr", put, **settings):
        cached(place, **settings)
        assert contents(place) == expected, put
        put += 17
    assert put > 30, "the points were not spread over the work"


def test_a_resume_needs_the_old_store(tmp_path: Path, old: Path, sentence: Any) -> None:
    place = tmp_path / "new.zarr"
    another = cached(tmp_path / "another.zarr", INPUTS[:90], LABELS[:90])
    assert begun(place, 40, reuse=old)
    before = contents(place)
    for given in ({}, {"reuse": another}):
        with pytest.raises(SpecMismatch) as error:
            cached(place, **given)
        sentence(error.value)
        assert contents(place) == before
    # Beside others, in any order.
    assert cached(place, reuse=[another, old]).digest == cached(tmp_path / "whole.zarr", reuse=old).digest


def test_a_capture_that_was_begun_without_is_resumed_without(
    tmp_path: Path, old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "new.zarr"
    assert begun(place, 40)
    assert cached(place, reuse=old).digest == cached(tmp_path / "whole.zarr").digest
    assert "was begun without --reuse, and is resumed without it" in caplog.text


def test_lost_blocks_are_made_again_from_the_old_store(tmp_path: Path, old: Path, sentence: Any) -> None:
    store = cached(tmp_path / "new.zarr", reuse=old)
    before = contents(tmp_path / "new.zarr")
    next((tmp_path / "new.zarr" / "teachers" / "net" / "logits").glob("c.1.0*")).unlink()
    with pytest.raises(SpecMismatch) as error:
        cached(tmp_path / "new.zarr")
    sentence(error.value)
    assert cached(tmp_path / "new.zarr", reuse=old).digest == store.digest
    assert contents(tmp_path / "new.zarr") == before


def test_batches_depend_on_the_block_alone(tmp_path: Path, old: Path) -> None:
    """Also where inputs come in pieces, whose borders are elsewhere when the samples are there."""
    inputs = changed_rows()
    inputs[::5] ^= 2  # rows to run in every piece
    expected = contents(cached(tmp_path / "whole.zarr", inputs, reuse=old).path / "teachers")  # type: ignore[operator]
    with mock.patch.object(capture_pass, "PIECE_BYTES", 1):
        in_pieces = cached(tmp_path / "pieces.zarr", inputs, store_inputs=False, reuse=old)
        kept = Path(in_pieces.path) / "teachers"
    same = {name: digest for name, digest in contents(kept).items() if "/c." in name}
    assert same == {name: digest for name, digest in expected.items() if "/c." in name}
    assert same


def test_a_teacher_run_piece_by_piece_has_other_batches(tmp_path: Path, old: Path) -> None:
    """Negative control: rows that do not wait for whole batches are run in others, piece by piece."""
    genuine, inputs = rest.Rest.take, INPUTS.copy()
    inputs[::5] ^= 2

    def hasty(self: Any, shown: Any) -> Any:
        self._batch = 1
        return genuine(self, shown)

    with mock.patch.object(capture_pass, "PIECE_BYTES", 1):
        with rows_run() as gathered:
            cached(tmp_path / "gathered.zarr", inputs, store_inputs=False, reuse=old)
        with rows_run() as pieces, mock.patch.object(rest.Rest, "take", hasty):
            cached(tmp_path / "pieces.zarr", inputs, store_inputs=False, reuse=old)
    assert sum(gathered) == sum(pieces) and len(gathered) < len(pieces)


# In a file, and remote


def test_a_remote_store_is_read(tmp_path: Path, old: Path) -> None:
    from zarr.storage import LocalStore

    with rows_run() as counts:
        cached(tmp_path / "new.zarr", reuse=logitstore.open_store(LocalStore(old, read_only=True)))
    assert sum(counts) == VIEWS * (NEW - OLD)
