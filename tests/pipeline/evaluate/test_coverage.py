"""Laws of the table by cover, and the paper's own numbers put through it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline.evaluate.coverage import Coverage, coverage, covers_of
from logitstore.storage.errors import BadDataError, ConfigError

CLASSES = 9
JFT = [
    (0, 350037, 0, 0.0),
    (1, 141993, 1421, 3.4),
    (2, 67161, 1572, 7.4),
    (3, 38801, 1124, 8.8),
    (4, 26298, 835, 10.5),
    (5, 16474, 561, 11.1),
    (6, 10682, 362, 11.3),
    (7, 7376, 232, 12.8),
    (8, 4703, 182, 13.6),
    (9, 4706, 208, 16.6),
    (10, 9082, 324, 14.1),
]
"""Table 4: sets that hold the class, test examples, change in the number correct, relative change in percent."""


def drawn(seed: int, rows: int, sets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    random = np.random.default_rng(seed)
    labels = random.integers(-1, CLASSES, rows)
    before, after = random.random(rows) < 0.4, random.random(rows) < 0.5
    members = [
        np.append(np.sort(random.choice(CLASSES, random.integers(1, CLASSES), replace=False)), -1)
        for _ in range(sets)
    ]
    return labels, before, after, members


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 14), st.integers(1, 12))
def test_it_is_what_its_definition_says(seed: int, rows: int, sets: int, most: int) -> None:
    """Counted a row at a time, with the sets themselves."""
    labels, before, after, members = drawn(seed, rows, sets)
    counted: dict[int, list[int]] = {}
    for label, was, now in zip(labels.tolist(), before, after, strict=True):
        if label >= 0:
            cover = min(most, sum(label in one.tolist() for one in members))
            line = counted.setdefault(cover, [0, 0, 0])
            line[0], line[1], line[2] = line[0] + 1, line[1] + int(was), line[2] + int(now)
    covers = covers_of(members, CLASSES)
    found = coverage(before, after, labels, covers, num_sets=sets).rows(most)
    assert {row.covering: [row.examples, row.before, row.after] for row in found} == counted
    assert [row.covering for row in found] == sorted(counted)
    assert [row.label for row in found if row.or_more] in ([], [f"{most} or more"])


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_batches_add_up_and_the_total_is_all_of_them(seed: int, cut: int) -> None:
    labels, before, after, members = drawn(seed, 30, 5)
    covers = covers_of(members, CLASSES)
    parts = [
        coverage(before[s], after[s], labels[s], covers, num_sets=5)
        for s in (slice(None, cut), slice(cut, None))
    ]
    whole = coverage(before, after, labels, covers, num_sets=5)
    assert np.array_equal((parts[0] + parts[1]).counts, whole.counts)
    known = labels >= 0
    total = whole.total
    assert (total.examples, total.before, total.after) == (
        known.sum(),
        (before & known).sum(),
        (after & known).sum(),
    )
    assert total.change == sum(row.change for row in whole.rows())


def test_the_papers_table_comes_out_of_its_own_counts() -> None:
    """Its relative changes are of the number that was right; what was right follows from them, but for rounding."""
    counts = np.zeros((3, 62), np.int64)
    for cover, examples, change, relative in JFT:
        before = round(100 * change / relative) if relative else examples // 5
        counts[:, cover] = examples, before, before + change
    rows = Coverage(counts).rows()
    assert [(row.covering, row.examples, row.change) for row in rows] == [line[:3] for line in JFT]
    assert [round(100 * row.relative, 1) for row in rows] == [line[3] for line in JFT]
    assert rows[-1].label == "10 or more"
    assert Coverage(counts).total.examples == 677313
    assert Coverage(counts).total.change == 6821


def test_covers_larger_than_ten_are_one_row() -> None:
    counts = np.zeros((3, 15), np.int64)
    counts[0, [9, 10, 14]], counts[1, [10, 14]], counts[2, 14] = (5, 6, 7), (1, 2), 2
    assert [(row.label, row.examples, row.change) for row in Coverage(counts).rows()] == [
        ("9", 5, 0),
        ("10 or more", 13, -1),
    ]
    with pytest.raises(ConfigError, match="most: expected 1 or more"):
        Coverage(counts).rows(0)


def test_a_change_of_nothing_has_no_share() -> None:
    row = Coverage(np.array([[2], [0], [1]])).rows()[0]
    assert (row.change, row.label) == (1, "0") and math.isnan(row.relative)


def test_a_dustbin_covers_nothing_and_a_class_counts_once_a_set() -> None:
    assert covers_of([[0, 0, 3, -1], [3]], 4).tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize("member", [-2, 4])
def test_a_member_that_is_no_class_is_refused(member: int) -> None:
    with pytest.raises(BadDataError, match=rf"sets: expected classes from 0 to 3, found {member}; "):
        covers_of([[0, member]], 4)
