"""Pixels of an encoded image as uint8.

Pillow is given the formats that may be opened, so that no file starts another program or a rare decoder. Pixels that are
not there are never made up: a transparent image needs a colour to lie on, and more than 8 bits a channel are refused. Cameras
write the side that is up into a tag (EXIF, or XMP); it is followed on request, but for TIFF, where Pillow does so itself.
"""

import io
import logging
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from ...storage.errors import BadDataError, ConfigError, LogitStoreError, described
from .image_files import FORMATS, suffix_of

log = logging.getLogger(__name__)
_BY_CONTENT: Final = sorted({*FORMATS.values()} - {"TGA"})
"""Formats that are told by their first bytes."""
_DEEP_MODES: Final = ("I", "F")
Orientation = bool | Literal["refuse"]
"""Whether orientation tags are followed; "refuse": images that have to be turned are errors."""
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The turn that each orientation asks for; 1, and a number that is none, ask for no turn."""
_WITH_ALPHA: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@dataclass
class Decoder:
    """Decodes images to grey or colour."""

    mode: Literal["L", "RGB"]
    """"L", grey, or "RGB"."""
    background: tuple[int, int, int] | None = None
    """Colour under transparent pixels; None refuses them."""
    follow_exif: Orientation = False
    """Whether orientation tags are followed. By default they are not, with a warning."""
    _said: set[str] = field(default_factory=set)

    @property
    def settings(self) -> dict[str, bool]:
        """Settings of later versions that change pixels, for a fingerprint."""
        return {"follow_exif": True} if self.follow_exif is True else {}

    def decode(self, encoded: bytes, name: str, where: str, *, most_pixels: int | None = None) -> Image.Image:
        """Decode the file `name`, "" if that is not known. where: the file in messages. most_pixels: Pillow's own by default.

        Raises BadDataError for a file that is no image, has more than 8 bits a channel, is transparent without a
        background, or has to be turned if such images are refused.
        """
        # Targa files have no mark at their beginning: only the suffix tells them.
        formats = [*_BY_CONTENT, "TGA"] if suffix_of(name) == ".tga" else _BY_CONTENT
        try:
            with Image.open(io.BytesIO(encoded), formats=formats) as opened:
                if most_pixels is not None and opened.width * opened.height > most_pixels:
                    raise BadDataError(
                        where,
                        expected=f"an image of at most {most_pixels:,} pixels",
                        found=f"{opened.height} x {opened.width}",
                        remedy="replace or remove the file",
                    )
                is_deep = ";16" in str(getattr(opened, "tile", ""))
                self._check_depth(opened, where, is_deep=is_deep)
                self._warn_of(opened, name, where, is_deep=is_deep)
                return self._upright(self._converted(opened, where), opened, where)
        except (LogitStoreError, MemoryError):
            raise
        except Exception as error:  # decoders raise exceptions of any type for broken files
            # Pillow's own text of an unknown format has an address in memory.
            is_unknown = isinstance(error, UnidentifiedImageError)
            reason = "UnidentifiedImageError: none of the known formats" if is_unknown else described(error)
            raise BadDataError(
                where,
                expected="an image file",
                found=f"{len(encoded)} bytes that cannot be decoded ({reason})",
                remedy="replace or remove the file; `logitstore plan EXPERIMENT --scan` lists all such files, and "
                'on_error = "skip" in args leaves them out',
            ) from error

    def convert(self, image: Image.Image, where: str) -> Image.Image:
        """Convert an image that another library decoded. where: its example in messages. Raises as `decode`."""
        self._check_depth(image, where, is_deep=False)
        return self._upright(self._converted(image, where), image, where)

    def _check_depth(self, image: Image.Image, where: str, *, is_deep: bool) -> None:
        # `convert` clips grey ones to 8 bits, and compares a transparent colour of 16 bits with pixels of 8.
        if image.mode.startswith(_DEEP_MODES) or (is_deep and "transparency" in image.info):
            raise BadDataError(
                where,
                expected="pixels of 8 bits a channel",
                found=f"pixels of mode {image.mode}"
                + (", 16 bits with a transparent colour" if image.mode == "RGB" else ""),
                remedy="convert it to 8 bits first",
            )

    def _converted(self, image: Image.Image, where: str) -> Image.Image:
        """Return the image in our mode, its transparent pixels blended with the background."""
        if not _may_be_transparent(image):
            return image.convert(self.mode)
        layered = image.convert("RGBA")
        alpha = np.asarray(layered.getchannel("A"))
        clear = int(np.count_nonzero(alpha < 255))
        if not clear:
            return image.convert(self.mode)
        if self.background is None:
            raise BadDataError(
                where,
                expected="pixels that are not transparent",
                found=f"{clear:,} of {alpha.size:,} that are (mode {image.mode})",
                remedy="set background = 255 in args to lay such images on white",
            )
        below = Image.new("RGBA", layered.size, (*self.background, 255))
        return Image.alpha_composite(below, layered).convert(self.mode)

    def _upright(self, converted: Image.Image, opened: Image.Image, where: str) -> Image.Image:
        """Return the converted image as its orientation tag, if followed, asks for."""
        # The tags are read after the pixels: those of a PNG file may lie behind them, and Pillow has turned a TIFF file.
        turn = _TURNS.get(_orientation(opened, is_needed=bool(self.follow_exif)))
        if turn is None:
            return converted
        if self.follow_exif == "refuse":
            raise BadDataError(
                where,
                expected="an image that is stored upright",
                found=f"an orientation tag that asks for {turn.name}",
                remedy="set follow_exif = true in args to turn such images, or false to read them as they are stored",
            )
        if self.follow_exif is True:
            return converted.transpose(turn)
        self._say(
            "orientation",
            f"{where}: read as it is stored, without regard to its orientation tag (follow_exif = true in args turns it)",
        )
        return converted

    def _warn_of(self, image: Image.Image, name: str, where: str, *, is_deep: bool) -> None:
        """Warn, once a kind, of images of which not all is read."""
        kind = "JPEG" if image.format == "MPO" else image.format
        if name and kind != FORMATS.get(suffix_of(name)):
            self._say("suffix", f"{where}: its content is {kind}, which is decoded whatever the suffix")
        if image.format != "MPO" and getattr(image, "is_animated", False):
            self._say("frames", f"{where}: of several frames or pages, only the first is read")
        if is_deep:
            self._say("depth", f"{where}: of 16 bits a channel, only the upper 8 are read")

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            log.warning("%s; so are all images of this kind in the set", message)


def as_pixels(image: Image.Image) -> UInt8[np.ndarray, "*shape"]:
    """Return (height, width) of a grey image, (3, height, width) of a coloured one."""
    pixels = np.array(image, dtype=np.uint8)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def colour_of(background: int | tuple[int, int, int] | None) -> tuple[int, int, int] | None:
    """Return a colour as (red, green, blue). Raises ConfigError for numbers out of range."""
    colour = (background,) * 3 if isinstance(background, int) else background
    if colour is not None and (len(colour) != 3 or not all(0 <= part <= 255 for part in colour)):
        raise ConfigError(
            "background",
            expected="a number from 0 to 255, or three of them",
            found=str(background),
            remedy="correct background",
        )
    return colour


def _may_be_transparent(image: Image.Image) -> bool:
    palette = getattr(image.palette, "mode", "")
    return image.mode in _WITH_ALPHA or "transparency" in image.info or palette.endswith("A")


def _orientation(image: Image.Image, *, is_needed: bool) -> int:
    """Return the orientation of a decoded image, 1 without a tag. is_needed: raise the errors of a broken tag."""
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        if is_needed:
            raise
        return 1
    return tag if isinstance(tag, int) else 1
