"""Laws of sizes and orientations: proportions stay, the centre is kept, tags are followed, refused or warned of."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from support.messages import Sentences

from logitstore.pipeline.datasets import image_folder, sizing
from logitstore.pipeline.datasets.sizing import sizing_of
from logitstore.storage.errors import BadDataError, ConfigError


def gradient(height: int, width: int) -> Image.Image:
    """Return an image in which each pixel holds its place: red the row, green the column."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8))


def saved(path: Path, image: Image.Image, kind: str = "PNG", orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(path, kind, exif=exif)
    return path


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    saved(tmp_path / "a/tall.png", tall := gradient(90, 61))
    saved(tmp_path / "a/wide.png", wide := gradient(60, 171))
    for filter_name, pillow in (("bilinear", 2), ("bicubic", 3)):
        read = image_folder(tmp_path, mode="RGB", resize=32, crop=28, interpolation=filter_name)  # type: ignore[arg-type]
        assert read.input_shape == (3, 28, 28)
        # 32 * 90 / 61 is 47.2, 32 * 171 / 60 is 91.2; (91 - 28) / 2 is 31.5 and becomes 32.
        for row, (image, size, corner) in enumerate(((tall, (32, 47), (2, 10)), (wide, (91, 32), (32, 2)))):
            left, top = corner
            expected = image.resize(size, pillow).crop((left, top, left + 28, top + 28))
            assert np.array_equal(read[row][0], np.asarray(expected).transpose(2, 0, 1)), (filter_name, row)


def test_a_crop_alone_scales_nothing(tmp_path: Path) -> None:
    saved(tmp_path / "a/x.png", gradient(40, 30))
    read = image_folder(tmp_path, mode="RGB", crop=(4, 6))[0][0]
    assert read[0, :, 0].tolist() == [18, 19, 20, 21]
    assert read[1, 0].tolist() == [12, 13, 14, 15, 16, 17]


def test_images_of_other_proportions_need_a_crop(tmp_path: Path, sentence: Sentences) -> None:
    saved(tmp_path / "a/x.png", gradient(40, 30))
    saved(tmp_path / "a/y.png", gradient(40, 50))
    read = image_folder(tmp_path, resize=20)
    assert read.input_shape == (26, 20)
    with pytest.raises(BadDataError) as caught:
        read[1]
    sentence(caught.value)
    small = image_folder(tmp_path, crop=(20, 35))
    with pytest.raises(BadDataError) as caught:
        small[0]
    sentence(caught.value)


def test_an_image_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    saved(tmp_path / "a/long.png", gradient(1, 200))
    read = image_folder(tmp_path, resize=8, crop=8)
    monkeypatch.setattr(sizing, "MAX_PIXELS", 8 * 1600)
    read[0]
    monkeypatch.setattr(sizing, "MAX_PIXELS", 8 * 1600 - 1)
    with pytest.raises(BadDataError) as caught:
        read[0]
    sentence(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        {"resize": 0},
        {"crop": (4, 0)},
        {"size": 8, "resize": 8},
        {"size": 8, "crop": 4},
        {"resize": 224, "crop": (200, 256)},
        {"crop": 8, "interpolation": "bicubic"},
    ],
    ids=str,
)
def test_arguments_that_contradict_one_another_are_refused(args: dict[str, Any], sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        sizing_of(**args)
    sentence(caught.value)


def test_new_settings_make_another_set_and_old_fingerprints_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.pgm").write_bytes(b"P5 8 8 255\n" + bytes(range(64)))
    # The fingerprints of the versions that knew `size` alone.
    assert image_folder(tmp_path).fingerprint() == OLD["plain"]
    assert image_folder(tmp_path, size=4, background=9).fingerprint() == OLD["size, background"]
    assert image_folder(tmp_path, follow_exif="refuse").fingerprint() == OLD["plain"]
    others = [
        {"size": 4},
        {"size": 4, "interpolation": "bicubic"},
        {"resize": 4},
        {"crop": 4},
        {"resize": 4, "crop": 4},
        {"resize": 5, "crop": 4},
        {"resize": 5, "crop": 4, "interpolation": "bicubic"},
        {"follow_exif": True},
    ]
    prints = {image_folder(tmp_path, **args).fingerprint() for args in others}  # type: ignore[arg-type]
    assert len(prints | {*OLD.values()}) == len(others) + len(OLD)


OLD = {
    "plain": "sha256:c67929cf7831e34c421152f0dd3c7f6718d8001b6c997d256cb2fad19ce533f3",
    "size, background": "sha256:040a164d51c118a743ceba305b4dca4a4056c84f267ecfc3e8a79b2ae6cc61b0",
}


# Orientation tags


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_tag_is_followed_on_request(tmp_path: Path, kind: str, orientation: int) -> None:
    path = saved(tmp_path / f"a/x.{kind.lower()}", gradient(16, 24), kind, orientation)
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened)).transpose(2, 0, 1)
    assert np.array_equal(image_folder(tmp_path, mode="RGB", follow_exif=True)[0][0], upright)


def test_a_tag_that_is_not_followed_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    for name in "xy":
        saved(tmp_path / f"a/{name}.png", gradient(16, 24), orientation=6)
    with caplog.at_level(logging.WARNING):
        read = image_folder(tmp_path, mode="RGB")
        assert [read[row][0].shape for row in (0, 1)] == [(3, 16, 24)] * 2, "as it is stored"
    (record,) = caplog.records
    sentence(record.getMessage())


def test_a_tag_can_be_refused(tmp_path: Path, sentence: Sentences) -> None:
    saved(tmp_path / "a/x.png", gradient(16, 24), orientation=1)
    saved(tmp_path / "a/y.png", gradient(16, 24), orientation=8)
    read = image_folder(tmp_path, mode="RGB", follow_exif="refuse")
    assert read[0][0].shape == (3, 16, 24)
    with pytest.raises(BadDataError) as caught:
        read[1]
    sentence(caught.value)


def test_a_broken_tag_is_an_error_only_if_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "a/x.png", gradient(16, 24))

    def broken(self: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.getexif", broken)
    assert image_folder(tmp_path, mode="RGB")[0][0].shape == (3, 16, 24)
    for follow in (True, "refuse"):
        with pytest.raises(BadDataError, match="SyntaxError: not a TIFF file"):
            image_folder(tmp_path, mode="RGB", follow_exif=follow)[0]  # type: ignore[arg-type]


def test_the_turn_comes_before_the_size(tmp_path: Path) -> None:
    saved(tmp_path / "a/x.png", gradient(40, 60), orientation=6)
    read = image_folder(tmp_path, mode="RGB", resize=20, follow_exif=True)
    assert read.input_shape == (3, 30, 20)
