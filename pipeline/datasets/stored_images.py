"""Images that a store keeps as the bytes of their files, and the sets that such files come from.

    GivesFiles     a data set that hands out the file of an example, and states how it is decoded
    Decoding       the way from a file to the pixels of an input: JSON in the identity of the samples
    StoredImages   the files of a store, decoded in that way, as a transfer set of the store

Pixels are those of the transfer set: the same decoder and the same sizing. A stream compares the digest of every input
with the one that stage one computed, so that another version of Pillow or of libjpeg that decodes to other pixels is noticed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from ...storage.api import Store
from ...storage.errors import BadDataError, ConfigError
from ...storage.format.documents import invalid
from ...storage.parts.reader import Samples
from .decoding import Decoder, as_pixels, colour_of
from .sizing import MAX_PIXELS, Interpolation, Sizing, sizing_of

MOST_PIXELS: Final = 178_956_970
"""Most pixels of a file in a store: the limit above which Pillow refuses an image by default."""


@runtime_checkable
class GivesFiles(Protocol):
    """A data set that gives the files of its images, such as `image_folder`."""

    @property
    def decoding(self) -> Mapping[str, Any]:
        """`Decoding.settings` of the set."""

    def encoded(self, index: int) -> bytes:
        """Return the file of an example."""

    def encoded_sizes(self) -> Int64[np.ndarray, " rows"]:
        """Return the bytes of every file."""


@dataclass(frozen=True)
class Decoding:
    """The way from the bytes of an image file to an input."""

    decoder: Decoder
    """To grey or colour."""
    sizing: Sizing
    """To one size."""
    height: int
    """Of an input, pixels."""
    width: int
    """Of an input, pixels."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as JSON, those at their defaults left out."""
        decoder, sizing = self.decoder, self.sizing
        given = {
            "background": decoder.background and list(decoder.background),
            "follow_exif": decoder.follow_exif or None,
            "size": sizing.size and list(sizing.size),
            "resize": sizing.resize,
            "crop": sizing.crop and list(sizing.crop),
            "interpolation": None if sizing.interpolation == "bilinear" else sizing.interpolation,
        }
        kept = {key: value for key, value in given.items() if value is not None}
        return {"mode": decoder.mode, "height": self.height, "width": self.width, **kept}

    @classmethod
    def of(cls, settings: Any, where: str) -> "Decoding":
        """Return the decoding of some settings, which are those of a store. Raises ManifestInvalid for others."""
        try:
            rest = dict(settings)
            mode, height, width = rest.pop("mode"), rest.pop("height"), rest.pop("width")
            background, turns = rest.pop("background", None), rest.pop("follow_exif", False)
            if mode not in ("L", "RGB") or not (turns is True or turns is False or turns == "refuse"):
                raise ValueError(f"mode {mode!r}, follow_exif {turns!r}")
            if rest.get("interpolation", "bilinear") not in get_args(Interpolation):
                raise ValueError(f"interpolation {rest['interpolation']!r}")
            _check_pixels(height, width)
            if "resize" in rest:
                _check_pixels(rest["resize"])
            for key in rest.keys() & {"size", "crop"}:
                rest[key] = _check_pixels(*rest[key])
            sizing = sizing_of(**rest)
            if sizing.shape not in (None, (height, width)):  # pixels that no input has
                raise ValueError(f"{sizing.shape} pixels")
            colour = None if background is None else _colour(*background)
            made = cls(Decoder(mode, colour, turns), sizing, height, width)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise invalid(
                where, "settings of a decoder of images", f"{settings!r} ({error})"[:200]
            ) from error
        if made.settings != dict(settings):
            raise invalid(where, "settings of a decoder of images", repr(settings)[:160])
        return made

    def decode(self, encoded: bytes, name: str, where: str) -> UInt8[np.ndarray, "*shape"]:
        """Decode a file to an input. name: of the file, "" if it is not known. Raises BadDataError."""
        image = self.decoder.decode(encoded, name, where, most_pixels=MOST_PIXELS)
        image = self.sizing.apply(image, where)
        if (image.height, image.width) != (self.height, self.width):
            raise BadDataError(
                where,
                expected=f"{self.height} x {self.width} pixels (height x width), as of all inputs of the store",
                found=f"{image.height} x {image.width}",
                remedy="run `logitstore verify` on the store",
            )
        return as_pixels(image)


def _check_pixels(*sides: object) -> tuple[int, ...]:
    """Return lengths of the sides of an image. Raises TypeError or ValueError for numbers that no image has."""
    numbers = tuple(side for side in sides if type(side) is int and side > 0)
    if len(numbers) != len(sides) or len(sides) > 2 or math.prod(numbers) > MAX_PIXELS:
        raise ValueError(f"{sides} pixels")
    return numbers


def _colour(red: object, green: object, blue: object) -> tuple[int, int, int]:
    """Return a colour. Raises TypeError or ValueError for none."""
    if not (type(red) is int and type(green) is int and type(blue) is int):
        raise ValueError(f"colour {red, green, blue}")
    colour = colour_of((red, green, blue))
    assert colour is not None
    return colour


class StoredImages:
    """The files of a store as its transfer set: examples by their index in the set that the store was made from."""

    digest_remedy = (
        "decode with the version of Pillow that the store was made with, as others may give other pixels, or run "
        "`logitstore verify` on the store"
    )
    """Remedy for pixels other than those that the teacher saw (`storage.stream.making.OfStore`)."""

    def __init__(self, samples: Samples, where: str) -> None:
        """Keep the samples of a store. where: the store, in messages. Raises ManifestInvalid for false settings or indices."""
        self._samples, self._where = samples, f"{where}: samples/file"
        self._decoding = Decoding.of(samples.spec.identity.get("decoding"), f"{where}: samples/decoding")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the store."""
        return self._samples.class_names

    @cached_property
    def _rows(self) -> Int64[np.ndarray, " rows"]:
        """Return the row of each example."""
        source = self._samples.source
        rows = np.argsort(source, kind="stable")
        if not np.array_equal(source[rows], np.arange(len(source))):
            raise invalid(
                self._where, "each index of the transfer set once", "other indices in samples/source"
            )
        return rows

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "*shape"], int]:
        """Decode the file of an example; return its pixels and its label, -1 if it is unknown. Raises BadDataError."""
        row = int(self._rows[index])
        name = self._samples.id_of(row) or ""
        where = f"{self._where}, row {row}" + (f" ({name})" if name else "")
        pixels = self._decoding.decode(self._samples.file(row), name, where)
        return pixels, int(self._samples.labels[row])


def stored_images(store: Store) -> StoredImages:
    """Return the images of a store that keeps their files: pass them to `store.stream` as its `transfer_set`.

    Raises ConfigError for a store without files.
    """
    if not store.samples.keeps_files:
        raise ConfigError(
            f"{store.path}",
            expected="a store that keeps the files of its inputs",
            found="inputs as arrays" if store.samples.inputs is not None else "no inputs",
            remedy='make it with store_inputs = "encoded"; other stores need no decoder',
        )
    return StoredImages(store.samples, str(store.path))
