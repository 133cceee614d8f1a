"""Files of the data sets that list them, as `ImageFolder` of torchvision does, for a store that keeps files.

Such a set decodes its images itself, and transforms them. Students of the store decode its files with our decoder. Both
give the same pixels if the transform has no other steps than these, of torchvision or by these names:

    Resize, CenterCrop      become the sizing of the store
    PILToTensor, ToImage    no change of a pixel

Any other step of torchvision is refused by its name. A loader or a step of the user's own is taken at its word, and the word
is tested: some files from all over the set before anything is written, and each file when it is written.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np
from jaxtyping import Int64

from ...storage.errors import BadDataError, ConfigError, described
from ...storage.stream.items import as_array, describe, fetch_items, file_of, split_item
from .bad_files import READABLE
from .decoding import Decoder
from .image_files import MAX_BYTES
from .sizing import Interpolation, Sizing, sizing_of
from .stored_images import Decoding

Result = TypeVar("Result")
_KEY: Final = "transfer_set.store_inputs = 'encoded'"
_PLAIN: Final = frozenset({"PILToTensor", "ToImage", "ToImageTensor", "ToPureTensor", "Identity"})
"""Steps that change no pixel."""
_OF_LIBRARY: Final = "torchvision"
_ALLOWED: Final = "transform=Compose([Resize(256), CenterCrop(224), PILToTensor()]), or a part of it"


class ListedPaths:
    """The files that a set lists, one an example: a `pictures.FilesOfRows`."""

    are_turned = False
    """Whether the set turns its images by their orientation tags, as no loader of torchvision does."""
    is_decoded_elsewhere = True
    """Whether other code than ours makes the inputs of the set from its files: each file is then compared with its input."""

    def __init__(self, dataset: Any) -> None:
        """Keep the set. It lists its files (`has_files`)."""
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def path(self, index: int) -> Path:
        """Return the file of an example. Raises BadDataError for an example without one."""
        path = file_of(self._dataset, index)
        if path is None:
            raise BadDataError(
                f"transfer set, example {index}",
                expected="a file in samples, as of the other examples",
                found="none",
                remedy="set store_inputs = true to keep arrays",
            )
        return Path(path)

    def read(self, index: int) -> bytes:
        """Return the content of a file. Raises BadDataError."""
        return self._of_file(index, self._content)

    def size(self, index: int) -> int:
        """Return the bytes of a file. Raises BadDataError."""
        return self._of_file(index, lambda path: path.stat().st_size)

    def _content(self, path: Path) -> bytes:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES:,} bytes")
        return content

    def _of_file(self, index: int, function: Callable[[Path], Result]) -> Result:
        path = self.path(index)
        try:
            return function(path)
        except OSError as error:
            raise BadDataError(
                str(path), expected=READABLE, found=described(error), remedy="restore the file"
            ) from error


def has_files(dataset: Any) -> bool:
    """Return whether a set lists the files of its examples, as sets of torchvision do."""
    return bool(len(dataset)) and file_of(dataset, 0) is not None


class ListedFiles:
    """The files of a set that lists them: a `stored_images.GivesFiles` beside the set itself."""

    is_decoded_elsewhere = ListedPaths.is_decoded_elsewhere

    def __init__(self, dataset: Any, decoding: Decoding) -> None:
        """Keep the set, and the way from its files to its inputs."""
        self._paths = ListedPaths(dataset)
        self.decoding = decoding.settings
        """`Decoding.settings` of the set."""

    def encoded(self, index: int) -> bytes:
        """Return the file of an example. Raises BadDataError."""
        return self._paths.read(index)

    def encoded_sizes(self) -> Int64[np.ndarray, " rows"]:
        """Return the bytes of every file, of the file system. Raises BadDataError."""
        return np.array([self._paths.size(index) for index in range(len(self._paths))], np.int64)


def listed_files(dataset: Any) -> ListedFiles | None:
    """Return the files of a set of images that lists them; None for a set without such a list.

    Raises ConfigError for a transform that a decoder of files cannot repeat.
    """
    if not has_files(dataset):
        return None
    pixels = as_array(split_item(fetch_items(dataset, [0])[0], "transfer set, example 0").input, "example 0")
    sizing = _sizing_of(dataset)
    is_grey, is_colour = pixels.ndim == 2, pixels.ndim == 3 and len(pixels) == 3
    if pixels.dtype != np.uint8 or not (is_grey or is_colour):
        raise _refused(
            f"{pixels.dtype} of shape {pixels.shape}",
            expected="inputs uint8 of shape (3, height, width) or (height, width), as files are decoded",
            remedy="end the transform with PILToTensor() instead of ToTensor(), for networks that scale their inputs",
        )
    mode: Literal["L", "RGB"] = "L" if is_grey else "RGB"
    height, width = pixels.shape[-2:]
    return ListedFiles(dataset, Decoding(Decoder(mode), sizing, height, width))


def _sizing_of(dataset: Any) -> Sizing:
    """Return the sizing that the transforms of a set, and of the sets inside it, stand for. Raises ConfigError."""
    found = {_sizing(transform) for transform in _transforms(dataset)}
    if len(found) > 1:
        raise _refused("data sets of several transforms", remedy="give all of them the same one")
    return found.pop() if found else Sizing()


def _transforms(dataset: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the steps of the transform of each set that lists files."""
    for one in getattr(dataset, "datasets", None) or ():
        yield from _transforms(one)
    if (inner := getattr(dataset, "dataset", None)) is not None:
        yield from _transforms(inner)
    if getattr(dataset, "samples", None) is not None or getattr(dataset, "imgs", None) is not None:
        yield tuple(_steps(getattr(dataset, "transform", None)))


