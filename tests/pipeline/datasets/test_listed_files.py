"""Sets that list their files, as torchvision's do: a store of the files has their pixels, or they are refused."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from support.hands import MeanColour
from support.messages import Sentences

import logitstore
from logitstore.pipeline.datasets import pil_images, stored_images
from logitstore.pipeline.datasets.listed_files import ListedFiles, listed_files
from logitstore.pipeline.datasets.stored_images import GivesFiles
from logitstore.storage.errors import BadDataError, ConfigError, RowMismatch

ROWS = 40
ODD = 38
"""An example that is none of the files that are tried beforehand."""


class Step:
    """A step of a transform, of torchvision as far as its module tells."""

    def __init_subclass__(cls) -> None:
        cls.__module__ = "torchvision.transforms.transforms"

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Resize(Step):
    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size  # type: ignore[attr-defined]
        return image.resize((width, height), Image.Resampling.BILINEAR)


class PILToTensor(Step):
    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class RandomCrop(Step):
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.crop((0, 0, 10, 10))


class Compose:
    def __init__(self, *transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for one in self.transforms:
            image = one(image)
        return image


class Folder:
    """As torchvision's `DatasetFolder`."""

    classes = ("a", "b")

    def __init__(self, folder: Path, transform: Any) -> None:
        paths = sorted(folder.glob("*/*.png"))
        self.samples = [(str(path), "ab".index(path.parent.name)) for path in paths]
        self.targets = [label for _, label in self.samples]
        self.transform = transform
        self.odd: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        with Image.open(path) as opened:
            image: Any = opened.convert("RGB")
        if index == self.odd:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image if self.transform is None else self.transform(image), label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write small images of two classes."""
    draw = np.random.default_rng(0)
    for index in range(ROWS):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def cached(path: Path, dataset: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {"store_inputs": "encoded", "block_rows": 16, "device": "cpu"} | changes
    with mock.patch("os.fsync"):
        return logitstore.cache(path, {"net": MeanColour()}, dataset, **settings)


@pytest.mark.parametrize("steps", [[PILToTensor()], [Resize(size=(8, 9)), PILToTensor()]], ids=str)
def test_the_store_has_the_pixels_of_the_set(folder: Path, tmp_path: Path, steps: list[Any]) -> None:
    dataset = Folder(folder, Compose(*steps))
    assert not isinstance(dataset, GivesFiles)
    stored = stored_images(cached(tmp_path / "s.zarr", dataset))
    for index in range(ROWS):
        assert np.array_equal(stored[index][0], dataset[index][0].numpy())
        assert stored[index][1] == dataset[index][1]


def test_class_names_and_workers_change_nothing(folder: Path, tmp_path: Path) -> None:
    dataset = Folder(folder, PILToTensor())
    store = cached(tmp_path / "s.zarr", dataset, class_names=["x", "y"])
    assert store.class_names == ["x", "y"]
    assert np.array_equal(stored_images(store)[5][0], dataset[5][0].numpy())


def test_a_set_of_pictures_gives_its_files(folder: Path, tmp_path: Path) -> None:
    plain = Folder(folder, None)
    stored = stored_images(cached(tmp_path / "s.zarr", plain))
    assert np.array_equal(stored[7][0], np.asarray(plain[7][0]).transpose(2, 0, 1))
    sized = pil_images(plain, resize=10, crop=8)
    assert isinstance(sized, GivesFiles)
    stored = stored_images(cached(tmp_path / "t.zarr", sized))
    assert all(np.array_equal(stored[index][0], sized[index][0]) for index in range(ROWS))
    # Pictures that a transform of the set has made are not those of the files.
    assert not isinstance(pil_images(Folder(folder, RandomCrop())), GivesFiles)


def test_steps_and_dtypes_that_no_file_repeats_are_refused(folder: Path, sentence: Sentences) -> None:
    for transform in (
        Compose(RandomCrop(), PILToTensor()),
        Compose(PILToTensor(), lambda pixels: pixels / 255),
        Compose(Resize(size=(8, 9), max_size=9), PILToTensor()),
    ):
        with pytest.raises(ConfigError) as caught:
            listed_files(Folder(folder, transform))
        sentence(caught.value)
    assert isinstance(listed_files(Folder(folder, PILToTensor())), ListedFiles)  # the control
    assert listed_files([(np.zeros(3), 0)]) is None


def test_other_pixels_are_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    inverted = Compose(PILToTensor(), lambda pixels: 255 - pixels)
    with pytest.raises(BadDataError, match="a file that decodes to the input of the set"):
        cached(tmp_path / "s.zarr", Folder(folder, inverted))
    assert not (tmp_path / "s.zarr").exists()


def test_a_single_file_of_other_pixels_is_refused_when_it_is_written(folder: Path, tmp_path: Path) -> None:
    dataset = Folder(folder, PILToTensor())
    dataset.odd = ODD
    with pytest.raises(BadDataError, match=f"example {ODD} .*a file that decodes to the input of the set"):
        cached(tmp_path / "s.zarr", dataset)
    # The control: without the comparison the store is made, and a training finds the row.
    with mock.patch.object(ListedFiles, "is_decoded_elsewhere", False):
        store = cached(tmp_path / "t.zarr", dataset)
    with pytest.raises(RowMismatch, match=f"index {ODD} of the transfer set"):
        logitstore.distill(
            store, MeanColour(), lr=1e-2, epochs=1, batch_size=8, checkpoint=tmp_path / "c", device="cpu"
        )


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    dataset = Folder(folder, PILToTensor())
    files = listed_files(dataset)
    assert files is not None
    Path(dataset.samples[3][0]).unlink()
    with pytest.raises(BadDataError, match=r"06\.png"):
        files.encoded(3)
    with pytest.raises(BadDataError, match=r"06\.png"):
        files.encoded_sizes()
