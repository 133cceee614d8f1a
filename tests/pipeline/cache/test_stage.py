"""Stage one: the store holds the teachers' logits of the inputs shown, after any interruption."""

from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import experiments
from support.children import apart
from support.experiments import BATCH_SIZE, BLOCK_ROWS, ROWS, VIEWS, contents, document, parsed, teacher

from logitstore.pipeline.augment import row_generator, shift
from logitstore.pipeline.cache.stage import CacheReport, cache
from logitstore.pipeline.cache.teachers import load_teacher
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import BadLogitsError, RowMismatch, SpecMismatch

Content = dict[str, Any]
BLOCKS = [range(64), range(64, 128), range(128, 150)]


def captured(content: Content, base: Path, out: Path, progress: Any = None) -> tuple[CacheReport, Store]:
    """Stage one of a document: OUT/store.zarr, OUT/models."""
    listener = experiments.Recorder() if progress is None else progress
    experiment, models = parsed(content, base), Models(out / "models")
    with mock.patch("os.fsync"):
        report = cache(Workspace(experiment, out / "store.zarr", models, device="cpu", progress=listener))
    return report, open_store(out / "store.zarr")


def captures_of(*teachers: Content) -> Content:
    """A document with these teachers and nothing after stage one."""
    whole = document()
    return {"transfer_set": whole["transfer_set"], "teacher": list(teachers), "cache": whole["cache"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the data."""
    experiments.write_data(tmp_path)
    return tmp_path


# What is stored


def replayed(inputs: NDArray[Any], view: int, rows: range) -> NDArray[Any]:
    """A view of some rows made by the rule itself, a row at a time; view 0 is the rows."""
    made = [shift(1)(inputs[row], row_generator(0, view, row)) if view else inputs[row] for row in rows]
    return np.stack(made)


def finished_work() -> Workspace:
    """The finished experiment, read only."""
    folder = experiments.finished()
    return Workspace.of_folder(parsed(document(), folder), folder / "out", device="cpu")


@pytest.mark.parametrize("name", ["wide", "deep"])
def test_every_logit_is_what_the_teacher_says_of_the_replayed_row_alone(name: str) -> None:
    work = finished_work()
    experiment, store, rows = work.experiment, work.store, work.rows
    member = next(m for m in experiment.teacher_members() if m.name == name)
    module = load_teacher(work, member)
    assert not module.training
    inputs, _ = rows.rows(range(ROWS))
    differ = 0
    for view in range(VIEWS):
        shown = replayed(inputs, view, range(ROWS))
        differ += (shown != inputs).any(axis=(1, 2)).sum()
        stored = store.teachers[name].read(slice(None), view)
        peak = store.teachers[name].peak(slice(None), view)
        with torch.inference_mode():
            for row in range(0, ROWS, 7):
                raw = module(torch.from_numpy(shown[row : row + 1]))[0].numpy()
                np.testing.assert_allclose(stored[row] + peak[row], raw, rtol=0, atol=4e-3)
                softmax = np.exp(stored[row] / 3) / np.exp(stored[row] / 3).sum()
                expected = np.exp(raw / 3) / np.exp(raw / 3).sum()
                np.testing.assert_allclose(softmax, expected, rtol=3e-3)
            # Batch by batch, as the capture is defined (from the block's start, never across it): to the last bit.
            for block in BLOCKS:
                parts = [
                    module(torch.from_numpy(shown[start : min(start + BATCH_SIZE, block.stop)])).numpy()
                    for start in range(block.start, block.stop, BATCH_SIZE)
                ]
                z = np.concatenate(parts)
                centred = (z - z.max(axis=1, keepdims=True)).astype(np.float16)
                np.testing.assert_array_equal(stored[block.start : block.stop], centred.astype(np.float32))
                np.testing.assert_array_equal(peak[block.start : block.stop], z.max(axis=1))
    assert differ > ROWS, "the views that were compared were all the same"


def test_seen_and_digest_belong_to_the_inputs_that_were_shown() -> None:
    work = finished_work()
    store, rows = work.store, work.rows
    inputs, labels = rows.rows(range(ROWS))
    np.testing.assert_array_equal(store.samples.digests, digest_rows(inputs))
    np.testing.assert_array_equal(store.samples.labels, labels)
    stored = store.samples.inputs
    assert stored is not None
    np.testing.assert_array_equal(stored[:], inputs)
    for capture in store.teachers.values():
        np.testing.assert_array_equal(capture.seen(slice(None), 0), store.samples.digests)
        for view in range(1, VIEWS):
            np.testing.assert_array_equal(
                capture.seen(slice(None), view), digest_rows(replayed(inputs, view, range(ROWS)))
            )


def test_a_checker_that_forgets_the_views_would_be_caught() -> None:
    """Negative control: the digests of another view, and of another row, are other ones."""
    work = finished_work()
    store, rows = work.store, work.rows
    inputs, _ = rows.rows(range(ROWS))
    seen = store.teachers["wide"].seen(slice(None), 1)
    assert (seen != digest_rows(replayed(inputs, 2, range(ROWS)))).mean() > 0.8
    assert (seen[1:] != digest_rows(replayed(inputs, 1, range(ROWS)))[:-1]).all()


def test_the_rows_are_the_transfer_set_permuted() -> None:
    work = finished_work()
    store, rows = work.store, work.rows
    assert sorted(store.samples.source.tolist()) == list(range(ROWS))
    with np.load(experiments.finished() / "train.npz") as archive:
        np.testing.assert_array_equal(archive["labels"][store.samples.source], store.samples.labels)
        np.testing.assert_array_equal(archive["inputs"][store.samples.source], rows.rows(range(ROWS))[0])


def test_a_teacher_that_works_in_place_spoils_nobodys_input(base: Path) -> None:
    """Neither that of the teachers after it nor that of the views after it."""
    spoiling = teacher("spoiling", factory="support.experiments:spoils_its_input", args={"hidden": [5]})
    content = captures_of(spoiling, teacher("wide"))
    with np.load(base / "train.npz") as archive:
        # float32, which reaches a teacher without a conversion, and so without a copy
        inputs = archive["inputs"].astype(np.float32) / 255
        np.savez(base / "train.npz", inputs=inputs, labels=archive["labels"])
    _, store = captured(content, base, base / "out")
    _, clean = captured(captures_of(teacher("wide")), base, base / "alone")
    after, alone = store.teachers["wide"], clean.teachers["wide"]
    for view in range(VIEWS):
        np.testing.assert_array_equal(after.read(slice(None), view), alone.read(slice(None), view))
        np.testing.assert_array_equal(after.seen(slice(None), view), alone.seen(slice(None), view))


# The same bytes


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the report of captures that were killed at many points and resumed: see `killed_captures`."""
    folder = tmp_path_factory.mktemp("killed")
    base = str(experiments.finished())
    report: dict[str, Any] = apart("support.killed_captures:killed", base=base, folder=str(folder))
    assert report["statuses"] == [0, 0]
    return report


def test_two_captures_of_the_same_experiment_are_the_same_bytes(killed: dict[str, Any]) -> None:
    assert killed["same_twice"]


def test_killed_anywhere_and_started_again_the_bytes_are_the_same(killed: dict[str, Any]) -> None:
    assert len(killed["results"]) >= 15
    for point, status, _, resumed, differing in killed["results"]:
        assert status == -9, f"{point}: it was not killed there"
        assert (resumed, differing) == (0, []), point


def test_the_kills_hit_the_store_half_written(killed: dict[str, Any]) -> None:
    """Control: the points are spread over the whole of the work, not all at its beginning or end."""
    left = sorted({found for _, _, found, _, _ in killed["results"]})
    assert left[0] == 0
    assert len(left) > 8
    assert left[-1] >= killed["files"] - 2


def test_the_finished_store_has_nothing_but_its_parts() -> None:
    """No staging folder, no temporary file is left of a whole run."""
    folder = experiments.finished() / "out"
    names = contents(folder)
    assert not [name for name in names if "/tmp/" in name or Path(name).name.startswith(".")]
    assert not [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]


# Settings


@pytest.mark.parametrize(("batch_size", "block_rows"), [(7, 16), (500, 32), (64, None)])
def test_batches_and_blocks_change_no_logit_beyond_rounding(
    base: Path, batch_size: int, block_rows: int | None
) -> None:
    reference = open_store(experiments.finished() / "out" / "store.zarr").teachers["wide"]
    content = captures_of(teacher("wide"))
    content["cache"] |= {"batch_size": batch_size}
    del content["cache"]["block_rows"]
    if block_rows is not None:
        content["cache"]["block_rows"] = block_rows
    _, store = captured(content, base, base / "out")
    assert store.block_rows == (block_rows or 1024)
    assert store.grid.num_blocks == (1 if block_rows is None else -(-ROWS // block_rows))
    for view in range(VIEWS):
        np.testing.assert_array_equal(
            store.teachers["wide"].seen(slice(None), view), reference.seen(slice(None), view)
        )
        np.testing.assert_allclose(
            store.teachers["wide"].read(slice(None), view), reference.read(slice(None), view), atol=2e-3
        )


def test_float32_logits_are_the_teachers_own_to_the_bit(base: Path) -> None:
    content = captures_of(teacher("wide"))
    content["cache"] = {"encoding": "float32", "batch_size": 400}
    _, store = captured(content, base, base / "out")
    work = Workspace.of_folder(parsed(content, base), base / "out", device="cpu")
    rows, module = work.rows, load_teacher(work, work.experiment.teacher_members()[0])
    with torch.inference_mode():
        raw = module(torch.from_numpy(rows.rows(range(ROWS))[0])).numpy()
    np.testing.assert_array_equal(
        store.teachers["wide"].read(slice(None)), raw - raw.max(axis=1, keepdims=True)
    )


def test_progress_is_reported_to_the_end(base: Path) -> None:
    recorder = experiments.Recorder()
    captured(document(), base, base / "out", recorder)
    told = recorder.of("caching wide, deep")
    assert told[0] == (0, ROWS * VIEWS)
    assert told[-1] == (ROWS * VIEWS, ROWS * VIEWS)
    assert told == sorted(told)
    assert len(told) == 1 + len(BLOCKS) * VIEWS


# One more teacher


def without_fingerprint() -> Content:
    """A document whose transfer set says nothing of its content, so that only digests can tell."""
    content = captures_of(teacher("wide"))
    content["transfer_set"]["factory"] = "support.experiments:no_fingerprint"
    content["cache"]["batch_size"] = 64
    return content


def change_an_example(base: Path, store: Store, row: int) -> None:
    """Change the input of the example that is `row` in the store by one pixel."""
    with np.load(base / "train.npz") as archive:
        arrays = dict(archive)
    arrays["inputs"][store.samples.source[row], 0, 0] ^= 1
    np.savez(base / "train.npz", **arrays)


@pytest.mark.parametrize("row", [3, ROWS - 1])
def test_a_teacher_is_never_added_to_rows_that_have_changed(base: Path, row: int) -> None:
    content = without_fingerprint()
    _, store = captured(content, base, base / "out")
    change_an_example(base, store, row)
    content["teacher"].append(teacher("deep"))
    digest = store.digest
    with pytest.raises(RowMismatch) as caught:
        captured(content, base, base / "out")
    where, _, rest = str(caught.value).partition(": ")
    assert where == f"row {row} (index {store.samples.source[row]} of the transfer set)"
    assert "1 of " in rest
    assert "use the transfer set that the store was made from" in rest
    after = open_store(base / "out" / "store.zarr")
    assert (after.digest, list(after.teachers)) == (digest, ["wide"])


def test_the_same_rows_take_another_teacher(base: Path) -> None:
    """Control of the test above: without the change it is captured."""
    content = without_fingerprint()
    _, first = captured(content, base, base / "out")
    content["teacher"].append(teacher("deep"))
    report, store = captured(content, base, base / "out")
    assert (report.captured, report.kept, report.digest) == (("deep",), ("wide",), store.digest)
    assert store.teachers["wide"].digest == first.teachers["wide"].digest


def test_resuming_with_changed_rows_is_refused(base: Path) -> None:
    """Samples that are not sealed yet are compared as well."""
    content = without_fingerprint()
    content["teacher"] = [nan_teacher(base, call=3)]
    with pytest.raises(BadLogitsError):
        captured(content, base, base / "out")
    with np.load(base / "train.npz") as archive:
        arrays = dict(archive)
    arrays["inputs"][:, 0, 0] ^= 1
    np.savez(base / "train.npz", **arrays)
    content["teacher"] = [nan_teacher(base, call=0)]
    with pytest.raises((RowMismatch, SpecMismatch)):
        captured(content, base, base / "out")


# Teachers that fail


def nan_teacher(base: Path, call: int) -> Content:
    """A teacher with weights of a file that gives a NaN the `call`-th time; the trying out is the first."""
    from logitstore.pipeline.models.weights import save_weights

    path = base / "nan.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        module = experiments.nan_at_call(0, [5], input_shape=list(experiments.SHAPE), num_classes=4)
        save_weights(module, path)
    return {
        "name": "nan",
        "factory": "support.experiments:nan_at_call",
        "args": {"call": call, "hidden": [5]},
        "weights": path.name,
    }


def test_a_nan_in_a_later_block_keeps_the_blocks_before_it_and_not_that_one(base: Path) -> None:
    content = captures_of(nan_teacher(base, call=2 + VIEWS + 2))
    content["cache"]["batch_size"] = BLOCK_ROWS  # a call a block and view, after two to try it out
    with pytest.raises(
        BadLogitsError,
        match=r"teacher 'nan', view 1, row 64 \(index \d+ of the transfer set\), class 1: expected finite logits",
    ):
        captured(content, base, base / "out")
    commits = base / "out" / "store.zarr" / "teachers" / "nan" / "__logitstore__" / "commits"
    assert sorted(path.stem for path in commits.iterdir()) == ["0-0", "0-1", "1-0", "2-0"]
    store = open_store(base / "out" / "store.zarr")
    assert (list(store.teachers), store.unsealed()) == ([], ["samples", "teachers/nan"])


def test_a_teacher_that_is_refused_at_once_leaves_nothing_behind(base: Path) -> None:
    content = captures_of(nan_teacher(base, call=1))
    with pytest.raises(
        BadLogitsError,
        match=r"teacher 'nan', row 0 \(index \d+ of the transfer set\), class 1: expected finite logits, found nan",
    ):
        captured(content, base, base / "out")
    assert not (base / "out" / "store.zarr").exists()


def test_a_teacher_that_is_refused_at_its_first_block_leaves_no_trace_in_a_finished_store(
    tmp_path: Path,
) -> None:
    folder = experiments.copy_finished(tmp_path)
    before = contents(folder / "out")
    content = document()
    content["teacher"].append(nan_teacher(folder, call=3))
    with pytest.raises(BadLogitsError, match="view 0, row 0"):
        captured(content, folder, folder / "out")
    assert contents(folder / "out") == before


def test_no_child_of_these_tests_is_left() -> None:
    """The kills were of processes that we started, and all of them were waited for; multiprocessing keeps its servers."""
    lists = Path("/proc/self/task").glob("*/children")
    servers = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}
    assert {int(pid) for one in lists for pid in one.read_text().split()} <= servers
