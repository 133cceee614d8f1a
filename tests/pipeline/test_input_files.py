"""Stores that keep the files of images (`store_inputs = "encoded"`): the same pixels, training and digests as the set."""

import io
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from support import experiments, stores
from support.make_golden import FILE_PIXELS, FILES, make_files
from torch import nn

import logitstore
from logitstore.cli.main import cli
from logitstore.pipeline.augment import random_resized_crop
from logitstore.pipeline.datasets import image_folder, stored_images
from logitstore.pipeline.datasets.stored_images import Decoding, StoredImages
from logitstore.pipeline.experiment.schema import checked
from logitstore.pipeline.experiment.tables import TransferSet
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.plan.stage import _samples as plan_samples
from logitstore.pipeline.train.stage import train_students
from logitstore.pipeline.transfer import TransferRows, input_bytes
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store
from logitstore.storage.describe import describe
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import (
    BadDataError,
    ConfigError,
    LogitStoreError,
    ManifestInvalid,
    RowMismatch,
    SpecMismatch,
)
from logitstore.storage.format.layouts import check_part
from logitstore.storage.parts.reader import Samples

ROWS, CLASSES = 60, 3
GOLDEN_DIGEST = "sha256:0b1ef403d1a8ba10c0c54ea27e89ecc3826a73deaf22227d4058e197975f4042"
"""Digest of the golden store on the day it was made."""


class Net(nn.Module):
    """A small network of uint8 images of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(3, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.float().mean(dim=(2, 3)) / 255)
        return logits


def write_images(folder: Path) -> None:
    """Write JPEG and PNG files of several sizes and lengths, grey ones among them."""
    draw = np.random.default_rng(0)
    for index in range(ROWS):
        shape = (40 + index % 3, 44, 3) if index % 5 else (41, 40)
        pixels = draw.integers(0, 256, shape, dtype=np.uint8) >> (index % 4)
        path = folder / f"class-{index % CLASSES}" / f"{index}.{'png' if index % 7 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def images(folder: Path) -> Any:
    return image_folder(folder, mode="RGB", resize=36, crop=32)


def cached(folder: Path, name: str, **changes: Any) -> Store:
    """Return a store of three views of a network in hand."""
    settings: dict[str, Any] = {"views": 3, "augment": random_resized_crop(16), "first_view": 0} | changes
    with mock.patch("os.fsync"):
        store: Store = logitstore.cache(
            folder / name, {"net": Net()}, images(folder / "images"), device="cpu", block_rows=16, **settings
        )
    return store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and stores of them: of files, of arrays, and of no inputs."""
    made = tmp_path_factory.mktemp("files")
    write_images(made / "images")
    for name, kept in (("files", "encoded"), ("arrays", True), ("none", False)):
        cached(made, f"{name}.zarr", store_inputs=kept)
    return made


def opened(folder: Path, name: str = "files") -> Store:
    return logitstore.open_store(folder / f"{name}.zarr")


def weights(folder: Path, name: str, out: Path, **changes: Any) -> bytes:
    """Return the bytes of the weights of a student."""
    net = logitstore.distill(
        folder / f"{name}.zarr",
        Net(),
        lr=1e-2,
        epochs=2,
        batch_size=16,
        augment=random_resized_crop(16),
        checkpoint=out,
        device="cpu",
        **changes,
    )
    return b"".join(tensor.numpy().tobytes() for tensor in net.state_dict().values())


def test_the_store_holds_the_bytes_of_the_files_and_a_row_is_found_by_any_reader_of_zarr(
    folder: Path,
) -> None:
    store, dataset = opened(folder), images(folder / "images")
    array: Any = zarr.open_array(folder / "files.zarr" / "samples" / "file", mode="r")
    sizes: Any = zarr.open_array(folder / "files.zarr" / "samples" / "file_bytes", mode="r")
    for row in range(ROWS):
        content = (folder / "images" / dataset.ids[store.samples.source[row]]).read_bytes()
        assert store.samples.file(row) == content
        assert array[row][: sizes[row]].tobytes() == content and not array[row][sizes[row] :].any()
    assert array.shape == (ROWS, int(sizes[:].max()))
    assert store.samples.inputs is None
    group = json.loads((folder / "files.zarr" / "samples" / "zarr.json").read_text())
    assert group["attributes"]["logitstore"]["required_features"] == ["input-files"]
    assert group["attributes"]["logitstore"]["format_version"] == "1.1"


