"""Data sets as users have them: what is taken, and the one line for what is not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.children import environment
from support.hands import Darker, Net, Pictures, cached
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

import logitstore
from logitstore.pipeline.in_hand.data_sets import data_set_in_hand
from logitstore.storage.errors import BadDataError, ConfigError

pytestmark = pytest.mark.usefixtures("without_fsync")
IMAGES = Pictures().images
LABELS = Pictures().targets


class Rows:
    """A data set of dicts, with a ClassLabel, as those of Hugging Face."""

    def __init__(self, image: str = "image", *, label: str = "label", more: str | None = None) -> None:
        self.keys = image, label, more
        names = type("ClassLabel", (), {"names": ["a", "b", "c", "d"]})()
        self.features = {label: names}

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label, more = self.keys
        row = {
            image: torch.from_numpy(IMAGES[index]),
            label: torch.tensor(LABELS[index]),
            "id": f"{index}.png",
        }
        return row | ({more: 0} if more else {})


class Endless(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(4, 4), 0


SETS: dict[str, Any] = {
    "arrays": (IMAGES, LABELS),
    "tensors": (torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
    "tensor set": TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
    "pictures": Pictures(),
    "parts": ConcatDataset([Subset(Pictures(), range(50)), Subset(Pictures(), range(50, 150))]),
    "rows": Rows(),
    "rows of other names": Rows("img", label="fine_label"),
    "list": [(IMAGES[i], int(LABELS[i])) for i in range(150)],
}


@pytest.mark.parametrize("name", SETS)
def test_each_form_of_the_same_examples_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    store = logitstore.cache(tmp_path / "store.zarr", {"net": Net()}, SETS[name], order="as_is", device="cpu")
    assert store.samples.labels.tolist() == LABELS.tolist()
    assert store.samples.digests.tolist() == logitstore.digest_rows(IMAGES).tolist()
    expected = {"rows": list("abcd"), "rows of other names": list("abcd")}
    assert store.num_classes == 4
    if name in ("pictures", "parts"):
        assert store.class_names == Pictures().classes
    else:
        assert store.class_names == expected.get(name, ["0", "1", "2", "3"])


def test_inputs_without_labels_take_the_classes_of_the_network(tmp_path: Path) -> None:
    store = logitstore.cache(tmp_path / "store.zarr", {"net": Net()}, IMAGES, device="cpu")
    assert store.num_classes == 4 and (store.samples.labels == -1).all()


def test_given_names_replace_those_of_the_set(tmp_path: Path) -> None:
    names = ["w", "x", "y", "z"]
    for number, dataset in enumerate((Pictures(), (IMAGES, LABELS))):
        place = tmp_path / f"{number}.zarr"
        store = logitstore.cache(place, {"net": Net()}, dataset, class_names=names, device="cpu")
        assert store.class_names == names


REFUSED: dict[str, Any] = {
    "PIL": [(Image.fromarray(IMAGES[0]), 0)],
    "PIL in rows": [{"image": Image.fromarray(IMAGES[0]), "label": 0}],
    "loader": DataLoader(Pictures(), batch_size=4),
    "iterable": Endless(),
    "path": "data/train",
    "class": Pictures,
    "dict of arrays": {"image": IMAGES, "label": LABELS},
    "nothing": [],
    "two images": Rows(more="pixel_values"),
    "two labels": Rows(more="target"),
    "no known key": [{"a": IMAGES[0], "b": 1}],
    "a set that fails": type("Fails", (Pictures,), {"__getitem__": lambda self, index: 1 // 0})(),
    "three": TensorDataset(*[torch.from_numpy(LABELS)] * 3),
    "labels of another length": (IMAGES, LABELS[:5]),
    "masked inputs": (np.ma.masked_equal(IMAGES, IMAGES[0, 0, 0]), LABELS),
    "masked labels": (IMAGES, np.ma.masked_equal(LABELS, 0)),
    "a tensor of bfloat16": (torch.zeros(150, 4, 4, dtype=torch.bfloat16), LABELS),
    "a label that is none": [(IMAGES[0], "cat")],
    "a label beyond": [(IMAGES[0], 1), (IMAGES[1], 7)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_a_line(name: str, tmp_path: Path, sentence: Any) -> None:
    with pytest.raises((BadDataError, ConfigError)) as refused:
        logitstore.cache(tmp_path / "store.zarr", {"net": Net()}, REFUSED[name], device="cpu")
    sentence(refused.value)
    assert not (tmp_path / "store.zarr").exists()


def test_the_evaluation_set_is_looked_at_before_the_first_teacher(tmp_path: Path, sentence: Any) -> None:
    for evaluation in (IMAGES, (IMAGES.astype(np.float32), LABELS), REFUSED["PIL"]):
        with pytest.raises((BadDataError, ConfigError)) as refused:
            cached(tmp_path, evaluation=evaluation)
        sentence(refused.value)
    assert not (tmp_path / "store.zarr").exists()


def test_workers_prepare_the_same_bytes(tmp_path: Path) -> None:
    assert cached(tmp_path / "with", workers=1).digest == cached(tmp_path / "without").digest


def test_things_that_no_worker_can_have_are_refused(tmp_path: Path) -> None:
    darker = Darker()
    with pytest.raises(ConfigError) as refused:
        cached(tmp_path, workers=2, augment=lambda image, generator: darker(image, generator))
    assert refused.value.where == "workers"
    assert "pickle" in refused.value.found


SCRIPT = """
import logitstore
import numpy as np
from support.hands import Darker, Net, Pictures

"""
CALLS = {
    "cache": 'logitstore.cache("store.zarr", {"net": Net()}, Pictures(), workers=1, device="cpu")',
    # Its pipe does not hold the data set.
    "cache of a large set": """
large = np.zeros((50_000, 4, 4), np.uint8), np.arange(50_000) % 4
logitstore.cache("store.zarr", {"net": Net()}, large, workers=1, device="cpu")
""",
    # A worker that went on would wait for the training of its parent.
    "distill": """
store = logitstore.cache("store.zarr", {"net": Net()}, Pictures(), views=2, augment=Darker(), device="cpu")
logitstore.distill(
    store, Net(), augment=Darker(), views=1, lr=0.1, epochs=1, checkpoint="kept", workers=2, device="cpu"
)
""",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_script_that_calls_when_it_is_imported_is_told_of_the_guard(
    tmp_path: Path, sentence: Any, call: str
) -> None:
    """Each worker imports the script; `test_workers_prepare_the_same_bytes` is the control."""
    (tmp_path / "script.py").write_text(SCRIPT + CALLS[call])
    ended = subprocess.run(
        [sys.executable, "script.py"],
        check=False,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    *_, line = ended.stderr.splitlines()
    sentence(line)
    assert "freeze_support" not in ended.stderr  # of a worker's traceback


def test_a_set_is_stated_by_its_class_alone() -> None:
    """Its content is compared with the store: two objects of a class are told apart by their rows."""
    given = data_set_in_hand(Pictures(), "dataset")
    assert (given.factory, given.args) == ("support.hands:Pictures", {})
