"""Rows of a store out of a data set: their order, their examples, and data sets of a user's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import experiments
from support.experiments import ROWS, document, parsed

from logitstore.pipeline.transfer import Examples, TransferRows
from logitstore.storage.errors import BadDataError, ConfigError
from logitstore.storage.random import philox_permutation


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the data."""
    experiments.write_data(tmp_path)
    return tmp_path


def transfer_rows(base: Path, **changes: Any) -> TransferRows:
    """The rows of a document with a changed `[transfer_set]`."""
    content = document()
    content["transfer_set"] |= changes
    return TransferRows(parsed(content, base))


def test_as_is_is_the_order_of_the_examples(base: Path) -> None:
    rows = transfer_rows(base, order="as_is")
    np.testing.assert_array_equal(rows.source, np.arange(ROWS))
    assert rows.identity["order"] == {"kind": "as_is"}


def test_a_shuffled_order_is_a_permutation_that_the_seed_gives(base: Path) -> None:
    by_seed = {seed: transfer_rows(base, seed=seed) for seed in (0, 1)}
    for seed, rows in by_seed.items():
        np.testing.assert_array_equal(np.sort(rows.source), np.arange(ROWS))
        np.testing.assert_array_equal(rows.source, philox_permutation(ROWS, seed, stream=0, counter=0))
        assert rows.identity["order"] == {"kind": "shuffled", "seed": seed}
    assert (by_seed[0].source != by_seed[1].source).any()
    assert (transfer_rows(base).source == by_seed[0].source).all()


def test_rows_are_the_examples_at_their_source(base: Path) -> None:
    rows = transfer_rows(base)
    inputs, labels = rows.rows(range(10, 31))
    assert inputs.shape == (21, *experiments.SHAPE)
    assert inputs.dtype == np.uint8
    assert labels.dtype == np.int64
    for position, row in enumerate(range(10, 31)):
        expected, label = rows.dataset[int(rows.source[row])]
        np.testing.assert_array_equal(inputs[position], expected)
        assert labels[position] == label
    # An array of its own: nobody's work in place reaches the data set.
    assert not np.shares_memory(inputs, rows.dataset.inputs)


def test_what_a_set_says_of_itself(base: Path) -> None:
    rows = transfer_rows(base)
    assert rows.num_classes == 4
    assert rows.class_names == [f"stroke {c}" for c in range(4)]
    assert rows.fingerprint == rows.dataset.fingerprint()
    assert rows.first.shape == experiments.SHAPE
    plain = transfer_rows(base, factory="support.experiments:no_fingerprint")
    assert (plain.fingerprint, plain.ids) == (None, None)
    np.testing.assert_array_equal(plain.rows(range(9))[0], rows.rows(range(9))[0])


class Given:
    """A data set of the items that are given; asked for one at a time."""

    def __init__(self, items: list[Any], class_names: list[str] | None = None) -> None:
        self.items = items
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def examples_of(items: list[Any], class_names: Any = None) -> Examples:
    """`Examples` over a data set of a test's own."""
    examples = Examples.__new__(Examples)
    examples.dataset, examples.where = Given(items, class_names), "transfer_set"
    return examples


TAKEN: dict[str, Callable[[int], Any]] = {
    "arrays and labels": lambda i: (np.full((2, 3), i, np.uint8), i),
    "tensors and labels": lambda i: (torch.full((2, 3), i, dtype=torch.uint8), torch.tensor(i)),
    "numpy's integers": lambda i: (np.full((2, 3), i, np.uint8), np.int32(i)),
    "lists": lambda i: (np.full((2, 3), i, np.uint8).tolist(), i),
}


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
def test_items_of_any_kind_become_arrays(make: Callable[[int], Any]) -> None:
    inputs, labels = examples_of([make(i) for i in range(4)]).fetch([3, 1])
    np.testing.assert_array_equal(inputs, np.stack([np.full((2, 3), i) for i in (3, 1)]))
    np.testing.assert_array_equal(labels, [3, 1])


def test_items_without_a_label_are_unlabelled() -> None:
    inputs, labels = examples_of([np.zeros(3, np.float32)] * 2).fetch([0, 1])
    assert (inputs.shape, labels.tolist()) == ((2, 3), [-1, -1])
    assert inputs.dtype == np.float32


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        (np.zeros(4, np.uint8), r"uint8 of shape \(4,\)"),
        (np.zeros(3, np.float32), r"float32 of shape \(3,\)"),
        (np.array(["a", "b", "c"]), r"<U1 of shape \(3,\)"),
    ],
)
def test_an_input_unlike_the_others_is_named(odd: Any, found: str) -> None:
    examples = examples_of([np.zeros(3, np.uint8), np.zeros(3, np.uint8), odd])
    message = rf"transfer_set, example 2: expected uint8 of shape \(3,\), as in example 0, found {found}"
    with pytest.raises(BadDataError, match=message):
        examples.fetch([0, 2])
    assert len(examples.fetch([0, 1])[0]) == 2


