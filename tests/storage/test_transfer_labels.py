"""Labels and length of a transfer set that gives the inputs of a stream: they are those of the store."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores
from support.stores import Made, Teacher

from logitstore.storage.api import begin_store, create_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import BadDataError, ConfigError, RowMismatch

ROWS, ODD = 37, 20
STREAM: dict[str, Any] = {"batch_size": 8, "shuffle": False, "views": 0}


class Plain:
    """A transfer set of pairs."""

    def __init__(self, inputs: NDArray[Any], labels: Any) -> None:
        self.inputs, self.of_item, self.fetched = inputs, labels, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        self.fetched += 1
        return self.inputs[index], self.of_item[index]


class Listed(Plain):
    """One that lists its labels, as data sets of torchvision do."""

    def __init__(self, inputs: NDArray[Any], labels: Any, listed: Any = None) -> None:
        super().__init__(inputs, labels)
        self.targets = labels if listed is None else listed


class Bare(Listed):
    """One whose items have no label."""

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store without inputs; its labels are -1 in places."""
    folder = tmp_path_factory.mktemp("labels")
    return stores.make(folder / "s.zarr", store_inputs=False, teachers={"wide": Teacher()}, names=False)


def changed(made: Made) -> NDArray[np.int64]:
    labels = made.labels.copy()
    assert labels[ODD] >= 0
    labels[ODD] = (labels[ODD] + 1) % 5
    return labels


def refused(made: Made, call: Callable[[], Any], found: str) -> None:
    with pytest.raises(RowMismatch) as caught:
        call()
    assert caught.value.where == f"row {ODD} (index {ODD} of the transfer set): label"
    assert (caught.value.expected, caught.value.found) == (str(made.labels[ODD]), found)
    assert caught.value.remedy == "give the transfer set the labels of the store, or make a new store"


@pytest.mark.parametrize("kind", [Plain, Listed, Bare])
def test_the_labels_of_the_store_pass(made: Made, kind: type[Listed]) -> None:
    batches = list(made.store.stream(**STREAM, transfer_set=kind(made.inputs, made.labels)))
    assert np.array_equal(np.concatenate([batch.labels for batch in batches]), made.labels)


def test_a_changed_label_is_refused_with_its_example(made: Made) -> None:
    labels = changed(made)
    stream = made.store.stream(**STREAM, transfer_set=Plain(made.inputs, labels))
    refused(made, lambda: list(stream), str(labels[ODD]))


def test_a_changed_list_is_refused_at_once(made: Made) -> None:
    labels = changed(made)
    data = Listed(made.inputs, labels)
    refused(made, lambda: made.store.stream(**STREAM, transfer_set=data), str(labels[ODD]))
    assert data.fetched == 1
    said = f"{labels[ODD]} (1 of {ROWS} rows differ)"
    refused(made, lambda: made.store.stream(**STREAM, transfer_set=Bare(made.inputs, labels)), said)
    without = {**STREAM, "inputs": False}
    refused(made, lambda: made.store.stream(**without, transfer_set=Bare(made.inputs, labels)), said)


def test_a_list_that_the_items_correct_is_not_believed(made: Made) -> None:
    """Take a set with a `target_transform`, whose items have other labels than its list."""
    data = Listed(made.inputs, made.labels, listed=changed(made))
    assert list(made.store.stream(**STREAM, transfer_set=data))


@pytest.mark.parametrize("kind", [Plain, Listed, Bare])
def test_an_unknown_label_contradicts_none(made: Made, tmp_path: Path, kind: type[Listed]) -> None:
    unknown = np.full(ROWS, -1)
    assert list(made.store.stream(**STREAM, transfer_set=kind(made.inputs, unknown)))
    store = create_store(tmp_path / "s.zarr", num_classes=5, inputs=made.inputs)
    assert list(store.stream(**STREAM, transfer_set=kind(made.inputs, made.labels)))


def test_a_label_that_is_no_class_number_is_refused_where_the_store_has_one(
    made: Made, tmp_path: Path
) -> None:
    texts = [f"class {label}" for label in made.labels]
    with pytest.raises(BadDataError, match=r"transfer set, example \d+: expected a class number"):
        list(made.store.stream(**STREAM, transfer_set=Plain(made.inputs, texts)))
    store = create_store(tmp_path / "s.zarr", num_classes=5, inputs=made.inputs)
    assert list(store.stream(**STREAM, transfer_set=Plain(made.inputs, texts)))


@pytest.mark.parametrize("more", [1, 5])
def test_a_longer_set_is_refused(made: Made, more: int) -> None:
    inputs = np.concatenate([made.inputs, made.inputs[:more]])
    with pytest.raises(ConfigError) as caught:
        made.store.stream(**STREAM, transfer_set=inputs)
    assert caught.value.expected == f"{ROWS} examples, as in the transfer set of the store"
    assert caught.value.found == str(ROWS + more)
    assert caught.value.remedy == "pass the transfer set that this store was made from"


def test_a_selection_of_a_larger_set_takes_the_whole_of_it(tmp_path: Path) -> None:
    """Take the inputs of every other example, as a store of a selection does."""
    inputs = stores.some_inputs(8)
    store = begin_store(tmp_path / "s.zarr", num_rows=4, num_classes=2, block_rows=4)
    writer = store.samples_writer(identity={"transfer_set": None})
    with contextlib.closing(writer):
        source = np.arange(0, 8, 2)
        writer.write(range(4), source=source, digest=digest_rows(inputs[source]), label=np.zeros(4, np.int64))
        writer.seal()
    (batch,) = store.stream(batch_size=4, shuffle=False, transfer_set=inputs)
    assert np.array_equal(batch.inputs, inputs[::2])
    with pytest.raises(ConfigError, match="transfer_set: expected at least 7 examples"):
        store.stream(transfer_set=inputs[:6])
