"""Transfer sets of image files: a folder, or a zip of one.

1. The files are listed in the order of their relative names, the same on every machine. Every folder that
   holds images is a class; its name is its path below the folder that all classes share, so that
   `images_background/Braille/character01/x.png` is of class `Braille/character01`. A folder that holds
   images and no folders is a set without labels.
2. An image is decoded when it is asked for, never before; what does not decode is named.
3. The fingerprint comes from names, sizes and CRC-32 of the encoded files: it is the same for a folder and
   for a zip of it.

A zip is opened once in each process: `zipfile` lets threads take turns, but forked processes would share
one file position.
"""

import hashlib
import io
import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ...storage.errors import BadDataError, ConfigError
from .arrays import Example, checked_class_names
from .selection import select

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
_DEEP_MODES = ("I", "F")


class ImageFolder:
    """Images of class folders, decoded one by one; made by `image_folder`."""

    def __init__(
        self,
        files: "_Files",
        names: Sequence[str],
        labels: Sequence[int] | None,
        class_names: Sequence[str],
        mode: Literal["L", "RGB"],
        size: tuple[int, int] | None,
    ) -> None:
        """Keep what `image_folder` found; decodes the first image where no size is given."""
        self._files = files
        self.ids = tuple(names)
        """Name of each file, relative to the folder or the zip, with slashes."""
        self.labels = None if labels is None else np.array(labels, dtype=np.int64)
        """(rows,) int64, or None for a set without labels."""
        self.class_names = checked_class_names(class_names, str(files.root))
        """One name a class, in order of code points."""
        self.mode = mode
        """ "L", grey, or "RGB"."""
        self._size: tuple[int, int] | None = size
        self._resizes = size is not None
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
        """Decode one image; returns it with its label where the set has labels.

        Raises BadDataError if it does not decode or has another size than the set.
        """
        image = self._decode(self.ids[index], self._expected_size())
        return image if self.labels is None else (image, int(self.labels[index]))

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Decode several images, as DataLoader asks for them."""
        return [self[index] for index in indices]

    def fingerprint(self) -> str:
        """Digest names, sizes and CRC-32 of the files, labels, classes, mode and size, "sha256:…".

        Computed once. A zip's directory knows all of it; the files of a folder are read for it.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            head = [self.mode, list(self._expected_size()), self._resizes, self.class_names]
            digest.update(json.dumps(head).encode() + b"\n")
            labels = [None] * len(self.ids) if self.labels is None else self.labels.tolist()
            for name, label in zip(self.ids, labels, strict=True):
                digest.update(json.dumps([name, label, *self._files.size_and_crc(name)]).encode() + b"\n")
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint

    def _expected_size(self) -> tuple[int, int]:
        if self._size is None:
            first = self._decode(self.ids[0], None)
            self._size = (first.shape[-2], first.shape[-1])
        return self._size

    def _decode(self, name: str, size: tuple[int, int] | None) -> UInt8[np.ndarray, "*shape"]:
        where = f"{self._files.root}: {name}"
        encoded = self._files.read(name)
        try:
            with Image.open(io.BytesIO(encoded)) as opened:
                deep = opened.mode.startswith(_DEEP_MODES)
                found = f"pixels of mode {opened.mode}"
                image = opened.convert(self.mode)
        except Exception as error:  # a decoder meets garbage here, and raises whatever it likes
            raise BadDataError(
                where,
                expected="an image that decodes",
                found=f"{len(encoded)} bytes that do not ({type(error).__name__}: {' '.join(str(error).split())})",
                remedy="replace or remove the file",
            ) from error
        if deep:  # converting these to 8 bits would clip without a word
            raise BadDataError(
                where,
                expected="an image of 8 bits a channel",
                found=found,
                remedy="convert it to 8 bits first",
            )
        if size is not None and (image.height, image.width) != size:
            if not self._resizes:
                raise BadDataError(
                    where,
                    expected=f"{size[0]} x {size[1]} pixels (height x width), like the first image",
                    found=f"{image.height} x {image.width}",
                    remedy="give size = [height, width] to resize all of them",
                )
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8)
        return pixels if self.mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def image_folder(
    root: Path,
    *,
    mode: Literal["L", "RGB"] = "L",
    size: int | tuple[int, int] | None = None,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> ImageFolder:
    """List a folder of class folders, or a zip of one: inputs uint8, (height, width) or (3, height, width).

    root: the folder or the zip file. mode: "L", grey, or "RGB", channels first.
    size: pixels to resize every image to (bilinear), a number or (height, width); without it all images
        must have the size of the first. Further arguments: `datasets.selection`.
    Raises BadDataError if `root` is neither, holds no images, or holds some outside its class folders.
    """
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and min(sides) < 1:
        raise ConfigError("size", expected="pixels of 1 or more", found=str(size), remedy="correct size")
    files = _zip_files(root) if root.is_file() else _folder_files(root)
    names = sorted(name for name in files.names if _is_image(name))
    if not names:
        raise BadDataError(
            str(root),
            expected=f"images ({', '.join(sorted(_SUFFIXES))}) in class folders",
            found="0 images",
            remedy="name the folder or the zip that holds the class folders",
        )
    labels, class_names = _classes(names, root)
    targets = None if labels is None else np.array(labels, dtype=np.int64)
    kept = select(
        len(names),
        targets,
        class_names,
        omit_classes=omit_classes,
        fraction=fraction,
        seed=seed,
        subset=subset,
    ).tolist()
    return ImageFolder(
        files,
        [names[row] for row in kept],
        None if labels is None else [labels[row] for row in kept],
        class_names,
        mode,
        sides,
    )


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in _SUFFIXES


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
            found=f"{folders.count('.')} directly in it, {names[folders.index('.')]!r} for one",
            remedy="move them into class folders",
        )
    shared = os.path.commonpath([str(PurePosixPath(folder).parent) for folder in distinct])
    class_names = sorted(str(PurePosixPath(folder).relative_to(shared or ".")) for folder in distinct)
    number = {name: position for position, name in enumerate(class_names)}
    return [number[str(PurePosixPath(folder).relative_to(shared or "."))] for folder in folders], class_names


