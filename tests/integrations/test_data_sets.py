"""Data sets of torchvision and of Hugging Face: our rows are theirs, pixel by pixel and label by label."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from logitstore.pipeline.datasets import image_folder

SHAPES = ((64, 64), (40, 71), (90, 33), (33, 32), (200, 32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of colourful images of several shapes."""
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
