"""Transforms of other libraries as augmentations: all that they draw from is seeded by (seed, view, row).

`seeded` calls a transform of torchvision (v2 or v1), of albumentations or of your own. It may draw from

    torch          its global generator is neither read nor moved: a mode of this thread gives each random operation a
                   generator of the row, so that a network may draw from the global one at the same time
    random, NumPy  the global states are seeded, and restored afterwards; one transform runs at a time
    itself         a method `set_random_seed`, as albumentations has it, is called with a seed of the row

`rand_augment` is torchvision's RandAugment. A transform that keeps a generator of its own is found when its views are made
twice.
"""

import contextlib
import importlib
import inspect
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...storage.errors import ConfigError, FactoryError, described
from .versions import source_version

Given = Literal["pil", "tensor", "array"]
"""What a transform takes: a PIL image, a tensor (channels, height, width), or an array (height, width, channels)."""
Channels = Literal["first", "last"]
_WHERE: Final = "augmentation seeded"
_WORDS: Final = 4
"""Seeds of torch, `random`, NumPy and the transform itself."""
_lock = threading.RLock()
"""Held while global states are seeded."""


def _renew_lock() -> None:
    """Make the lock of a forked process, which no thread of it holds."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which never forks
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True)
class Seeded:
    """A transform of another library, with numbers that follow from the row's generator."""

    transform: str | Callable[..., Any]
    """The transform, or "module:name" of it or of a function that returns it."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of that function."""
    given: Given | None = None
    """What the transform takes; by default an array for albumentations, otherwise a PIL image."""
    channels: Channels = "first"
    """Whether an input is (channels, height, width) or (height, width, channels)."""
    dtype: str | None = None
    """Dtype of the views; by default that of the inputs."""

    @property
    def view_dtype(self) -> np.dtype[Any] | None:
        """Dtype of the views; None for that of the inputs."""
        return None if self.dtype is None else np.dtype(self.dtype)

    @cached_property
    def made(self) -> Callable[..., Any]:
        """The transform itself. Raises FactoryError for a name that leads to none."""
        if not isinstance(self.transform, str):
            return self.transform
        return _named(self.transform, self.args)

    def __getstate__(self) -> dict[str, Any]:
        # Another process imports a named transform anew.
        return {name: value for name, value in vars(self).items() if name != "made"}

    @property
    def takes(self) -> Given:
        """What the transform takes."""
        if self.given is not None:
            return self.given
        return "array" if _is_of_albumentations(self.made) else "pil"

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the view of one image (channels, height, width) or (height, width)."""
        seeds = [int(word) for word in np.asarray(generator.bit_generator.random_raw(_WORDS))]
        image, made = self._shown(example), self.made
        with _drawn_from(made, seeds):
            try:
                result = made(image=image) if _is_of_albumentations(made) else made(image)
            except (FactoryError, ConfigError):
                raise
            except Exception as error:
                raise FactoryError(
                    _WHERE,
                    expected=f"a transform of {_KINDS[self.takes]}",
                    found=f"an error, {described(error)}",
                    remedy="correct the transform, or set given to 'pil', 'tensor' or 'array' as it takes images",
                ) from error
        view = self._layout(_as_array(result), example.ndim)
        if view.dtype != (expected := self.view_dtype or example.dtype):
            raise FactoryError(
                _WHERE,
                expected=f"views of {expected}",
                found=f"{view.dtype}",
                remedy=f"leave casting and normalising to the network, or set dtype = '{view.dtype}' and first_view = 0",
            )
        return view

    def _shown(self, example: NDArray[Any]) -> Any:
        """Return an input as the transform takes it, in memory of its own."""
        if example.ndim not in (2, 3):
            raise ConfigError(
                _WHERE,
                expected="inputs of shape (channels, height, width) or (height, width)",
                found=f"inputs of shape {example.shape}",
                remedy="choose another augmentation",
            )
        planes = example[None] if example.ndim == 2 else example
        if example.ndim == 3 and self.channels == "last":
            planes = example.transpose(2, 0, 1)
        if self.takes == "tensor":
            import torch

            return torch.from_numpy(planes.copy())
        pixels = planes.transpose(1, 2, 0).copy()
        if self.takes == "array":
            return pixels[..., 0] if example.ndim == 2 else pixels
        if example.dtype != np.uint8 or len(planes) not in (1, 3):
            raise ConfigError(
                _WHERE,
                expected="images of uint8 with 1 or 3 channels, for a transform of PIL images",
                found=f"inputs of {example.dtype} of shape {example.shape}",
                remedy="set given = 'tensor' or 'array', or channels as the inputs have them",
            )
        return Image.fromarray(pixels[..., 0] if len(planes) == 1 else pixels)

    def _layout(self, planes: NDArray[Any], ndim: int) -> NDArray[Any]:
        """Return a view (channels, height, width) with the axes of the inputs."""
        if ndim == 2 and len(planes) == 1:
            return np.ascontiguousarray(planes[0])
        return np.ascontiguousarray(planes.transpose(1, 2, 0) if self.channels == "last" else planes)


_KINDS: Final = {"pil": "PIL images", "tensor": "tensors", "array": "arrays (height, width, channels)"}


@source_version("seeded 1")
def seeded(
    transform: Any,
    args: Mapping[str, Any] | None = None,
    given: str | None = None,
    channels: str = "first",
    dtype: str | None = None,
) -> Seeded:
    """Make an augmentation of a transform of torchvision, albumentations or your own.

    transform: the transform, or "module:name" of it or of a function that returns it; args: arguments of that function.
    given: the images that it takes, "pil", "tensor" (channels, height, width) or "array" (height, width, channels); by
    default "array" for albumentations and "pil" for others. channels: whether inputs have their channels "first" or "last";
    views have the same axes. dtype: of the views, if the transform casts the inputs.
    A capture records the source of a named transform. Raises FactoryError for a name that leads to no transform, ConfigError
    for other arguments.

    >>> from logitstore.pipeline.augment import row_generator
    >>> from random import randint
    >>> noise = seeded(lambda image: image + np.uint8(randint(0, 99)), given="array")
    >>> image = np.zeros((1, 2), np.uint8)
    >>> bool((noise(image, row_generator(0, 1, 5)) == noise(image, row_generator(0, 1, 5))).all())
    True
    """
    for name, value, known in (("given", given, (None, *_KINDS)), ("channels", channels, ("first", "last"))):
        if value not in known:
            raise ConfigError(
                _WHERE,
                expected=f"{name} among {', '.join(repr(one) for one in known if one)}",
                found=repr(value),
                remedy=f"correct {name}",
            )
    if args and not isinstance(transform, str):
        raise ConfigError(
            _WHERE,
            expected="no args beside a transform that is an object",
            found=str(sorted(args)),
            remedy="pass the name of a function, or make the transform with its arguments",
        )
    if not (isinstance(transform, str) or callable(transform)):
        raise FactoryError(
            _WHERE,
            expected="a transform that can be called, or the name of one",
            found=repr(transform)[:80],
            remedy="pass such an object",
        )
    seeded_one = Seeded(
        transform, dict(args or {}), cast("Given | None", given), cast("Channels", channels), dtype
    )
    _ = seeded_one.made  # a name that leads to none is refused now
    return seeded_one


@source_version("rand_augment 1")
def rand_augment(num_ops: int = 2, magnitude: int = 9, channels: str = "first") -> Seeded:
    """Make torchvision's RandAugment: `num_ops` operations of one strength, drawn for each view.

    num_ops: operations, 0 or more. magnitude: 0 … 30. channels: as for `seeded`. Inputs are uint8 with 1 or 3 channels.
    Another version of torchvision or Pillow may make other views; the digests of the teacher's inputs then refuse them.
    Raises ConfigError for other numbers, or without torchvision.
    Source: Cubuk et al. 2019, "RandAugment: practical automated data augmentation with a reduced search space".
    """
    where = "augmentation rand_augment"
    for name, value, most in (("num_ops", num_ops, 1 << 20), ("magnitude", magnitude, 30)):
        if not 0 <= value <= most:
            expected = f"{name} from 0 to 30" if name == "magnitude" else f"{name} of 0 or more"
            raise ConfigError(where, expected=expected, found=str(value), remedy=f"correct {name}")
    try:
        transforms = importlib.import_module("torchvision.transforms.v2")
    except ImportError as error:
        raise ConfigError(
            where,
            expected="torchvision, whose RandAugment it is",
            found=described(error),
            remedy="install torchvision",
        ) from error
    return seeded(transforms.RandAugment(num_ops, magnitude), given="pil", channels=channels)


def _named(name: str, args: Mapping[str, Any]) -> Callable[..., Any]:
    """Import a transform, or make it by the function of that name. Raises FactoryError."""
    where = f"{_WHERE}: transform {name!r}"
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute.isidentifier()):
        raise FactoryError(
            where,
            expected='"module:name"',
            found=repr(name),
            remedy="name module and transform with one colon between",
        )
    try:
        value = getattr(importlib.import_module(module), attribute)
        # A function of no image makes the transform; a function of an image is one.
        makes = inspect.isclass(value) or (inspect.isfunction(value) and (bool(args) or not _required(value)))
        made: Any = value(**args) if makes else value
    except Exception as error:
        raise FactoryError(
            where,
            expected="a transform, or a function that returns one",
            found=f"an error, {described(error)}",
            remedy="correct the name or its args",
        ) from error
    if not callable(made) or (args and not makes):
        raise FactoryError(
            where,
            expected="a function that takes args" if callable(made) else "a transform that can be called",
            found=f"{type(made).__name__}",
            remedy="remove args" if callable(made) else "return the transform from the function",
        )
    return made  # type: ignore[no-any-return]


def _required(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters that a function cannot be called without."""
    return [
        name
        for name, one in inspect.signature(function).parameters.items()
        if one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]