def test_pixels_are_those_of_the_set(folder: Path) -> None:
    dataset, stored = images(folder / "images"), stored_images(opened(folder))
    assert len(stored) == ROWS
    for index in range(ROWS):
        (ours, label), (theirs, expected) = stored[index], dataset[index]
        np.testing.assert_array_equal(ours, theirs)
        assert label == expected
    with pytest.raises(ConfigError, match="inputs as arrays"):
        stored_images(opened(folder, "arrays"))


def test_a_student_has_the_weights_of_any_other_store_of_these_rows(folder: Path, tmp_path: Path) -> None:
    plain = weights(folder, "arrays", tmp_path / "arrays")
    assert weights(folder, "files", tmp_path / "files") == plain
    assert weights(folder, "files", tmp_path / "workers", workers=1) == plain
    other = weights(folder, "none", tmp_path / "none", dataset=images(folder / "images"))
    assert other == plain


def test_a_loop_of_ones_own_streams_the_files(folder: Path) -> None:
    store = opened(folder)
    batch = next(
        iter(
            store.stream(
                20,
                views=0,
                shuffle=False,
                transfer_set=stored_images(store),
                inputs=True,
                augment=replayed(store),
            )
        )
    )
    assert batch.inputs is not None and batch.inputs.shape == (20, 3, 16, 16)


def replayed(store: Store) -> Any:
    from logitstore.pipeline import replay

    return replay(random_resized_crop(16), first_view=0)


