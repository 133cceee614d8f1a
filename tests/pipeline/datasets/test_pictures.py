"""Laws of sets of Pillow images: pixels, labels and names of the set, whatever the form of its items."""

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.messages import Sentences

from logitstore.pipeline.datasets import hugging_face, pil_images, torchvision
from logitstore.pipeline.factories.call import expect_dataset
from logitstore.storage.errors import BadDataError, ConfigError, FactoryError, MissingPackage

ROWS = 10
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 6, 5, 3), dtype=np.uint8)
LABELS = [row % 3 for row in range(ROWS)]


class Pairs:
    """A data set as those of torchvision."""

    classes = ("ant", "bee", "cat")

    def __init__(self, labels: Any = LABELS, *, lists: bool = True) -> None:
        self.given = labels
        if lists:
            self.targets = labels

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        return Image.fromarray(PIXELS[row]), self.given[row]


@dataclass
class ClassLabel:
    """The form of a column of classes."""

    names: tuple[str, ...]


class Rows(Pairs):
    """A data set of dicts as those of Hugging Face, without its columns."""

    classes = ()  # type: ignore[assignment]

    def __init__(self, image: str = "image", label: str = "label", labels: Any = LABELS) -> None:
        super().__init__(labels, lists=False)
        self.keys = image, label
        self.features = {label: ClassLabel(("ant", "bee", "cat")), "second": ClassLabel(("x", "y"))}

    def __getitem__(self, row: int) -> Any:
        return dict(zip(self.keys, super().__getitem__(row), strict=True)) | {"second": 1}


FORMS: dict[str, Callable[[], Any]] = {
    "pairs": lambda: pil_images(Pairs()),
    "pairs without a list of labels": lambda: pil_images(Pairs(lists=False)),
    "rows": lambda: pil_images(Rows()),
    "rows of other names": lambda: pil_images(Rows("img", "fine"), image="img", label="fine"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_are_those_of_the_set(form: str) -> None:
    read = FORMS[form]()
    assert len(read) == ROWS and list(read.class_names) == ["ant", "bee", "cat"]
    for copy in (read, pickle.loads(pickle.dumps(read))):
        for row, (image, label) in enumerate(copy.__getitems__(list(range(ROWS)))):
            assert image.dtype == np.uint8 and np.array_equal(image, PIXELS[row].transpose(2, 0, 1))
            assert label == LABELS[row]
    assert expect_dataset(read, "a:b") is read


@pytest.mark.parametrize("form", [Pairs, lambda: Pairs(lists=False), Rows])
def test_a_selection_keeps_images_and_labels_together(form: Any) -> None:
    read = pil_images(form(), omit_classes=["bee"], subset="1:5")
    rows = [2, 3, 5, 6]
    assert read.omitted == (1,) and len(read) == 4
    for (image, label), row in zip(read.__getitems__([0, 1, 2, 3]), rows, strict=True):
        assert np.array_equal(image, PIXELS[row].transpose(2, 0, 1)) and label == LABELS[row]
    assert read.labels is not None and read.labels.tolist() == [LABELS[row] for row in rows]


def test_sizes_and_modes_are_arguments() -> None:
    read = pil_images(Pairs(), mode="L", resize=10, crop=8)
    expected = Image.fromarray(PIXELS[0]).convert("L").resize((10, 12), 2).crop((1, 2, 9, 10))
    assert np.array_equal(read[0][0], np.asarray(expected))


def test_labels_that_are_missing_are_unknown() -> None:
    read = pil_images(Rows(labels=[None, *LABELS[1:]]))
    assert [label for _, label in read.__getitems__([0, 1])] == [-1, 1]
    unlabelled = pil_images(Rows(), label="")
    assert isinstance(unlabelled[0], np.ndarray) and unlabelled.labels is None


REFUSED: dict[str, Callable[[], Any]] = {
    "another key": lambda: pil_images(Rows("img"))[0],
    "an array": lambda: pil_images([(PIXELS[0], 0)])[0],
    "three": lambda: pil_images([(Image.fromarray(PIXELS[0]), 0, 1)])[0],
    "16 bits": lambda: pil_images([(Image.fromarray(np.zeros((2, 2), np.uint16)), 0)])[0],
    "transparent": lambda: pil_images([(Image.new("RGBA", (2, 2)), 0)])[0],
    "two sizes": lambda: pil_images([(Image.new("L", (2, 2)), 0), (Image.new("L", (3, 2)), 0)])[1],
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_items_are_refused_with_their_example(case: str, sentence: Sentences) -> None:
    with pytest.raises(BadDataError) as caught:
        REFUSED[case]()
    assert ", example " in caught.value.where
    sentence(caught.value)


def test_a_factory_of_images_is_told_of_the_adapter(sentence: Sentences) -> None:
    for dataset in (Pairs(), Rows(), [{"input_ids": [1, 2], "label": 0}]):
        with pytest.raises(FactoryError) as caught:
            expect_dataset(dataset, "mine:birds")
        sentence(caught.value)


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match="pip install torchvision"):
        torchvision("CIFAR10", tmp_path)
    with pytest.raises(MissingPackage, match="pip install datasets"):
        hugging_face(tmp_path)


def test_a_class_that_is_none_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="omit_classes"):
        pil_images(Pairs(), omit_classes=["dog"])
