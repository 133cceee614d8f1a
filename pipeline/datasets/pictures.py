"""Data sets of torchvision and of Hugging Face, whose images are Pillow's, as rows of uint8.

    pil_images(dataset, …)      a set in hand, of pairs (image, label) or of dicts: for a factory of your own
    torchvision("CIFAR10", …)   a data set of torchvision.datasets
    hugging_face("birds", …)    a folder of Hugging Face's `datasets`

Class names and labels are those of the set. Nothing is downloaded here; a factory of your own may do so. The two libraries
are imported when they are used, and belong to no extra.
"""

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from ...storage.errors import BadDataError, ConfigError, MissingPackage, described
from ...storage.stream.items import describe, fetch_items, listed_labels
from .arrays import Example
from .class_names import all_texts, names_of
from .decoding import Decoder, Orientation, as_pixels, colour_of
from .listed_files import ListedPaths, has_files
from .selection import omitted_numbers, select
from .sizing import Interpolation, Sizing, sizing_of
from .stored_images import Decoding

_RESERVED: Final = ("download", "transform", "target_transform", "transforms", "loader")
"""Arguments of a data set of torchvision that are not passed on: images come as they are, and from this machine."""
_NONE: Final = object()
"""The label of an item without one."""


@runtime_checkable
class FilesOfRows(Protocol):
    """The files of the images of a data set, by row."""

    are_turned: bool
    """Whether the set turns its images by their orientation tags."""
    is_decoded_elsewhere: bool
    """Whether a loader of the user's decodes them."""

    def read(self, index: int) -> bytes:
        """Return the content of a file. Raises BadDataError."""

    def size(self, index: int) -> int:
        """Return the bytes of a file. Raises BadDataError."""


class UndecodedColumn:
    """The files in a column of Hugging Face, whose library turns images by their orientation tags."""

    are_turned, is_decoded_elsewhere = True, False

    def __init__(self, dataset: Any, column: str, where: str) -> None:
        """Keep a set whose images are not decoded. where: the set in messages."""
        self._dataset, self._column, self._where = dataset, column, where

    def read(self, index: int) -> bytes:
        """Return the content of a file. Raises BadDataError."""
        return _file_of(
            fetch_items(self._dataset, [index])[0][self._column], f"{self._where}, example {index}"
        )

    def size(self, index: int) -> int:
        """Return the bytes of a file, which is read. Raises BadDataError."""
        return len(self.read(index))