def _is_of_albumentations(transform: object) -> bool:
    """Return whether a transform takes its image by keyword and returns a table, as those of albumentations do."""
    return library_of(transform) == "albumentations"


def library_of(transform: object) -> str | None:
    """Return the library that a transform or a base of its class comes from; None for another thing.

    >>> library_of(len) is None
    True
    """
    roots = [one.__module__.partition(".")[0] for one in type(transform).__mro__]
    return next((name for name in ("albumentations", "torchvision") if name in roots), None)


@contextlib.contextmanager
def _drawn_from(transform: Any, seeds: list[int]) -> Iterator[None]:
    """Set the generators that a transform draws from in this block. seeds: of torch, `random`, NumPy and the transform."""
    from .torch_draws import SeededDraws

    with _lock, SeededDraws(seeds[0]):
        # Both states are of the whole process.
        python, numpy = random.getstate(), np.random.get_state()
        try:
            random.seed(seeds[1])
            np.random.seed([seeds[2] & 0xFFFFFFFF, seeds[2] >> 32])
            if callable(own := getattr(transform, "set_random_seed", None)):
                own(seeds[3] & 0xFFFFFFFF)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _as_array(made: Any) -> NDArray[Any]:
    """Return the image that a transform made as (channels, height, width). Raises FactoryError."""
    value = made.get("image", made) if isinstance(made, Mapping) else made
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    elif hasattr(value, "detach"):  # a tensor, channels first
        tensor: NDArray[Any] = value.detach().cpu().numpy()
        value = tensor if tensor.ndim != 3 else tensor.transpose(1, 2, 0)
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3):
        shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
        raise FactoryError(
            _WHERE,
            expected="a transform that returns an image: PIL, a tensor or an array",
            found=f"{type(value).__name__}{shape}",
            remedy="return the image alone",
        )
    return value[None] if value.ndim == 2 else value.transpose(2, 0, 1)
