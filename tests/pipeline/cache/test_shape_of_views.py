"""Views of another shape than their inputs: captured, resumed, replayed and learnt from, and never of two shapes."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from support import experiments
from support.experiments import document, parsed, student, teacher
from support.stores import softmax

from logitstore.pipeline.augment import augment_rows, identity, random_resized_crop
from logitstore.pipeline.cache import capture as capture_pass
from logitstore.pipeline.cache.capture import CapturePass
from logitstore.pipeline.cache.monitor import Quality
from logitstore.pipeline.cache.schedule import Shown, shown_rows
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.plan.stage import plan
from logitstore.pipeline.run import run
from logitstore.pipeline.train.stage import open_stream
from logitstore.pipeline.train.todo import student_seeds
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.views import first_views, replay, spread_views
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import FactoryError, RowMismatch

VIEWS, SIZE, SEED = 2, (5, 6), 7
CROP: dict[str, Any] = {
    "factory": "logitstore.pipeline.augment:random_resized_crop",
    "args": {"size": list(SIZE), "scale": [0.5, 1.0]},
}


def inputs_of(folder: Path) -> NDArray[Any]:
    """The images of the transfer set, 12 x 8."""
    with np.load(folder / "train.npz") as archive:
        return archive["inputs"]


def crops(**changes: Any) -> dict[str, Any]:
    """A document whose teacher is trained and captured on crops of 5 x 6 of images of 12 x 8."""
    trained = experiments.train(epochs=1, augment=CROP)
    content = document() | {
        "teacher": [teacher("wide", train=trained)],
        "student": [
            student("soft", views="all", train=experiments.train(epochs=1)),
            student("hard", targets="hard", train=experiments.train(epochs=1)),
        ],
    }
    content["cache"] |= {"views": VIEWS, "augment": CROP | {"first_view": 0, "seed": SEED}} | changes
    return content


def write(folder: Path) -> Path:
    """Write a transfer set of images of 12 x 8 and an evaluation set of 5 x 6."""
    experiments.write_data(folder)
    for name, tall, wide in (("train", 12, 8), ("test", *SIZE)):
        with np.load(folder / f"{name}.npz") as archive:
            arrays = dict(archive)
        arrays["inputs"] = arrays["inputs"][:, np.arange(tall) * 4 // tall][..., np.arange(wide) * 4 // wide]
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def place(experiment: Experiment, folder: Path, name: str) -> Workspace:
    """A workspace with the models that all share."""
    return Workspace.of_store(experiment, folder / name / "store.zarr", folder / "models", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, and a capture in `whole`."""
    base = write(tmp_path_factory.mktemp("crops"))
    with mock.patch("os.fsync"):
        cache(place(parsed(crops(), base), base, "whole"))
    return base


def whole(folder: Path) -> Store:
    """The store of crops."""
    return open_store(folder / "whole" / "store.zarr")


def test_the_digests_are_those_of_the_crops_of_the_stored_images(folder: Path) -> None:
    store = whole(folder)
    inputs, rows = inputs_of(folder)[store.samples.source], np.arange(store.num_rows)
    assert (store.samples.digests == digest_rows(inputs)).all()
    for view in range(VIEWS):
        made = augment_rows(inputs, random_resized_crop(SIZE, (0.5, 1.0)), SEED, view, rows, first_view=0)
        assert made.shape == (store.num_rows, *SIZE)
        assert (store.teachers["wide"].seen(slice(None), view) == digest_rows(made)).all()


@pytest.mark.parametrize("keeps", [True, False])
def test_a_stream_replays_them(folder: Path, keeps: bool) -> None:
    store = whole(folder)
    again = pickle.loads(pickle.dumps(replay(random_resized_crop(SIZE, (0.5, 1.0)), SEED, 0)))
    transfer_set = None if keeps else inputs_of(folder)
    for views in ("all", "cycle", 1):
        stream = store.stream(17, views=views, augment=again, transfer_set=transfer_set)
        batches = list(stream)  # each input is compared with the digest of what the teacher saw
        assert {np.asarray(b.inputs).shape[1:] for b in batches} == {SIZE}
        assert sum(len(b.rows) for b in batches) == experiments.ROWS * (VIEWS if views == "all" else 1)
    # Twice the rows of a chunk run for each thread: the images are larger than the views.
    plain = store.stream(17, views=0, inputs=False).memory_bytes
    assert stream.memory_bytes > plain + 12 * 8 * 17
    other = replay(random_resized_crop(SIZE, (0.4, 1.0)), SEED, 0)
    with pytest.raises(RowMismatch, match="use the transfer set and the augmentation"):
        list(store.stream(17, views=1, augment=other, transfer_set=transfer_set))  # negative control


