"""Data sets of torchvision and of Hugging Face: our rows are theirs, pixel by pixel and label by label."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from support.messages import Sentences
from torchvision import transforms
from torchvision.datasets import ImageFolder

from logitstore.pipeline.datasets import hugging_face, image_folder, pil_images
from logitstore.pipeline.datasets.stored_images import Decoding
from logitstore.pipeline.factories.call import build
from logitstore.storage.errors import BadDataError, ConfigError

SHAPES = ((64, 64), (40, 71), (90, 33), (33, 32), (200, 32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two classes of colourful images of several shapes."""
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate(SHAPES):
        small = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(32, 28), (32, 32), (37, 28), (64, 63), (100, (20, 80))])
def test_sizes_are_those_of_torchvision(
    folder: Path, resize: int, crop: int | tuple[int, int], interpolation: str
) -> None:
    ours = image_folder(folder, mode="RGB", resize=resize, crop=crop, interpolation=interpolation)  # type: ignore[arg-type]
    theirs = ImageFolder(
        str(folder),
        transforms.Compose(
            [
                transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
                transforms.CenterCrop(crop),
                transforms.PILToTensor(),
            ]
        ),
    )
    assert len(ours) == len(theirs) == len(SHAPES)
    for (image, label), (tensor, target) in zip(ours, theirs, strict=True):  # type: ignore[call-overload]
        assert label == target and np.array_equal(image, tensor.numpy())


# Factories of data sets


def test_a_data_set_of_torchvision_is_a_transfer_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a CIFAR-10 of twenty images as the archive is, and read it."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = [row % 10 for row in range(20)]
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels.reshape(20, -1), "labels": labels}))
    names = [f"class {number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    args = {"name": "CIFAR10", "root": ".", "args": {"train": False}, "omit_classes": ["class 3"]}
    read: Any = build("logitstore.pipeline.datasets:torchvision", args, base=tmp_path)
    rows = [row for row in range(20) if labels[row] != 3]
    assert list(read.class_names) == names and read.labels.tolist() == [labels[row] for row in rows]
    for (image, label), row in zip(read.__getitems__(list(range(18))), rows, strict=True):
        assert np.array_equal(image, pixels[row]) and label == labels[row]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"name": "CIFAR10", "root": "."}, BadDataError),
        ({"name": "ImageFolder", "root": "nowhere"}, BadDataError),
        ({"name": "CIFAR11", "root": "."}, ConfigError),
        ({"name": "VisionDataset", "root": ".", "args": {"download": True}}, ConfigError),
    ],
    ids=lambda value: str(value.get("name")) if isinstance(value, dict) else "",
)
def test_torchvision_without_files_or_with_wrong_arguments(
    tmp_path: Path, args: dict[str, Any], error: type[Exception], sentence: Sentences
) -> None:
    with pytest.raises(error) as caught:
        build("logitstore.pipeline.datasets:torchvision", args, base=tmp_path)
    sentence(caught.value)


def rows_of(folder: Path) -> Any:
    """Return the images of the folder as a data set of Hugging Face, with labels and one that is unknown."""
    paths = sorted(folder.rglob("*.png"))
    columns = {
        "picture": [str(path) for path in paths],
        "kind": [None, *(int(path.parent.name == "b") for path in paths[1:])],
        "id": list(range(len(paths))),
    }
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["ay", "bee"]),
            "id": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_a_saved_data_set_of_hugging_face_is_a_transfer_set(
    folder: Path, tmp_path: Path, form: str | None
) -> None:
    held = rows_of(folder).with_format(form)
    datasets.DatasetDict({"train": held, "test": held.select([3, 1])}).save_to_disk(str(tmp_path / "saved"))
    args = {"path": "saved", "image": "picture", "label": "kind", "resize": 32, "crop": [28, 20]}
    make = "logitstore.pipeline.datasets:hugging_face"
    read: Any = build(make, {**args, "split": "train"}, base=tmp_path)
    theirs = image_folder(folder, mode="RGB", resize=32, crop=(28, 20))
    assert list(read.class_names) == ["ay", "bee"] and read.labels.tolist() == [-1, 0, 0, 1, 1]
    for row in range(5):
        assert np.array_equal(read[row][0], theirs[row][0]) and read[row][1] == read.labels[row]
    decoding, names = Decoding.of(read.decoding, "here"), theirs.ids
    for row in range(5):  # from the file that a store may keep
        assert read.encoded(row) == (folder / names[row]).read_bytes()
        assert np.array_equal(decoding.decode(read.encoded(row), "", "here"), read[row][0])
    assert read.encoded_sizes().tolist() == [(folder / name).stat().st_size for name in names]
    part: Any = build(make, {**args, "split": "test"}, base=tmp_path)
    assert part.encoded(0) == read.encoded(3)
    assert part.labels.tolist() == [1, 0] and np.array_equal(part[0][0], theirs[3][0])


def test_a_folder_of_parquet_is_a_transfer_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    # With the bytes of the images, as files of the hub have them.
    held = rows_of(folder).map(lambda row: row)
    held.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    read = hugging_face(tmp_path / "hub", image="picture", label="kind", resize=32, crop=28)
    assert np.array_equal(read[4][0], image_folder(folder, mode="RGB", resize=32, crop=28)[4][0])


def test_hugging_face_without_files_or_with_wrong_arguments(
    folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    held = rows_of(folder)
    datasets.DatasetDict({"train": held, "test": held}).save_to_disk(str(tmp_path / "two"))
    held.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "empty").mkdir()
    wrong: list[dict[str, Any]] = [
        {"path": tmp_path / "nowhere"},
        {"path": tmp_path / "empty"},
        {"path": tmp_path / "two"},
        {"path": tmp_path / "two", "split": "valid"},
        {"path": tmp_path / "one", "split": "valid"},
        {"path": tmp_path / "one"},
        {"path": tmp_path / "one", "image": "picture"},
    ]
    for args in wrong:
        with pytest.raises((BadDataError, ConfigError)) as caught:
            hugging_face(**args)
        sentence(caught.value)


def test_a_set_in_hand_is_wrapped(folder: Path) -> None:
    theirs = image_folder(folder, mode="RGB", resize=32, crop=28)
    in_hand = (
        pil_images(ImageFolder(str(folder)), resize=32, crop=28),
        pil_images(rows_of(folder), image="picture", label="kind", resize=32, crop=28),
    )
    for read in in_hand:
        assert all(np.array_equal(read[row][0], theirs[row][0]) for row in range(5))
    assert in_hand[0].class_names == ["a", "b"] and in_hand[0].labels is not None