class PictureSet:
    """Images of Pillow as uint8 arrays; made by `pil_images`, `torchvision` and `hugging_face`."""

    def __init__(
        self,
        dataset: Any,
        keys: tuple[str, str],
        rows: Int64[np.ndarray, " rows"],
        labels: Int64[np.ndarray, " rows"] | None,
        class_names: Sequence[str] | None,
        form: tuple[Decoder, Sizing],
        where: str,
        files: "FilesOfRows | None" = None,
    ) -> None:
        """Keep a set. keys: of image and label in a dict. rows: the examples that are taken. where: the set in messages.

        files: of the images of `dataset`; None if it gives none.
        """
        self.class_names = class_names
        """One name a class, or None if the set has none."""
        self.labels = labels
        """(rows,) int64, -1 where unknown; None if the set does not list them, or has none."""
        self.omitted: tuple[int, ...] = ()
        """Classes whose examples were left out on purpose."""
        self._source, self._keys, self._rows = dataset, keys, rows
        self._decoder, self._sizing = form
        self._where = where
        self._size = self._sizing.shape
        self._files = files
        self.is_decoded_elsewhere = files is not None and files.is_decoded_elsewhere
        """Whether a loader of the user's decodes the files: each is then compared with its input when it is stored."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Return the pixels of an example, and its label if the set has labels. Raises BadDataError."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Return several examples, as DataLoader requests them."""
        rows = self._rows[np.asarray(indices, dtype=np.int64)].tolist()
        return [
            self._example(item, row) for item, row in zip(fetch_items(self._source, rows), rows, strict=True)
        ]

    @property
    def decoding(self) -> dict[str, Any]:
        """The way from a file to its pixels (`stored_images.GivesFiles`). Raises AttributeError for a set without files."""
        if self._files is None:
            raise AttributeError("decoding")
        shape = self[0][0].shape if isinstance(self[0], tuple) else np.shape(self[0])
        follows = self._files.are_turned or self._decoder.follow_exif
        decoder = Decoder(self._decoder.mode, self._decoder.background, follows)
        return Decoding(decoder, self._sizing, shape[-2], shape[-1]).settings

    def encoded(self, index: int) -> bytes:
        """Return the file of an example. Raises BadDataError."""
        assert self._files is not None  # of a set that has `decoding`
        return self._files.read(int(self._rows[index]))

    def encoded_sizes(self) -> Int64[np.ndarray, " rows"]:
        """Return the bytes of every file; those of Hugging Face are all read."""
        assert self._files is not None
        return np.array([self._files.size(row) for row in self._rows.tolist()], dtype=np.int64)

    def _example(self, item: Any, row: int) -> Example:
        where = f"{self._where}, example {row}"
        image, label = _parts(item, self._keys, where)
        pixels = self._pixels(image, where)
        # A row of Hugging Face without a label has None there.
        return pixels if label is _NONE else (pixels, -1 if label is None else label)

    def _sized(self, image: Any, where: str) -> Image.Image:
        if not isinstance(image, Image.Image):
            raise BadDataError(
                where,
                expected="an image of Pillow",
                found=describe(image),
                remedy="remove the transform or the format of the set; size, resize and crop are arguments here",
            )
        return self._sizing.apply(self._decoder.convert(image, where), where)

    def _pixels(self, image: Any, where: str) -> UInt8[np.ndarray, "*shape"]:
        sized = self._sized(image, where)
        found = sized.height, sized.width
        if self._size is None:
            row = int(self._rows[0])
            place = f"{self._where}, example {row}"
            first = _parts(fetch_items(self._source, [row])[0], self._keys, place)[0]
            reference = self._sized(first, place)
            self._size = reference.height, reference.width
        if found != self._size:
            raise BadDataError(
                where,
                expected=f"{self._size[0]} x {self._size[1]} pixels (height x width), like the first image",
                found=f"{found[0]} x {found[1]}",
                remedy="give resize = 256 and crop = 224, for example",
            )
        return as_pixels(sized)


def pil_images(
    dataset: Any,
    *,
    image: str = "image",
    label: str = "label",
    mode: Literal["L", "RGB"] = "RGB",
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: int | tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    follow_exif: Orientation = False,
    background: int | tuple[int, int, int] | None = None,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
    where: str = "transfer set",
    files: Any = None,
) -> PictureSet:
    """Wrap a data set of Pillow images: inputs uint8, (height, width) or (3, height, width).

    dataset: map-style, with items (image, label), or dicts as those of Hugging Face. image, label: keys of such a dict;
        `label=""` for a set without labels. where: the set in messages. files: the same set of Hugging Face, its column of
        images cast to `datasets.Image(decode=False)`, for a store that keeps files. A set that lists its files, as
        `ImageFolder` of torchvision does, needs none.
    Further arguments as `image_folder`, but `mode` is "RGB" by default. Raises ConfigError for wrong ones.
    """
    form = Decoder(mode, colour_of(background), follow_exif), sizing_of(size, resize, crop, interpolation)
    names = _names(dataset, label, where)
    labels = None if not label else _labels(dataset, image, label, where, is_needed=bool(omit_classes))
    rows = select(
        len(dataset),
        labels,
        names or (),
        omit_classes=omit_classes,
        fraction=fraction,
        seed=seed,
        subset=subset,
    )
    kept = None if labels is None else labels[rows]
    given: FilesOfRows | None = None if files is None else UndecodedColumn(files, image, where)
    if files is None and has_files(dataset) and getattr(dataset, "transform", None) is None:
        given = ListedPaths(dataset)
    made = PictureSet(dataset, (image, label), rows, kept, names, form, where, given)
    made.omitted = omitted_numbers(omit_classes, names or ())
    return made