@pytest.mark.parametrize("changes", [{"workers": 2}, {"workers": 0}])
@pytest.mark.parametrize("keeps", [True, False])
def test_an_interrupted_capture_resumes_to_the_same_bytes(
    folder: Path, tmp_path: Path, keeps: bool, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_pass, "PIECE_BYTES", 1)  # pieces of a batch
    content = crops(**changes)
    content["transfer_set"]["store_inputs"] = keeps
    experiment, calls = parsed(content, folder), []
    run_teacher = capture_pass.teacher_logits

    def interrupted(runner: Any, shown: Shown, logits: Any) -> None:
        calls.append(shown.inputs.shape[1:])
        if len(calls) == 5:
            raise KeyboardInterrupt
        run_teacher(runner, shown, logits)

    def work() -> Workspace:
        return Workspace.of_store(experiment, tmp_path / "store.zarr", folder / "models", device="cpu")

    with (
        mock.patch("os.fsync"),
        mock.patch.object(capture_pass, "teacher_logits", interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        cache(work())
    with mock.patch("os.fsync"):
        cache(work())
    assert set(calls) == {SIZE}
    ours, theirs = open_store(tmp_path / "store.zarr").teachers["wide"], whole(folder).teachers["wide"]
    assert (ours.digest == theirs.digest) == keeps  # whether inputs are kept is part of the identity
    for view in range(VIEWS):
        assert np.array_equal(ours.read(slice(None), view), theirs.read(slice(None), view))
        assert np.array_equal(ours.seen(slice(None), view), theirs.seen(slice(None), view))


def test_the_memory_of_a_pass_counts_the_views(folder: Path) -> None:
    def most(size: int, views: int, workers: int = 0) -> int:
        content = crops(workers=workers, views=views)
        content["cache"]["augment"] |= {"args": {"size": size}}
        work = place(parsed(content, folder), folder, "whole")
        with mock.patch.object(CapturePass, "cut", capture_pass.Cut(64, 2)):
            return CapturePass(work, [], None, {}, {}, replay(identity()), Quality(())).most_bytes

    rows = experiments.BLOCK_ROWS
    held = 1 + capture_pass.AHEAD
    assert most(9, 1) - most(5, 1) == held * rows * (81 - 25)
    waiting = 2 * capture_pass.CHUNKS_AHEAD
    assert most(9, 3, 2) - most(5, 3, 2) == (held + waiting) * rows * 3 * (81 - 25)


def test_all_stages_run_on_them(tmp_path: Path) -> None:
    folder = write(tmp_path)
    experiment = parsed(crops(), folder)
    with mock.patch("os.fsync"):
        run(experiment, folder / "out", device="cpu")
        again = run(experiment, folder / "out", device="cpu")
    assert not again.done
    work = Workspace.of_folder(experiment, folder / "out", device="cpu")
    assert first_views(experiment, work.rows).shape == (2, *SIZE)
    for seed in student_seeds(experiment):
        stream, few = open_stream(work, seed)
        assert few.shape == (2, *SIZE) == (2, *next(iter(stream)).inputs.shape[1:])
    assert (
        plan(experiment, folder / "plan", Models(folder / "none"), sample_rows=8, device="cpu").views == VIEWS
    )


def test_the_head_of_a_teacher_is_taken_off_on_views(folder: Path, tmp_path: Path) -> None:
    """Its network takes crops of 5 x 6 alone."""
    content = crops(encoding={"transform": {"max_kl": 1e-3, "rows": 100}})
    content["teacher"][0] |= {"head": "auto"}
    experiment = parsed(content, folder)
    shown = spread_views(experiment, TransferRows(experiment))
    assert shown.shape == (32, *SIZE) and len(np.unique(digest_rows(shown))) == 32
    work = Workspace.of_store(experiment, tmp_path / "store.zarr", folder / "models", device="cpu")
    with mock.patch("os.fsync"):
        cache(work)
    capture, before = work.store.teachers["wide"], whole(folder).teachers["wide"]
    assert capture.part.spec.identity["teacher"]["head"]["layer"] == "head"
    for view in range(VIEWS):
        ours, theirs = (softmax(one.read(slice(None), view), 1.0) for one in (capture, before))
        assert np.abs(ours - theirs).max() < 0.05
    assert (
        plan(experiment, tmp_path / "plan", work.models, sample_rows=8, device="cpu").teachers[0].source
        == "teacher"
    )


def test_views_of_two_shapes_are_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    content = crops()
    content["cache"]["augment"] |= {"first_view": 1}
    content["teacher"] = [teacher("wide", train=experiments.train(epochs=1))]
    work = Workspace.of_store(parsed(content, folder), tmp_path / "store.zarr", device="cpu")
    with mock.patch("os.fsync"), pytest.raises(FactoryError) as caught:
        cache(work)
    assert str(caught.value) == (
        "view 1: expected inputs of uint8 of shape (12, 8), as in view 0, found uint8 of shape (5, 6); set first_view = 0 "
        "beside the augmentation, so that every view is augmented"
    )
    assert not (tmp_path / "store.zarr").exists()


def test_a_view_that_later_has_another_shape_stops_the_capture(folder: Path, tmp_path: Path) -> None:
    def cut(*args: Any) -> Any:
        for number, shown in enumerate(shown_rows(*args)):
            yield dataclasses.replace(shown, inputs=shown.inputs[:, : 5 if number < 2 else 4])

    work = Workspace.of_store(
        parsed(crops(), folder), tmp_path / "store.zarr", folder / "models", device="cpu"
    )
    with (
        mock.patch("os.fsync"),
        mock.patch.object(capture_pass, "shown_rows", cut),
        pytest.raises(FactoryError, match=r"as in view 0, found uint8 of shape \(4, 6\); "),
    ):
        cache(work)
    assert "wide" not in open_store(tmp_path / "store.zarr").teachers
