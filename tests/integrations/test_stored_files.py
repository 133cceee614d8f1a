"""Files of torchvision's `ImageFolder` in a store: students get the pixels that the teacher saw, or the set is refused."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from support.hands import MeanColour
from support.messages import Sentences
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import logitstore
from logitstore.pipeline.augment import crop_flip
from logitstore.pipeline.datasets import pil_images, stored_images
from logitstore.storage.errors import BadDataError, ConfigError

ROWS = 24
SIZED = [transforms.Resize(24), transforms.CenterCrop(20), transforms.PILToTensor()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write JPEG and PNG files of several shapes; grey ones, one with a palette and one that a camera turned among them."""
    draw = np.random.default_rng(0)
    for index in range(ROWS):
        shape = (30 + index % 5, 33, 3) if index % 5 else (31, 40)
        image = Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8))
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.{'png' if index % 3 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if index == 7:
            exif[ExifTags.Base.Orientation] = 6
        (image.convert("P") if index == 3 else image).save(path, exif=exif)
    return tmp_path / "images"


def cached(path: Path, dataset: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {"store_inputs": "encoded", "block_rows": 8, "device": "cpu"} | changes
    with mock.patch("os.fsync"):
        return logitstore.cache(path, {"net": MeanColour()}, dataset, **settings)


def weights(store: Any, out: Path, **changes: Any) -> bytes:
    net = logitstore.distill(
        store, MeanColour(), lr=1e-2, epochs=1, batch_size=8, checkpoint=out, device="cpu", **changes
    )
    return b"".join(tensor.numpy().tobytes() for tensor in net.state_dict().values())


@pytest.mark.parametrize(
    "steps",
    [
        SIZED,
        [transforms.Resize((20, 22)), transforms.PILToTensor()],
        [
            transforms.Resize(24, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop((16, 20)),
            v2.PILToTensor(),
        ],
        [transforms.CenterCrop(20), v2.ToImage()],
    ],
    ids=["resize, crop", "stretch", "bicubic", "crop"],
)
def test_students_get_the_pixels_of_the_folder(folder: Path, tmp_path: Path, steps: list[Any]) -> None:
    dataset = ImageFolder(str(folder), transforms.Compose(steps))
    store = cached(tmp_path / "files.zarr", dataset)
    stored = stored_images(store)
    for index in range(ROWS):
        pixels, label = stored[index]
        assert np.array_equal(pixels, dataset[index][0].numpy()) and label == dataset[index][1]
    arrays = cached(tmp_path / "arrays.zarr", dataset, store_inputs=True)
    assert weights(store, tmp_path / "a") == weights(arrays, tmp_path / "b")


def test_a_subset_of_a_folder_gives_its_files(folder: Path, tmp_path: Path) -> None:
    part = Subset(ImageFolder(str(folder), transforms.Compose(SIZED)), [*range(3, 20)])
    stored = stored_images(cached(tmp_path / "part.zarr", part))
    for index in range(17):
        assert np.array_equal(stored[index][0], part[index][0].numpy())


def test_a_folder_without_a_transform_is_read_as_it_is(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*/*"):
        with Image.open(path) as image:
            image.resize((24, 20)).save(path)
    plain = ImageFolder(str(folder))
    views = {"views": 2, "augment": crop_flip(pixels=2)}
    store = cached(tmp_path / "plain.zarr", plain, **views)
    stored = stored_images(store)
    for index in range(ROWS):
        assert np.array_equal(stored[index][0], np.asarray(plain[index][0]).transpose(2, 0, 1))
    weights(store, tmp_path / "a", augment=views["augment"])
    # With the sizes of `pil_images`, as a factory returns them.
    sized = pil_images(plain, resize=16, crop=12)
    stored = stored_images(cached(tmp_path / "sized.zarr", sized))
    assert all(np.array_equal(stored[index][0], sized[index][0]) for index in range(ROWS))


@pytest.mark.parametrize(
    "steps",
    [
        [transforms.Resize(24), transforms.RandomCrop(20), transforms.PILToTensor()],
        [*SIZED, transforms.ConvertImageDtype(torch.float32)],
        [transforms.Resize(24), transforms.CenterCrop(20), transforms.ToTensor()],
        [transforms.PILToTensor(), transforms.Resize((20, 20))],
        [transforms.Resize(24, transforms.InterpolationMode.NEAREST), *SIZED[1:]],
    ],
    ids=["random", "fractions", "to tensor", "late", "nearest"],
)
def test_other_steps_are_refused_by_name(
    folder: Path, tmp_path: Path, steps: list[Any], sentence: Sentences
) -> None:
    dataset = ImageFolder(str(folder), transforms.Compose(steps))
    with pytest.raises((ConfigError, BadDataError)) as caught:
        cached(tmp_path / "store.zarr", dataset)
    sentence(caught.value)
    assert not (tmp_path / "store.zarr").exists()


def test_a_loader_of_other_pixels_is_refused(folder: Path, tmp_path: Path) -> None:
    def inverted(path: str) -> Image.Image:
        return Image.eval(Image.open(path).convert("RGB"), lambda value: 255 - value)

    dataset = ImageFolder(str(folder), transforms.Compose(SIZED), loader=inverted)
    with pytest.raises(BadDataError, match="a file that decodes to the input of the set"):
        cached(tmp_path / "store.zarr", dataset)
    assert not (tmp_path / "store.zarr").exists()


def test_a_single_transparent_image_is_not_stored_as_another(folder: Path, tmp_path: Path) -> None:
    """Refuse a file whose transparency the loader drops; it is none of those that are tried before."""
    dataset = ImageFolder(str(folder), transforms.Compose(SIZED))
    tried = set(np.linspace(0, ROWS - 1, 16).astype(int).tolist())
    index = next(i for i in range(ROWS) if i not in tried and dataset.samples[i][0].endswith("png"))
    path = dataset.samples[index][0]
    with Image.open(path) as image:
        clear = image.convert("RGBA")
        clear.putalpha(100)
        clear.save(path)
    with pytest.raises(BadDataError, match="transparent"):
        cached(tmp_path / "store.zarr", dataset)
