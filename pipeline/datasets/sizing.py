"""One size for all images of a set: stretched, or the shorter side resized and the centre cropped.

    size = [h, w]             stretch to h x w
    resize = r                resize the shorter side to r, keep the proportions
    resize = r, crop = c      and keep the c x c pixels in the centre

Pixels, rounding and the place of the crop are those of torchvision's `Resize` and `CenterCrop` of a Pillow image. Pillow
averages over the pixels that a smaller image leaves out (antialiasing).
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from PIL import Image

from ...storage.errors import BadDataError, ConfigError

Interpolation = Literal["bilinear", "bicubic"]
"""Filter of a resized image, by the name that torchvision and timm give it."""
_FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_PIXELS: Final = 1 << 28
"""Maximum number of pixels of a resized image: one of 1 x 60000 pixels would become 256 x 15 million."""


@dataclass(frozen=True)
class Sizing:
    """The way from an image of any size to one of the set."""

    size: tuple[int, int] | None = None
    """(height, width) to stretch to."""
    resize: int | None = None
    """Pixels of the shorter side."""
    crop: tuple[int, int] | None = None
    """(height, width) of the centre that is kept."""
    interpolation: Interpolation = "bilinear"

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of every image; None if it follows from the image."""
        return self.size if self.crop is None else self.crop

    @property
    def settings(self) -> dict[str, Any]:
        """Settings beside `size` that are not at their defaults, for a fingerprint."""
        given = {"resize": self.resize, "crop": self.crop and list(self.crop)}
        named = {} if self.interpolation == "bilinear" else {"interpolation": self.interpolation}
        return {key: value for key, value in given.items() if value is not None} | named

    def apply(self, image: Image.Image, where: str) -> Image.Image:
        """Return an image resized and cropped. where: its file in messages.

        Raises BadDataError for an image that is smaller than the crop, and for one too long to be resized.
        """
        if self.resize is not None:
            height, width = _resized(image.height, image.width, self.resize)
            if height * width > MAX_PIXELS:
                raise BadDataError(
                    where,
                    expected=f"an image of at most {MAX_PIXELS:,} pixels after resize = {self.resize}",
                    found=f"{image.height} x {image.width}, which becomes {height} x {width}",
                    remedy="remove the file",
                )
            image = self._scaled(image, height, width)
        elif self.size is not None:
            image = self._scaled(image, *self.size)
        return image if self.crop is None else _cropped(image, self.crop, where)

    def _scaled(self, image: Image.Image, height: int, width: int) -> Image.Image:
        if (image.height, image.width) == (height, width):
            return image
        return image.resize((width, height), _FILTERS[self.interpolation])


def sizing_of(
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: int | tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
) -> Sizing:
    """Return the sizing of the arguments of a factory. Raises ConfigError for wrong ones and wrong combinations.

    >>> sizing_of(resize=256, crop=224).shape
    (224, 224)
    """
    sides = (size, size) if isinstance(size, int) else size
    kept = (crop, crop) if isinstance(crop, int) else crop
    for name, given, pixels in (
        ("size", size, sides),
        ("resize", resize, None if resize is None else (resize,)),
        ("crop", crop, kept),
    ):
        if pixels is not None and min(pixels) < 1:
            raise ConfigError(
                name, expected="pixels of 1 or more", found=str(given), remedy=f"correct {name}"
            )
    if sides is not None and (resize is not None or kept is not None):
        raise ConfigError(
            "size",
            expected="size alone, or resize and crop",
            found=f"size = {size}, resize = {resize}, crop = {crop}",
            remedy="remove size to keep the proportions of the images",
        )
    if resize is not None and kept is not None and max(kept) > resize:
        raise ConfigError(
            "crop",
            expected=f"at most {resize} pixels, as resize",
            found=str(crop),
            remedy="lower crop, or raise resize",
        )
    if interpolation != "bilinear" and sides is None and resize is None:
        raise ConfigError(
            "interpolation",
            expected="size or resize beside it",
            found=f"interpolation = {interpolation!r} alone",
            remedy="remove interpolation, or give resize",
        )
    return Sizing(sides, resize, kept, interpolation)


def _resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Return height and width with the shorter side at `shorter`; the longer one is rounded down, as by torchvision.

    >>> _resized(300, 500, 256), _resized(500, 300, 256)
    ((256, 426), (426, 256))
    """
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def _cropped(image: Image.Image, crop: tuple[int, int], where: str) -> Image.Image:
    height, width = crop
    if image.height < height or image.width < width:
        raise BadDataError(
            where,
            expected=f"{height} x {width} pixels or more (height x width), for crop",
            found=f"{image.height} x {image.width}",
            remedy=f"give resize = {max(crop)} to enlarge smaller images, or lower crop",
        )
    # Halves are rounded to the even number, as torchvision does.
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
