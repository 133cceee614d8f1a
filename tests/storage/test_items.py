"""Items of a data set: each form that is read, and one line for each that may be a mistake."""

import enum
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.messages import Sentences
from torch.utils.data import ConcatDataset, Subset

from logitstore.storage.checks import as_labels
from logitstore.storage.errors import BadDataError, ConfigError
from logitstore.storage.stream.items import as_array, class_number, fetch_items, read_inputs, split_item

Sample = namedtuple("Sample", ["image", "target"])
Kind = enum.IntEnum("Kind", [("ANT", 0), ("BEE", 1)])
X = np.arange(3, dtype=np.float32)
NAMES = ("ant", "bee", "cow")


@pytest.mark.parametrize(
    ("label", "number"),
    [
        (2, 2),
        (-1, -1),
        (np.int8(-1), -1),
        (np.uint64(2), 2),
        (np.array(1), 1),
        (np.array([1], ">i2"), 1),
        (torch.tensor(2), 2),
        (torch.tensor([2], dtype=torch.int16), 2),
        (Kind.BEE, 1),
    ],
    ids=repr,
)
def test_an_integer_of_any_kind_is_a_class_number(label: Any, number: int) -> None:
    assert class_number(label, "example 0", NAMES, 3) == number
    assert type(class_number(label, "example 0", NAMES, 3)) is int


NO_LABELS: dict[str, tuple[Any, str, str]] = {
    "fraction": (1.7, "1.7", "return an integer; logitstore does not round"),
    "whole float": (np.float32(2), "2.0", "return an integer; logitstore does not round"),
    "nan": (float("nan"), "nan", "return an integer; logitstore does not round"),
    "boolean": (True, "True", "return 0 or 1"),
    "numpy's boolean": (np.bool_(False), "False", "return 0 or 1"),
    "none": (None, "None", "return -1 for an unknown label"),
    "digit": ("2", "'2'", "return the number of its class"),
    "name": ("bee", "'bee'", "return the number of its class, 1"),
    "bytes": (b"bee", "b'bee'", "return an integer; logitstore does not round"),
    "one-hot": (
        np.eye(3, dtype=np.int64)[1],
        "int64 array of shape (3,)",
        "return the number of the class instead of a number a class (argmax of a one-hot row)",
    ),
    "several": (
        torch.tensor([1, 0, 1]),
        "int64 tensor of shape (3,)",
        "return the number of the class instead of a number a class (argmax of a one-hot row)",
    ),
    "pair": ((1, "a.png"), "a tuple of 2", "return (input, label) alone"),
    "dict": ({"class": 1}, "a dict of 'class'", "return (input, label) alone"),
    "bfloat16": (
        torch.tensor(1.0, dtype=torch.bfloat16),
        "bfloat16 tensor 1.0",
        "return an integer; logitstore does not round",
    ),
    "gradient": (
        torch.tensor(1.0, requires_grad=True),
        "float32 tensor 1.0",
        "return an integer; logitstore does not round",
    ),
    "hours": (
        np.timedelta64(1, "h"),
        "datetime.timedelta(seconds=3600)",
        "return an integer; logitstore does not round",
    ),
    "masked": (
        np.ma.masked_array(1, mask=True),
        "int64 array 1",
        "return an integer; logitstore does not round",
    ),
    "object": (object(), "an object", "return an integer; logitstore does not round"),
}


@pytest.mark.parametrize(("label", "found", "remedy"), NO_LABELS.values(), ids=NO_LABELS)
def test_a_label_that_may_be_a_mistake_is_refused_with_its_example(
    label: Any, found: str, remedy: str
) -> None:
    with pytest.raises(BadDataError) as caught:
        class_number(label, "transfer_set, example 5", NAMES, 3)
    assert caught.value.where == "transfer_set, example 5"
    assert caught.value.expected == "a class number (an integer, -1 for unknown)"
    assert (caught.value.found, caught.value.remedy) == (found, remedy)


@pytest.mark.parametrize(
    ("label", "classes", "expected", "remedy"),
    [
        (3, 3, "a label from -1 to 2 (3 classes)", "or name all classes; labels count from 0"),
        (4, 3, "a label from -1 to 2 (3 classes)", "or name all classes"),
        (-100, 3, "a label from -1 to 2 (3 classes)", "return -1 for an unknown label"),
        (np.uint64(2**64 - 1), 0, f"a label from -1 to {2**63 - 1}", "or name all classes"),
        (10**30, 3, "a label from -1 to 2 (3 classes)", "or name all classes"),
    ],
)
def test_a_number_that_is_no_class_is_refused(label: Any, classes: int, expected: str, remedy: str) -> None:
    with pytest.raises(BadDataError) as caught:
        class_number(label, "example 0", (), classes)
    assert caught.value.expected == expected
    assert caught.value.remedy.endswith(remedy)


