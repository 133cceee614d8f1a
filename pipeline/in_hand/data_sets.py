"""Data sets as a caller of Python has them, as `Examples` take them.

    (inputs, labels), inputs       arrays or tensors
    map-style                      len, and [i] -> (input, label) or input: torch, torchvision
    map-style of rows              [i] -> a dict, of which one entry is the input and one the label: Hugging Face

Images of PIL, loaders and iterable sets are refused with the line that mends it, before any network is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...storage.errors import BadDataError, LogitStoreError
from ...storage.stream.items import as_array, describe, in_file, listed_labels
from ..datasets.arrays import ArrayDataset
from ..datasets.listed_files import has_files
from ..datasets.pictures import pil_images
from ..factories.call import describe_exception, is_picture
from ..factories.in_hand import InHand, name_of

_INPUTS: Final = ("image", "img", "pixel_values", "input", "inputs", "x", "input_ids")
"""Keys of an input in a row."""
_LABELS: Final = ("label", "labels", "fine_label", "target", "y")
"""Keys of a label in a row."""
_EXPECTED: Final = "a data set: len, and [i] -> (input, label) or input, an array or a tensor"


def data_set_in_hand(given: Any, where: str, class_names: Sequence[str] | None = None) -> InHand:
    """Describe a data set by its class; its content is read and compared wherever that matters.

    class_names: names that replace those of the set, in the order of the labels. Raises BadDataError for anything that is
    no map-style data set of arrays.
    """
    dataset = _as_data_set(given, where)
    if class_names is not None:
        dataset = _Rows(dataset, class_names=list(class_names))
    return InHand(dataset, name_of(given), {}, frozenset({str(type(given).__module__)}))


def _as_data_set(given: Any, where: str) -> Any:
    if _is_array(given):
        return ArrayDataset(as_array(given, where), where=where)
    if isinstance(given, tuple) and len(given) == 2 and all(map(_is_array, given)):
        return ArrayDataset(as_array(given[0], where), as_array(given[1], f"{where}, labels"), where=where)
    if hasattr(given, "batch_sampler") and hasattr(given, "dataset"):
        raise _refused(where, describe(given), "pass its data set, loader.dataset")
    if isinstance(given, (str, bytes, Mapping, type)):
        made = f"the class {given.__name__}" if isinstance(given, type) else describe(given)
        remedy = "pass (inputs, labels)" if isinstance(given, Mapping) else "pass the data set itself"
        raise _refused(where, made, remedy)
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        remedy = "pass a map-style data set, or load an iterable one into arrays"
        raise _refused(where, f"{describe(given)} without len or [i]", remedy)
    return _with_pairs(given, where)


def _with_pairs(dataset: Any, where: str) -> Any:
    """Return a set whose items are pairs, by the form of its first item. Raises BadDataError for items of no known form."""
    try:
        if not len(dataset):
            raise _refused(where, "no examples", "pass a set with examples")
        first = dataset[0]
    except LogitStoreError:
        raise
    except Exception as error:
        place = f"{where}, example 0{in_file(dataset, 0)}"
        raise _refused(place, describe_exception(error)[:200], "repair the data set") from error
    keys = _keys(first, where) if isinstance(first, Mapping) else None
    example = first
    if keys is not None:
        example = first[keys[0]]
    elif isinstance(first, (tuple, list)) and first:
        example = first[0]
    if is_picture(example) and keys is None and has_files(dataset):
        return pil_images(dataset, where=where)
    if is_picture(example):
        remedy = "give the data set a transform that ends in a tensor, such as torchvision.transforms.PILToTensor()"
        if keys is not None:
            remedy = 'set the format of its rows: dataset.with_format("torch")'
        raise _refused(f"{where}, example 0", "an image of PIL", remedy)
    return dataset if keys is None else _Rows(dataset, keys)


def _keys(row: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    """Return the keys of input and label in a row. Raises BadDataError if several may be meant."""
    inputs, labels = ([key for key in known if key in row] for known in (_INPUTS, _LABELS))
    if len(inputs) != 1 or len(labels) > 1:
        raise _refused(
            f"{where}, example 0",
            f"{describe(row)}, in which {'several' if len(inputs) + len(labels) > 1 else 'none'} may be meant",
            'return (input, label) instead, or rename two keys "image" and "label"',
        )
    return inputs[0], labels[0] if labels else None


@dataclass(frozen=True)
class _Rows:
    """A data set whose rows become pairs, or whose classes get names."""

    dataset: Any
    keys: tuple[str, str | None] | None = None
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.class_names is None:
            object.__setattr__(self, "class_names", getattr(self.dataset, "class_names", None))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._pair(self.dataset[index])

    def __getitems__(self, indices: list[int]) -> list[Any]:
        whole = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[index] for index in indices] if whole is None else whole(indices)
        return [self._pair(item) for item in items]

    def _pair(self, item: Any) -> Any:
        if self.keys is None:
            return item
        input_key, label_key = self.keys
        return item[input_key] if label_key is None else (item[input_key], item[label_key])

    @property
    def labels(self) -> Any:
        """Labels that the set lists; None without any."""
        return listed_labels(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name in (
            "classes",
            "features",
            "ids",
            "fingerprint",
            "omitted",
            "is_numbered",
            "decoding",
            "encoded",
            "encoded_sizes",
            "is_decoded_elsewhere",
            "samples",
            "imgs",
            "transform",
        ) and "dataset" in vars(self):
            return getattr(self.dataset, name)
        raise AttributeError(name)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")


def _refused(where: str, found: str, remedy: str) -> BadDataError:
    return BadDataError(where, expected=_EXPECTED, found=found, remedy=remedy)
