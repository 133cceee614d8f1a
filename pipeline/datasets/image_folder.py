"""Transfer sets of image files: a folder, or a zip of one.

1. Files are sorted by relative name, so the order is the same on every machine. Every folder that holds images is a
   class, named by its path below the common folder of all classes: `images_background/Braille/character01/x.png` is
   of class `Braille/character01`. A folder that holds images and no folders is a set without labels. What is no image
   by its suffix, or is linked twice, is left out with a warning (`image_files`).
2. Each access decodes its image (`decoding`); the message for a broken image names the file.
3. The fingerprint comes from names, sizes and CRC-32 of the encoded files: a folder and its zip have the same.

Each process opens a zip once: threads share it, but forked processes would share one file position.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from ...storage.errors import BadDataError, described
from .arrays import Example
from .bad_files import READABLE, in_threads, key_of, skipped_files
from .class_names import checked_class_names
from .decoding import Decoder, Orientation, as_pixels, colour_of
from .image_files import FolderFiles, ZipFiles, check_forms, list_images, warn_of_skipped
from .selection import omitted_numbers, select
from .sizing import Interpolation, Sizing, sizing_of
from .stored_images import Decoding


class ImageFolder:
    """Images of class folders, decoded one by one; made by `image_folder`."""

    def __init__(
        self,
        files: FolderFiles | ZipFiles,
        names: Sequence[str],
        labels: Int64[np.ndarray, "rows"] | None,
        class_names: Sequence[str],
        decoder: Decoder,
        sizing: Sizing,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the files, their names and labels, and the way to the pixels of an image. skipped: files left out."""
        self._files = files
        self.ids = tuple(names)
        """Name of each file, relative to the folder or the zip, with slashes."""
        self.labels = labels
        """(rows,) int64, or None for a set without labels."""
        self.class_names = checked_class_names(class_names, str(files.root))
        """One name a class, in order of code points."""
        self.omitted: tuple[int, ...] = ()
        """Classes whose images were left out on purpose."""
        self.skipped: dict[str, str] = dict(skipped or {})
        """Files that were left out because their content cannot be used, and the reason of each."""
        self.mode = decoder.mode
        """ "L", grey, or "RGB"."""
        self._size: tuple[int, int] | None = sizing.shape
        self._sizing = sizing
        self._decoder = decoder
        self._fingerprint: str | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (height, width), or (3, height, width) for RGB."""
        height, width = self._expected_size()
        return (height, width) if self.mode == "L" else (3, height, width)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        """Decode one image; returns it, and its label if the set has labels.

        Raises BadDataError if it cannot be decoded or its size differs from that of the set.
        """
        image = self._decode(self.ids[index], self._expected_size())
        return image if self.labels is None else (image, int(self.labels[index]))

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Decode several images, as DataLoader requests them."""
        return [self[index] for index in indices]

    def fingerprint(self) -> str:
        """Digest names, sizes and CRC-32 of the files, labels, classes, mode, size and further settings, "sha256:…".

        Computed once: from the directory of a zip, or by reading all files of a folder.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            stretches = self._sizing.size is not None
            head: list[Any] = [self.mode, list(self._expected_size()), stretches, self.class_names]
            if self._decoder.background is not None:
                head.append(list(self._decoder.background))
            # Settings of later versions count if they are given: earlier fingerprints stay as they are.
            if later := self._sizing.settings | self._decoder.settings:
                head.append(later)
            digest.update(json.dumps(head).encode() + b"\n")
            labels = [None] * len(self.ids) if self.labels is None else self.labels.tolist()
            for name, label in zip(self.ids, labels, strict=True):
                digest.update(json.dumps([name, label, *self._size_and_crc(name)]).encode() + b"\n")
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint

    @property
    def decoding(self) -> dict[str, Any]:
        """The way from a file to its pixels (`stored_images.GivesFiles`)."""
        return Decoding(self._decoder, self._sizing, *self._expected_size()).settings

    def encoded(self, index: int) -> bytes:
        """Return the bytes of a file. Raises BadDataError."""
        return self._read(self.ids[index])

    def encoded_sizes(self) -> Int64[np.ndarray, "rows"]:
        """Return the bytes of every file, of the file system or of the directory of the zip."""
        return np.array([max(0, self._files.stamp(name)[0]) for name in self.ids], dtype=np.int64)

    def problems(self) -> Iterator[BadDataError | None]:
        """Decode every image, and yield its error, or None for one that can be used.

        Without a size among the settings, that of the first image that can be decoded counts.
        """
        size = self._sizing.shape
        for name, found in zip(self.ids, in_threads(self._size_or_error, self.ids), strict=True):
            if not isinstance(found, BadDataError):
                size = size or found
                yield None if found == size else self._other_size(name, size, found)
            else:
                yield found

    def without_bad_files(self) -> "ImageFolder":
        """Return the set without the files whose content cannot be used. Raises as `bad_files.skipped_files`."""
        where, decoder = str(self._files.root), self._decoder
        settings = [decoder.mode, decoder.background, decoder.follow_exif, self._sizing]
        key = key_of(where, settings, ([name, *self._files.stamp(name)] for name in self.ids))

        def error_of(name: str) -> BadDataError | None:
            found = self._size_or_error(name)
            return found if isinstance(found, BadDataError) else None

        skipped = skipped_files(where, key, self.ids, error_of)
        if not skipped:
            return self
        warn_of_skipped(where, skipped, len(self.ids))
        rows = np.array([row for row, name in enumerate(self.ids) if name not in skipped], dtype=np.int64)
        names = [self.ids[row] for row in rows.tolist()]
        labels = None if self.labels is None else self.labels[rows]
        rest = ImageFolder(self._files, names, labels, self.class_names, self._decoder, self._sizing, skipped)
        rest.omitted = self.omitted
        return rest

    def _size_or_error(self, name: str) -> tuple[int, int] | BadDataError:
        try:
            shape = self._decode(name, None).shape
        except BadDataError as error:
            return error
        return shape[-2], shape[-1]

    def _expected_size(self) -> tuple[int, int]:
        if self._size is None:
            first = self._decode(self.ids[0], None)
            self._size = (first.shape[-2], first.shape[-1])
        return self._size

    def _size_and_crc(self, name: str) -> tuple[int, int]:
        if isinstance(self._files, ZipFiles):
            return self._files.directory[name]
        content = self._read(name)
        return len(content), zlib.crc32(content)

    def _read(self, name: str) -> bytes:
        """Return the encoded bytes of a file. Raises BadDataError."""
        try:
            return self._files.read(name)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
            raise BadDataError(
                f"{self._files.root}: {name}",
                expected=READABLE,
                found=described(error),
                remedy="restore the file",
            ) from error

    def _decode(self, name: str, size: tuple[int, int] | None) -> UInt8[np.ndarray, "*shape"]:
        where = f"{self._files.root}: {name}"
        image = self._sizing.apply(self._decoder.decode(self._read(name), name, where), where)
        if size is not None and (image.height, image.width) != size:
            raise self._other_size(name, size, (image.height, image.width))
        return as_pixels(image)

    def _other_size(self, name: str, size: tuple[int, int], found: tuple[int, int]) -> BadDataError:
        return BadDataError(
            f"{self._files.root}: {name}",
            expected=f"{size[0]} x {size[1]} pixels (height x width), like the first image",
            found=f"{found[0]} x {found[1]}",
            remedy="give size = [height, width] to resize all of them"
            if self._sizing.resize is None
            else f"give crop = {min(size)} to cut all of them to one size",
        )


def image_folder(
    root: Path,
    *,
    mode: Literal["L", "RGB"] = "L",
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: int | tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    follow_exif: Orientation = False,
    background: int | tuple[int, int, int] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> ImageFolder:
    """List a folder of class folders, or a zip of one: inputs uint8, (height, width) or (3, height, width).

    root: the folder or the zip file. mode: "L", grey, or "RGB", channels first.
    size: pixels to stretch every image to, a number or (height, width). By default every image must have the size of the
        first.
    resize: pixels of the shorter side; the proportions stay. crop: pixels of the centre that is kept, a number or
        (height, width). `resize=256, crop=224` is what most networks for ImageNet are evaluated with.
    interpolation: "bilinear" or "bicubic", of `size` and `resize`; both average over the pixels that are left out.
    follow_exif: whether images are turned as their orientation tags ask. By default they are read as they are stored, with
        a warning; "refuse" makes an error of them.
    background: colour under transparent pixels, a grey or (red, green, blue) from 0 to 255. By default transparent images
        are refused, because the colours under their transparent pixels are arbitrary.
    on_error: "skip" decodes every image first, and leaves out those whose content cannot be used, with a warning; the
        attribute `skipped` holds the reason of each. They are taken out after the selection.
    Further arguments: `datasets.selection`.
    Raises BadDataError if `root` is neither, holds no images, or holds some outside its class folders.
    """
    sizing = sizing_of(size, resize, crop, interpolation)
    decoder = Decoder(mode, colour_of(background), follow_exif)
    root = Path(root)  # a text, from Python
    files = ZipFiles(root) if root.is_file() else FolderFiles(root)
    names = list_images(files)
    numbers, class_names = _classes(names, root)
    check_forms(class_names, str(root))
    labels = None if numbers is None else np.array(numbers, dtype=np.int64)
    kept = select(
        len(names),
        labels,
        class_names,
        omit_classes=omit_classes,
        fraction=fraction,
        seed=seed,
        subset=subset,
    )
    kept_names = [names[row] for row in kept.tolist()]
    kept_labels = None if labels is None else labels[kept]
    dataset = ImageFolder(files, kept_names, kept_labels, class_names, decoder, sizing)
    dataset.omitted = omitted_numbers(omit_classes, class_names)
    return dataset if on_error == "raise" else dataset.without_bad_files()


def _classes(names: Sequence[str], root: Path) -> tuple[list[int] | None, list[str]]:
    """Return each file's class number, or None, and the names of the classes.

    >>> _classes(["set/a/1.png", "set/b/x/1.png"], Path("."))
    ([0, 1], ['a', 'b/x'])
    """
    folders = [str(PurePosixPath(name).parent) for name in names]
    distinct = sorted(set(folders))
    if distinct == ["."]:
        return None, []
    if "." in distinct:
        raise BadDataError(
            str(root),
            expected="every image in a class folder",
            found=f"{folders.count('.')} images in none, such as {names[folders.index('.')]!r}",
            remedy="move them into class folders",
        )
    shared = os.path.commonpath([str(PurePosixPath(folder).parent) for folder in distinct])
    class_names = sorted(str(PurePosixPath(folder).relative_to(shared or ".")) for folder in distinct)
    number = {name: position for position, name in enumerate(class_names)}
    return [number[str(PurePosixPath(folder).relative_to(shared or "."))] for folder in folders], class_names