def test_a_second_run_has_nothing_to_do_and_a_teacher_is_added(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    store = cached(tmp_path, "store.zarr", store_inputs="encoded")
    digest = store.digest
    assert cached(tmp_path, "store.zarr", store_inputs="encoded").digest == digest
    with mock.patch("os.fsync"):
        both = logitstore.cache(
            tmp_path / "store.zarr",
            {"net": Net(), "other": Net()},
            images(tmp_path / "images"),
            views=3,
            augment=random_resized_crop(16),
            first_view=0,
            device="cpu",
        )
    assert list(both.teachers) == ["net", "other"]
    assert digest == opened(folder).digest  # equal files make equal stores


def test_an_interrupted_capture_is_resumed_to_the_same_bytes(
    folder: Path, tmp_path: Path, sentence: Any
) -> None:
    write_images(tmp_path / "images")
    with experiments.interrupted_capture(4):
        cached(tmp_path, "store.zarr", store_inputs="encoded")
    assert cached(tmp_path, "store.zarr", store_inputs="encoded").digest == opened(folder).digest
    # What was begun with files is not resumed without them.
    with experiments.interrupted_capture(4):
        cached(tmp_path, "other.zarr", store_inputs="encoded")
    with pytest.raises(SpecMismatch) as caught:
        cached(tmp_path, "other.zarr", store_inputs=False)
    sentence(caught.value)


def test_an_experiment_of_a_file_trains_without_the_folder_and_is_planned(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    content = experiments.document() | {"student": []}
    args = {"root": "images", "mode": "RGB", "size": 12}
    factory = "logitstore.pipeline.datasets:image_folder"
    content["transfer_set"] = {"factory": factory, "args": args, "store_inputs": "encoded"}
    content["evaluation_set"] = {"factory": factory, "args": args}
    content["teacher"] = [experiments.teacher("wide", train=experiments.train(epochs=1))]
    del content["cluster"]
    content["cache"]["block_rows"] = 16
    experiments.run_document(content, tmp_path, tmp_path / "out")
    experiment = experiments.parsed(content, tmp_path)
    store = logitstore.open_store(tmp_path / "out" / "store.zarr")
    rows = TransferRows(experiment)
    planned = plan_samples(experiment, rows, store.grid).bytes
    actual = describe(store)[0]["samples"]["bytes"]
    assert abs(planned - actual) < 0.05 * actual
    assert input_bytes(experiment, rows) < 12 * 12 * 3 * 10
    shutil.rmtree(tmp_path / "images")
    content["student"] = [experiments.student("late", train=experiments.train(epochs=1))]
    experiment = experiments.parsed(content, tmp_path)
    work = Workspace(experiment, Path(store.path), Models(tmp_path / "models"), device="cpu")
    assert train_students(work) == ["late-seed0"]


def test_another_decoder_is_noticed(folder: Path, sentence: Any) -> None:
    store = opened(folder)
    dataset = stored_images(store)
    other = Decoding.of(store.samples.spec.identity["decoding"] | {"interpolation": "bicubic"}, "here")
    with mock.patch.object(dataset, "_decoding", other), pytest.raises(RowMismatch) as caught:
        list(store.stream(20, views=0, shuffle=False, transfer_set=dataset, augment=replayed(store)))
    sentence(str(caught.value).replace(caught.value.found, "…"))


def test_a_set_without_files_and_files_of_other_pixels_are_refused(tmp_path: Path, sentence: Any) -> None:
    arrays = np.zeros((ROWS, 4, 4), np.uint8), np.arange(ROWS) % CLASSES
    with pytest.raises(ConfigError) as refused:
        logitstore.cache(tmp_path / "a.zarr", {"net": Net()}, arrays, store_inputs="encoded", device="cpu")
    sentence(refused.value)
    write_images(tmp_path / "images")
    dataset = images(tmp_path / "images")
    with (
        mock.patch.object(type(dataset), "encoded", lambda self, index: self._read(self.ids[1])),
        pytest.raises(BadDataError, match="a file that decodes to the input of the set"),
    ):
        logitstore.cache(tmp_path / "b.zarr", {"net": Net()}, dataset, store_inputs="encoded", device="cpu")
    with pytest.raises(ConfigError) as refused:
        checked(TransferSet, "transfer_set", factory="a:b", store_inputs="jpeg")
    sentence(refused.value)
    assert not [*tmp_path.glob("*.zarr")]


def test_inspect_and_verify_know_the_files(folder: Path) -> None:
    shown = CliRunner().invoke(cli, ["inspect", str(folder / "files.zarr")])
    assert "stored as the files of images" in shown.output
    record = json.loads(CliRunner().invoke(cli, ["inspect", "--json", str(folder / "files.zarr")]).output)
    assert record["samples"]["inputs"].keys() == {"files", "most_bytes"}
    assert record["format_version"] == "1.1"
    assert CliRunner().invoke(cli, ["verify", str(folder / "files.zarr")]).exit_code == 0


def test_a_golden_store_is_read_as_it_was_made(tmp_path: Path) -> None:
    """One of the day on which files became a part of format 1.1. A new one has its bytes, but for what is compressed."""
    for store in (logitstore.open_store(FILES), make_files(tmp_path / "new.zarr")):
        stored = stored_images(store)
        for index, pixels in enumerate(FILE_PIXELS):
            image, label = stored[index]
            np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))
            assert label == index % 2
        assert digest_rows(np.stack([stored[index][0] for index in range(6)])).tolist() == (
            store.samples.digests[::-1].tolist()
        )
    assert logitstore.open_store(FILES).digest == GOLDEN_DIGEST
    assert CliRunner().invoke(cli, ["verify", "--deep", str(FILES)]).exit_code == 0
    ours, theirs = stores.tree(tmp_path / "new.zarr"), stores.tree(FILES)
    assert ours.keys() == theirs.keys()
    compressed = ("file/c.", "file_bytes/c.", "__logitstore__/")  # Pillow's zlib and our zstd may change
    same = [key for key in ours if not any(part in key for part in compressed) and "file/" not in key]
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


# Hostile content

SETTINGS = {"mode": "RGB", "height": 4, "width": 4}
FALSE: list[Any] = [
    None,
    [],
    {},
    {"mode": "RGB"},
    SETTINGS | {"mode": "CMYK"},
    SETTINGS | {"height": 0},
    SETTINGS | {"height": 1 << 40},
    SETTINGS | {"width": True},
    SETTINGS | {"height": 4.0},
    SETTINGS | {"size": [4]},
    SETTINGS | {"size": 4},
    SETTINGS | {"size": [1 << 13, 1 << 13]},
    SETTINGS | {"crop": [4, 4, 4]},
    SETTINGS | {"resize": 1 << 40},
    SETTINGS | {"follow_exif": 1},
    SETTINGS | {"follow_exif": False},
    SETTINGS | {"size": [4, 4], "resize": 4},
    SETTINGS | {"interpolation": "nearest"},
    SETTINGS | {"background": [0, 0, 256]},
    SETTINGS | {"background": "white"},
    SETTINGS | {"follow_exif": "maybe"},
    SETTINGS | {"plugin": "os:system"},
]