class _Files(ABC):
    """Encoded files below a root, by relative name with slashes."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root = root
        self.names = names

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the encoded bytes of one file; raises BadDataError if they cannot be read."""

    def size_and_crc(self, name: str) -> tuple[int, int]:
        content = self.read(name)
        return len(content), zlib.crc32(content)


class _Folder(_Files):
    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise _unreadable(self.root, name, error) from error


class _Zip(_Files):
    def __init__(self, root: Path, names: list[str], directory: dict[str, tuple[int, int]]) -> None:
        super().__init__(root, names)
        self._directory = directory
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_opened": None}

    def read(self, name: str) -> bytes:
        try:
            process, opened = os.getpid(), self._opened
            if opened is None or opened[0] != process:
                opened = process, zipfile.ZipFile(self.root)
                self._opened = opened
            return opened[1].read(name)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
            raise _unreadable(self.root, name, error) from error

    def size_and_crc(self, name: str) -> tuple[int, int]:
        return self._directory[name]


def _unreadable(root: Path, name: str, error: BaseException) -> BadDataError:
    return BadDataError(
        f"{root}: {name}",
        expected="a file that can be read",
        found=f"{type(error).__name__}: {' '.join(str(error).split())}",
        remedy="restore the file",
    )


def _folder_files(root: Path) -> _Files:
    if not root.is_dir():
        raise BadDataError(
            str(root),
            expected="a folder of class folders, or a zip of one",
            found="nothing there",
            remedy="correct the name (relative ones start at the experiment file's folder)",
        )
    names = [
        (Path(folder) / file).relative_to(root).as_posix()
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
    ]
    return _Folder(root, names)


def _zip_files(root: Path) -> _Files:
    try:
        with zipfile.ZipFile(root) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise BadDataError(
            str(root),
            expected="a zip of class folders",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy="name a folder or a zip, or fetch the file again",
        ) from error
    directory: dict[str, tuple[int, int]] = {}
    for entry in entries:
        if entry.filename in directory or entry.filename.startswith("/"):
            raise BadDataError(
                str(root),
                expected="relative file names that differ",
                found=f"{entry.filename!r}" + (" twice" if entry.filename in directory else ""),
                remedy="pack the folder again",
            )
        directory[entry.filename] = (entry.file_size, entry.CRC)
    return _Zip(root, list(directory), directory)