@pytest.mark.parametrize(
    ("names", "found"),
    [(None, "no class_names"), ([], "no class_names"), (["only"], r"class_names of 1 class \(only\)")],
)
def test_a_set_must_name_two_classes(names: list[str] | None, found: str) -> None:
    message = rf"transfer_set: expected class_names of at least 2 classes, found {found}; give"
    with pytest.raises(ConfigError, match=message):
        _ = examples_of([np.zeros(3, np.uint8)], names).num_classes


def without_labels(base: Path, **changes: Any) -> TransferRows:
    """The rows of a set of which nothing is known but its inputs."""
    args = {"file": "train.npz", "labels": "", "class_names": ""}
    return transfer_rows(base, args=args, **changes)


def test_the_experiment_can_state_the_classes_of_an_unlabelled_set(base: Path) -> None:
    rows = without_labels(base, num_classes=5)
    assert (rows.num_classes, rows.class_names) == (5, None)
    assert (rows.rows(range(3))[1] == -1).all()
    with pytest.raises(ConfigError) as caught:
        _ = without_labels(base).num_classes
    assert str(caught.value) == (
        "transfer_set: expected class_names of at least 2 classes, found no class_names; "
        "give the data set class_names, or set num_classes in [transfer_set]"
    )


def test_stated_classes_must_agree_with_those_that_the_set_names(base: Path) -> None:
    assert transfer_rows(base, num_classes=4).num_classes == 4
    with pytest.raises(ConfigError) as caught:
        transfer_rows(base, num_classes=5)
    assert str(caught.value) == (
        "transfer_set.num_classes: expected 4, the number of class_names of the data set, found 5; "
        "remove num_classes, or give the data set all class_names"
    )


def test_labels_are_checked_against_stated_classes() -> None:
    examples = examples_of([(np.zeros(3, np.uint8), label) for label in (0, 1, 2)])
    examples._stated = 2
    assert examples.fetch([0, 1])[1].tolist() == [0, 1]
    with pytest.raises(
        BadDataError, match=r"example 2: expected a label from -1 to 1 \(2 classes\), found 2"
    ):
        examples.fetch([0, 2])


def test_names_and_ids_of_a_set_are_checked_when_they_are_asked_for() -> None:
    examples = examples_of([np.zeros(3, np.uint8)] * 2, ["ant", "bee"])
    examples.dataset.ids = ["0.png", b"1.png"]
    assert (examples.class_names, examples.ids) == (["ant", "bee"], ["0.png", "1.png"])
    wrong = examples_of([np.zeros(3, np.uint8)] * 2, "ant")
    wrong.dataset.ids = ["0.png"]
    with pytest.raises(BadDataError, match=r"^transfer_set: class_names: expected a list of texts"):
        _ = wrong.class_names
    with pytest.raises(
        BadDataError, match=r"^transfer_set: ids: expected 2 ids, one a row, found a list of 1"
    ):
        _ = wrong.ids


def test_names_of_torchvision_are_compared_with_a_stated_number() -> None:
    examples = examples_of([(np.zeros(3, np.uint8), "bee")])
    examples.dataset.classes = ["ant", "bee"]
    assert examples.num_classes == 2
    with pytest.raises(
        BadDataError, match=r"example 0: expected a class number .* found 'bee'; return .*, 1$"
    ):
        examples.fetch([0])


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool"])
def test_inputs_of_a_dtype_that_no_store_keeps_are_refused(dtype: str) -> None:
    good, odd = np.zeros(3, np.float32), np.zeros(3, dtype)
    message = (
        f"transfer_set, example 1: expected inputs of dtype uint8, int64, float16 or float32, found {dtype}; "
        "cast them in the data set, fractions to float32"
    )
    with pytest.raises(BadDataError) as caught:
        examples_of([good, odd]).fetch([1])
    assert str(caught.value) == message
    with pytest.raises(
        BadDataError, match=f"example 1: expected float32 of shape .*, as in example 0, found {dtype}"
    ):
        examples_of([good, odd]).fetch([0, 1])
    assert examples_of([good, odd]).fetch([0])[0].dtype == np.float32


def test_a_dtype_that_no_store_keeps_is_refused_when_the_set_is_opened(base: Path) -> None:
    with np.load(base / "train.npz") as archive:
        arrays = dict(archive)
    for dtype in (np.float32, np.float64):
        np.savez(base / "own.npz", **arrays | {"inputs": arrays["inputs"].astype(dtype)})
        own = {"factory": "support.experiments:no_fingerprint", "args": {"file": "own.npz"}}
        if dtype is np.float32:
            assert len(transfer_rows(base, **own)) == ROWS
            continue
        with pytest.raises(
            BadDataError, match=r"transfer_set, example 0: expected inputs of .*found float64; cast"
        ):
            transfer_rows(base, **own)
        # The package's own reader casts them itself.
        assert transfer_rows(base, args={"file": "own.npz"}).first.dtype == np.float32
