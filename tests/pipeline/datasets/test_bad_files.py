"""Laws of skipped files: each run leaves out the same, says which, and is never taken for a run that leaves out others."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import small_experiment as small
from support.messages import Sentences

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.datasets import ImageFolder, bad_files, image_folder
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store
from logitstore.storage.errors import MOST_LISTED, BadDataError, SpecMismatch

BAD = ("a/1.png", "b/0.png", "b/3.png")
ROWS = 12


def png(number: int, size: tuple[int, int] = (4, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, 20 * number).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Lay out twelve images of three classes, of which three are bad: text, cut, of 16 bits."""
    for number in range(ROWS):
        path = tmp_path / "images" / "abc"[number // 4] / f"{number % 4}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    folder = tmp_path / "images"
    (folder / BAD[0]).write_text("no image")
    (folder / BAD[1]).write_bytes(png(4)[:45])
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(folder / BAD[2])
    return folder


@pytest.fixture(autouse=True)
def no_scan_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_files, "_known", {})
    monkeypatch.setattr(bad_files, "_given", set())


def skipping(root: Path, **options: Any) -> ImageFolder:
    return image_folder(root, on_error="skip", **options)


def test_bad_files_are_left_out_and_named(
    root: Path, caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    with caplog.at_level(logging.INFO):
        read = skipping(root)
    assert tuple(read.skipped) == BAD
    assert len(read) == ROWS - 3 and not {*read.ids} & {*BAD}
    assert read.labels is not None and read.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    # The pixels belong to the names: each image holds its number.
    numbers = ["abc".index(name[0]) * 4 + int(name[2]) for name in read.ids]
    assert [int(read[row][0][0, 0]) // 20 for row in range(len(read))] == numbers  # type: ignore[index]
    warning, *each = [record.getMessage() for record in caplog.records]
    sentence(warning)
    assert len(each) == len(BAD)
    for name, line in zip(BAD, each, strict=True):
        assert name in line and read.skipped[name] in line


def test_without_skipping_the_first_bad_file_is_an_error(root: Path, sentence: Sentences) -> None:
    """Stop at the first: the negative control. The remedy names both ways out."""
    read = image_folder(root)
    assert len(read) == ROWS
    with pytest.raises(BadDataError) as caught:
        read[read.ids.index(BAD[1])]
    sentence(caught.value)


def test_the_fingerprint_is_that_of_the_rest(root: Path) -> None:
    before = skipping(root).fingerprint()
    (root / BAD[0]).write_bytes(png(1))
    repaired = skipping(root)
    assert repaired.fingerprint() != before, "another set: one row more"
    for name in BAD:
        (root / name).unlink(missing_ok=True)
    assert image_folder(root).fingerprint() == before, "the same rows, whoever left out the others"
    assert skipping(root).fingerprint() == before


def test_the_selection_does_not_depend_on_bad_files(root: Path) -> None:
    for options in ({"subset": "1::2"}, {"fraction": 0.5, "seed": 3}, {"omit_classes": ["a"]}):
        chosen = image_folder(root, **options)  # type: ignore[arg-type]
        rest = skipping(root, **options)
        assert rest.ids == tuple(name for name in chosen.ids if name not in BAD)
        assert rest.omitted == chosen.omitted


def test_settings_decide_on_what_is_bad(root: Path) -> None:
    clear = Image.new("LA", (4, 4), (7, 100))
    clear.save(root / "c/0.png")
    assert "c/0.png" in skipping(root).skipped
    assert tuple(skipping(root, background=255).skipped) == BAD


def test_an_image_of_another_size_is_no_bad_file(root: Path) -> None:
    (root / "c/0.png").write_bytes(png(8, (5, 5)))
    read = skipping(root)
    with pytest.raises(BadDataError, match="expected 4 x 4 pixels"):
        read[read.ids.index("c/0.png")]


def test_a_failing_disk_is_not_a_bad_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any, name: str) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("logitstore.pipeline.datasets.image_files.FolderFiles.read", failing)
    with pytest.raises(BadDataError, match="Input/output error"):
        skipping(root)
    assert not bad_files.known_files()


def test_a_set_of_bad_files_alone_is_refused(root: Path, sentence: Sentences) -> None:
    for path in root.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(BadDataError) as caught:
        skipping(root)
    notes = caught.value.__notes__
    assert len(notes) == MOST_LISTED - 1 + 1
    sentence(notes[-1])


def test_a_set_is_scanned_once_a_process_unless_it_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = []
    genuine = bad_files.in_threads
    monkeypatch.setattr(
        bad_files, "in_threads", lambda function, items: scans.append(len(items)) or genuine(function, items)
    )
    first = skipping(root)
    assert skipping(root).ids == first.ids and scans == [ROWS]
    (root / "c/2.png").write_text("broken since")
    assert "c/2.png" in skipping(root).skipped and scans == [ROWS, ROWS]


def test_a_worker_takes_over_the_scan_and_refuses_changed_files(root: Path, sentence: Sentences) -> None:
    first = skipping(root)
    known = bad_files.known_files()
    bad_files._known.clear()
    bad_files.take_known(known)
    assert skipping(root).ids == first.ids
    (root / BAD[0]).write_bytes(png(1))
    with pytest.raises(BadDataError) as caught:
        skipping(root)
    sentence(caught.value)


# A store of such a set

SET = (
    'arrays"\nargs = { file = "data.npz" }\norder',
    'image_folder"\nargs = { root = "images", on_error = "skip" }\norder',
)
ALONE = (
    '[evaluation_set]\nfactory = "logitstore.pipeline.datasets:arrays"\nargs = { file = "data.npz" }\n',
    "",
)
TRAINED = (
    'factory = "faulty:linear"\nweights = "line.safetensors"',
    'factory = "logitstore.pipeline.models:mlp"\nargs = { hidden = [] }\ntrain = { lr = 0.1, epochs = 1 }',
)


def made(folder: Path, name: str, more: str = "") -> Store:
    """Run stage one of the small experiment on the images."""
    changes = [SET, ALONE, TRAINED, ("[cache]", f"[cache]\n{more}")]
    experiment = load_experiment(small.write_experiment(folder, *changes))
    work = Workspace.of_store(experiment, folder / name, folder / f"models-{name}", device="cpu")
    cache(work)
    return work.store


@pytest.mark.usefixtures("without_fsync")
def test_a_store_keeps_to_its_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small.lay_out(root.parent).parent
    store = made(folder, "one.zarr")
    assert store.num_rows == ROWS - 3 and not set(store.samples.ids or ()) & {*BAD}
    scans: list[object] = []
    monkeypatch.setattr(bad_files, "in_threads", lambda *items: scans.append(items))
    assert made(folder, "two.zarr", "workers = 2").digest == store.digest, "workers have the same rows"
    assert not scans
    monkeypatch.undo()
    (root / BAD[0]).write_bytes(png(1))
    with pytest.raises(SpecMismatch, match="expected rows = 9, from which it was made, found 10"):
        made(folder, "one.zarr")
    (root / "c/1.png").write_text("no image")
    with pytest.raises(SpecMismatch, match=r"expected transfer_set = .*sha256:"):
        made(folder, "one.zarr")