def torchvision(
    name: str,
    root: Path,
    args: dict[str, Any] | None = None,
    *,
    mode: Literal["L", "RGB"] = "RGB",
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: int | tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    follow_exif: Orientation = False,
    background: int | tuple[int, int, int] | None = None,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> PictureSet:
    """Open a data set of torchvision, such as "CIFAR10", that lies below `root` already.

    args: further arguments of its class, such as `{ train = false }` or `{ split = "test" }`.
    Further arguments as `pil_images`.
    Raises BadDataError if its files are not there, ConfigError for a wrong name or argument, MissingPackage.
    """
    try:
        known: Any = importlib.import_module("torchvision").datasets
    except ModuleNotFoundError as error:
        raise _missing("torchvision", error) from error
    kind = getattr(known, name, None)
    if not isinstance(kind, type) or not issubclass(kind, known.VisionDataset):
        raise ConfigError(
            "name",
            expected="the name of a class of torchvision.datasets, such as 'CIFAR10'",
            found=repr(name),
            remedy="correct name",
        )
    given = dict(args or {})
    if taken := sorted(given.keys() & {*_RESERVED}):
        raise ConfigError(
            "args",
            expected="arguments that choose the examples, such as train or split",
            found=taken[0],
            remedy="remove it; to download or transform, write a factory that returns pil_images(dataset)",
        )
    try:
        dataset = kind(str(root), **given)
    except (RuntimeError, OSError) as error:
        raise BadDataError(
            str(root),
            expected=f"the files of {name}",
            found=described(error)[:200],
            remedy=f"fetch them once: torchvision.datasets.{name}(root, download=True), where it can",
        ) from error
    return pil_images(
        dataset,
        mode=mode,
        size=size,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        follow_exif=follow_exif,
        background=background,
        subset=subset,
        omit_classes=omit_classes,
        fraction=fraction,
        seed=seed,
        where=f"{root}: {name}",
    )


def hugging_face(
    path: Path,
    split: str | None = None,
    *,
    image: str = "image",
    label: str = "label",
    mode: Literal["L", "RGB"] = "RGB",
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: int | tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    follow_exif: Orientation = False,
    background: int | tuple[int, int, int] | None = None,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> PictureSet:
    """Open a folder of Hugging Face's `datasets`: one of `save_to_disk`, or one that `load_dataset` reads.

    split: one of the folder, such as "train"; None if it holds one set. image, label: columns; `label=""` for a set
    without labels. Further arguments as `pil_images`. The library turns images by their orientation tags itself.
    Raises BadDataError for another folder, ConfigError for a split or a column that is not there, MissingPackage.
    """
    try:
        library: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise _missing("datasets", error) from error
    if not path.is_dir():
        raise BadDataError(
            str(path),
            expected="a folder of a data set",
            found="a file" if path.exists() else "nothing there",
            remedy="correct path, or save the set once: dataset.save_to_disk(path)",
        )
    is_saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        loaded = library.load_from_disk(str(path)) if is_saved else library.load_dataset(str(path))
    except MemoryError:
        raise
    except Exception as error:  # readers of many formats raise their own errors
        raise BadDataError(
            str(path),
            expected="a data set that the library `datasets` can read",
            found=described(error)[:200],
            remedy="save the set once: dataset.save_to_disk(path)",
        ) from error
    if isinstance(loaded, Mapping):
        chosen = split if split is not None or len(loaded) != 1 else next(iter(loaded))
        if chosen not in loaded:
            raise ConfigError(
                "split",
                expected=f"one of {', '.join(map(repr, loaded))}",
                found=repr(split),
                remedy="set split in args",
            )
        loaded = loaded[chosen]
    elif split is not None and split != str(loaded.split):
        raise ConfigError(
            "split",
            expected=f"no split, since {path} holds one set",
            found=repr(split),
            remedy="remove split",
        )
    for name, column in (("image", image), ("label", label)):
        if column and column not in loaded.column_names:
            raise ConfigError(
                name,
                expected=f"a column: {', '.join(map(repr, loaded.column_names))}",
                found=repr(column),
                remedy=f"set {name} in args" + (', label = "" for a set without labels' * (name == "label")),
            )
    loaded = loaded.select_columns([image, label] if label else [image]).with_format(None)
    files = None
    if isinstance(loaded.features[image], library.Image):
        files = loaded.select_columns([image]).cast_column(image, library.Image(decode=False))
    return pil_images(
        loaded,
        image=image,
        label=label,
        mode=mode,
        size=size,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        follow_exif=follow_exif,
        background=background,
        subset=subset,
        omit_classes=omit_classes,
        fraction=fraction,
        seed=seed,
        where=str(path),
        files=files,
    )


def _file_of(content: Any, where: str) -> bytes:
    """Return the bytes of an image of Hugging Face that is not decoded. Raises BadDataError."""
    if isinstance(content, Mapping):
        if isinstance(content.get("bytes"), bytes):
            return bytes(content["bytes"])
        if isinstance(path := content.get("path"), str) and "://" not in path:
            with contextlib.suppress(OSError):
                return Path(path).read_bytes()
    raise BadDataError(
        where,
        expected="an image with its bytes, or a file that can be read",
        found=describe(content),
        remedy="save the set with its images: dataset.save_to_disk(path)",
    )


def _parts(item: Any, keys: tuple[str, str], where: str) -> tuple[Any, Any]:
    """Return image and label of an item; the label is `_NONE` without one. Raises BadDataError."""
    image, label = keys
    if isinstance(item, Mapping):
        missing = [key for key in (image, label) if key and key not in item]
        if missing:
            raise BadDataError(
                where,
                expected=f"a row with {missing[0]!r}",
                found=describe(item),
                remedy="name the keys: image = …, label = …",
            )
        return item[image], item[label] if label else _NONE
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise BadDataError(
                where,
                expected="(image, label) or image",
                found=describe(item),
                remedy="return such an item from the data set",
            )
        return item[0], item[1] if len(item) == 2 and label else _NONE
    return item, _NONE


def _names(dataset: Any, label: str, where: str) -> list[str] | None:
    """Return the names of the classes: those of the label's column, or as `names_of`."""
    features = getattr(dataset, "features", None)
    if label and isinstance(features, Mapping):
        names = getattr(features.get(label), "names", None)
        return list(names) if names is not None and all_texts(list(names)) else None
    return names_of(dataset, where)


def _labels(
    dataset: Any, image: str, label: str, where: str, *, is_needed: bool
) -> Int64[np.ndarray, " rows"] | None:
    """Return the labels that a set lists or has in a column; those of its items if they are needed, None otherwise."""
    if (listed := listed_labels(dataset)) is not None:
        return listed
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list) and label in columns and hasattr(dataset, "select_columns"):
        given: list[Any] = list(dataset.select_columns([label])[:][label])
    elif is_needed:
        given = [
            _parts(fetch_items(dataset, [row])[0], (image, label), f"{where}, example {row}")[1]
            for row in range(len(dataset))
        ]
    else:
        return None
    # Labels of another form are refused with their example when it is read.
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        array = np.array([-1 if one is None else one for one in given])
        if array.shape == (len(dataset),) and array.dtype.kind in "iu":
            return array.astype(np.int64)
    return None


def _missing(package: str, error: ModuleNotFoundError) -> Exception:
    if error.name != package:
        return error
    return MissingPackage(
        package, expected="an installed package", found="none", remedy=f"pip install {package}"
    )
