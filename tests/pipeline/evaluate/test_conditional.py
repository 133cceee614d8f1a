"""Laws of the conditional accuracy: special examples alone, special predictions alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline.evaluate.coverage import Conditional, conditional, special_classes
from logitstore.storage.errors import BadDataError

CLASSES = 7


def slowly(logits: np.ndarray, labels: np.ndarray, special: list[int], classes: list[int]) -> tuple[int, int]:
    """The definition, a row at a time."""
    examples = correct = 0
    for row, label in zip(logits, labels, strict=True):
        if label in special:
            examples += 1
            allowed = [(-row[classes.index(c)], c) for c in special]
            correct += min(allowed)[1] == label
    return examples, correct


@given(st.integers(0, 2**32), st.integers(0, 20), st.data())
def test_it_is_what_its_definition_says(seed: int, rows: int, data: st.DataObject) -> None:
    """Small whole logits, so that ties are many; columns in any order, with a dustbin among them."""
    random = np.random.default_rng(seed)
    columns = data.draw(st.permutations(list(range(-1, CLASSES))))
    special = data.draw(st.lists(st.integers(0, CLASSES - 1), unique=True, min_size=1))
    logits = random.integers(0, 3, (rows, len(columns))).astype(np.float32)
    labels = random.integers(-1, CLASSES, rows)
    found = conditional(logits, labels, np.array(special), columns=np.array(columns, np.int64))
    assert (found.examples, found.correct) == slowly(logits, labels, special, columns)


@given(st.integers(0, 2**32), st.integers(0, 20))
def test_batches_add_up(seed: int, cut: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(20, CLASSES)), random.integers(-1, CLASSES, 20)
    special = np.array([1, 4, 5])
    parts = [conditional(logits[s], labels[s], special) for s in (slice(None, cut), slice(cut, None))]
    assert parts[0] + parts[1] == conditional(logits, labels, special)


def test_with_all_classes_special_it_is_the_accuracy() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, CLASSES)), random.integers(0, CLASSES, 50)
    found = conditional(logits, labels, np.arange(CLASSES))
    assert found.accuracy == (logits.argmax(axis=1) == labels).mean()


def test_restricting_the_predictions_can_only_help() -> None:
    """Of the examples of special classes, each that is right is right among fewer."""
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(200, CLASSES)), random.integers(0, CLASSES, 200)
    special = np.array([0, 3])
    kept = np.isin(labels, special)
    unrestricted = int((logits[kept].argmax(axis=1) == labels[kept]).sum())
    found = conditional(logits, labels, special)
    assert found.correct > unrestricted, "a seed at which the two differ: else this tests nothing"


def test_what_a_constant_or_another_class_is_does_not_matter() -> None:
    random = np.random.default_rng(2)
    logits, labels = random.normal(size=(40, CLASSES)), random.integers(0, CLASSES, 40)
    special = np.array([2, 5])
    changed = logits + random.normal(size=(40, 1))
    changed[:, [0, 1, 3, 4, 6]] = 99.0
    assert conditional(changed, labels, special) == conditional(logits, labels, special)


def test_without_examples_there_is_no_accuracy() -> None:
    none = conditional(np.zeros((3, CLASSES)), np.array([-1, 0, 0]), np.array([1]))
    assert none == Conditional(0, 0) and math.isnan(none.accuracy)
    assert conditional(np.zeros((3, CLASSES)), np.zeros(3, np.int64), np.array([], np.int64)) == Conditional()


def test_a_class_without_a_column_is_refused() -> None:
    with pytest.raises(BadDataError, match=r"special classes: expected .* found 3, which is none"):
        conditional(np.zeros((1, 2)), np.array([0]), np.array([0, 3]), columns=np.array([0, -1]))


def test_special_classes_are_those_of_any_set() -> None:
    assert special_classes([np.array([4, 1, -1]), np.array([4, 0, -1])]).tolist() == [0, 1, 4]
    assert special_classes([]).tolist() == []