@pytest.mark.parametrize("settings", FALSE, ids=str)
def test_false_settings_of_a_decoder_are_refused(settings: Any) -> None:
    with pytest.raises(ManifestInvalid):
        Decoding.of(settings, "store: decoding")


@pytest.mark.parametrize(
    "more",
    [{}, {"resize": 8, "crop": [4, 4]}, {"size": [4, 4], "interpolation": "bicubic"}, {"follow_exif": True}],
    ids=str,
)
def test_true_settings_are_read_back(more: dict[str, Any]) -> None:  # the control
    assert Decoding.of(SETTINGS | more, "here").settings == SETTINGS | more


def encoded(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


class Lying(Samples):
    """Samples of one row, of any content."""

    class_names = ["a", "b"]  # type: ignore[assignment]  # noqa: RUF012
    spec: Any = mock.Mock(identity={"decoding": SETTINGS})

    def __init__(self, content: bytes, source: int = 0) -> None:
        self._content = content
        self.source, self.labels = np.array([source]), np.zeros(1, np.int64)

    def file(self, row: int) -> bytes:
        return self._content

    def id_of(self, row: int) -> str:
        return "x.png"


def bomb(side: int) -> bytes:
    """Return a PNG file of one colour, a thousandth of its pixels in bytes."""
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    return content.getvalue()


def test_hostile_files_are_one_line() -> None:
    good = encoded(np.zeros((4, 4, 3), np.uint8))
    assert StoredImages(Lying(good), "store")[0][0].shape == (3, 4, 4)  # the control
    deep = encoded(np.zeros((5, 4, 3), np.uint8))
    for content in (deep, good[:40], b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n", bomb(13_400)):
        with pytest.raises(BadDataError), mock.patch.object(Image, "MAX_IMAGE_PIXELS", None):
            StoredImages(Lying(content), "store")[0]


def test_lengths_and_indices_that_lie_are_refused(folder: Path) -> None:
    store = opened(folder)
    reader, read = store.samples.reader, store.samples.reader.read
    (width,) = reader.layout("file").row_shape
    for size in (0, width + 1, 2**32 - 1):

        def lying(array: str, rows: Any, view: int = 0, size: int = size) -> NDArray[Any]:
            return np.array([size], np.uint32) if array == "file_bytes" else read(array, rows, view)

        with (
            mock.patch.object(reader, "read", lying),
            pytest.raises(ManifestInvalid, match="sizes from 1 to"),
        ):
            store.samples.file(3)
    assert store.samples.file(3)  # the control
    with pytest.raises(ManifestInvalid, match="each index of the transfer set once"):
        len(StoredImages(Lying(b"", source=5), "store"))


def test_inputs_are_arrays_or_files(folder: Path) -> None:
    part = opened(folder).root.part("samples")
    extra = opened(folder, "arrays").root.part("samples").layouts["input"]

    def check(layouts: dict[str, Any]) -> None:
        chunks = [(name, one.chunks_per_shard) for name, one in layouts.items() if one.is_block_array]
        blocks = part.seal.blocks
        size = blocks * sum(40 + 4 * count for _, count in chunks)
        check_part(
            part.form,
            layouts,
            opened(folder).grid,
            "samples",
            arrays=chunks,
            shape=(1, blocks),
            table_bytes=size,
            files=part.seal.files,
        )

    check(dict(part.layouts))  # the control
    with pytest.raises(ManifestInvalid, match="inputs as files or as arrays"):
        check({**part.layouts, "input": extra})


def test_every_bit_of_a_stored_file_is_covered(folder: Path, tmp_path: Path) -> None:
    """A flipped bit of a shard is an error of the store, before any decoder sees it; the same call mends it."""
    shutil.copytree(folder / "files.zarr", tmp_path / "store.zarr")
    shard = next(
        path
        for path in sorted((tmp_path / "store.zarr" / "samples" / "file").iterdir())
        if path.name.startswith("c.")
    )
    content = bytearray(shard.read_bytes())
    content[200] ^= 4
    shard.write_bytes(bytes(content))
    with pytest.raises(LogitStoreError) as caught:
        for row in range(16):
            logitstore.open_store(tmp_path / "store.zarr").samples.file(row)
    assert caught.value.code == "shard-corrupt"
    assert CliRunner().invoke(cli, ["repair", str(tmp_path / "store.zarr")]).exit_code == 0
    write_images(tmp_path / "images")
    assert cached(tmp_path, "store.zarr", store_inputs="encoded").digest == opened(folder).digest