def _steps(transform: Any) -> Iterator[Any]:
    """Yield the steps of a transform, those inside a `Compose` one by one."""
    if transform is None:
        return
    inner = getattr(transform, "transforms", None)
    if type(transform).__name__ == "Compose" and inner is not None:
        for one in inner:
            yield from _steps(one)
    else:
        yield transform


def _sizing(steps: tuple[Any, ...]) -> Sizing:
    """Return the sizing of some steps, which are in the order in which ours are. Raises ConfigError."""
    given: dict[str, Any] = {}
    is_tensor = False  # tensors are resized to other pixels than images
    for step in steps:
        name = type(step).__name__
        is_tensor = is_tensor or name in _PLAIN
        if name == "Resize" and not given and not is_tensor and getattr(step, "max_size", None) is None:
            size = _pixels(step.size, step)
            given["resize" if isinstance(size, int) else "size"] = size
            given["interpolation"] = _interpolation(step)
        elif name == "CenterCrop" and "crop" not in given and "size" not in given:
            size = _pixels(step.size, step)
            given["crop"] = (size, size) if isinstance(size, int) else size
        elif name not in _PLAIN and _is_of_library(step):
            raise _refused(_shown(step))
    return sizing_of(**given)


def _pixels(size: Any, step: Any) -> int | tuple[int, int]:
    """Return a size of torchvision: a number, or (height, width). Raises ConfigError for anything else."""
    if isinstance(size, int):
        return size
    if isinstance(size, list | tuple) and all(isinstance(one, int) for one in size) and len(size) in (1, 2):
        return size[0] if len(size) == 1 else (size[0], size[1])
    raise _refused(_shown(step))


def _interpolation(step: Any) -> Interpolation:
    name = getattr(getattr(step, "interpolation", None), "value", "bilinear")
    if name not in ("bilinear", "bicubic"):
        raise _refused(_shown(step))
    return cast(Interpolation, name)


def _is_of_library(step: Any) -> bool:
    return (getattr(step, "__module__", None) or type(step).__module__).partition(".")[0] == _OF_LIBRARY


def _shown(step: Any) -> str:
    return f"the step {' '.join(str(step).split())[:80]}" if _is_of_library(step) else describe(step)


def _refused(
    found: str,
    *,
    expected: str = f"a transform that students can repeat from the files: {_ALLOWED}",
    remedy: str = "pass the other steps as augment, or set store_inputs = true to keep arrays",
) -> ConfigError:
    return ConfigError(_KEY, expected=expected, found=found, remedy=remedy)