@pytest.mark.parametrize(
    ("item", "label"),
    [
        (X, None),
        ((X,), None),
        ((X, 2), 2),
        ([X, 2], 2),
        (Sample(X, 2), 2),
        ((torch.tensor(X, requires_grad=True), torch.tensor(2)), 2),
    ],
    ids=["input", "tuple of one", "pair", "list", "named tuple", "tensors"],
)
def test_each_form_of_an_item_is_read(item: Any, label: int | None) -> None:
    taken = split_item(item, "example 0")
    assert taken.is_labelled == (label is not None)
    np.testing.assert_array_equal(as_array(taken.input, "example 0"), X)
    assert class_number(taken.label, "example 0") == (-1 if label is None else label)


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ({"image": X, "label": 1}, "a dict of 'image', 'label'"),
        (({"image": X}, 1), "a dict of 'image' as the input"),
        ((X, 1, "a.png"), "a tuple of 3"),
        ((), "a tuple of 0"),
        ((Image.new("L", (2, 2)), 1), "an Image as the input"),
        (Image.new("L", (2, 2)), "an Image"),
        ("a.png", "'a.png'"),
        (None, "None"),
        ((None, 1), "None as the input"),
    ],
)
def test_an_item_of_another_form_is_refused(item: Any, found: str) -> None:
    with pytest.raises(BadDataError) as caught:
        read_inputs([X, item], [0, 7], "transfer_set")
    assert caught.value.where == "transfer_set, example 7"
    assert caught.value.found == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(3, dtype=torch.bfloat16), "bfloat16 tensor of shape (3,) ("),
        (torch.zeros(3).to_sparse(), "float32 tensor of shape (3,) ("),
        (torch.zeros(3, device="meta"), "float32 tensor of shape (3,) ("),
        ([[1, 2], [3]], "a list of 2 ("),
        (np.ma.masked_array([1.0, 2.0], mask=[True, False]), "a masked array that hides 1 of 2 values"),
    ],
    ids=["bfloat16", "sparse", "meta", "ragged", "masked"],
)
def test_an_input_that_numpy_cannot_hold_is_refused(value: Any, found: str) -> None:
    with pytest.raises(BadDataError) as caught:
        as_array(value, "example 3")
    assert caught.value.where == "example 3"
    assert caught.value.found.startswith(found)


@pytest.mark.parametrize(
    "value",
    [
        X.astype(">f4"),
        np.stack([X, X], axis=1)[:, 0],
        np.asfortranarray(X),
        torch.tensor(X)[::1],
        X[::-1][::-1],
    ],
    ids=["byte order", "strided", "fortran", "tensor", "reversed"],
)
def test_the_layout_of_an_input_does_not_matter(value: Any) -> None:
    inputs = read_inputs([value, X], [0, 1], "transfer_set")
    assert inputs.dtype == np.float32 and inputs.dtype.isnative
    np.testing.assert_array_equal(inputs, [X, X])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (X.astype(np.float64), r"float64 of shape \(3,\)"),
        (X.astype(np.int32), r"int32 of shape \(3,\)"),
        (X[:2], r"float32 of shape \(2,\)"),
        (X[None], r"float32 of shape \(1, 3\)"),
    ],
    ids=["wider", "integer", "shorter", "axis"],
)
def test_inputs_of_another_dtype_or_shape_are_named_and_never_converted(value: Any, found: str) -> None:
    """NumPy stacks dtypes to a common one; every row would then have another digest."""
    with pytest.raises(
        BadDataError, match=rf"set, example 7: expected float32 .* in example 4, found {found}"
    ):
        read_inputs([X, X, value], [4, 5, 7], "set")


def test_a_set_that_returns_fewer_items_is_named() -> None:
    class Short(list[Any]):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices[:-1]]

    assert len(fetch_items([X, X], [0, 1])) == 2
    with pytest.raises(BadDataError, match=r"expected 2 items of __getitems__, one an index, found 1"):
        fetch_items(Short([X, X]), [0, 1])


class Folder:
    """A folder of images as torchvision has it; its second file is broken."""

    samples = (("birds/a.png", 0), ("birds/b.png", 0), ("cats/c.png", 1))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            raise OSError("image file is truncated")
        return X


@pytest.mark.parametrize(
    ("dataset", "index"),
    [
        (Folder(), 1),
        (Subset(Folder(), [2, 1]), 1),
        (ConcatDataset([Folder(), Folder()]), 4),
        (type("Unlisted", (Folder,), {"samples": ()})(), 1),
    ],
    ids=["whole", "part", "joined", "without a list of files"],
)
def test_an_example_that_cannot_be_read_names_its_file(dataset: Any, index: int, sentence: Sentences) -> None:
    with pytest.raises(BadDataError) as caught:
        fetch_items(dataset, [index])
    sentence(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 2**64 - 1], np.uint64),
        np.array([0.0, 1.0]),
        np.array([True, False]),
        np.array([None, 1]),
        np.array(["0"]),
        np.ma.masked_array([0, 1], mask=[False, True]),
    ],
    ids=["beyond int64", "floats", "booleans", "objects", "texts", "hidden by a mask"],
)
def test_labels_of_a_store_are_integers(labels: Any) -> None:
    """2⁶⁴ - 1 as int64 would be -1, "unknown"."""
    assert as_labels([1, -1]).tolist() == [1, -1]
    with pytest.raises(ConfigError, match=r"^labels: expected one integer a row, found "):
        as_labels(labels)
