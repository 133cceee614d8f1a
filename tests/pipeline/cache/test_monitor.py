"""The quality line: its figures are those of the rows, and it stops a teacher beyond the limits."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from logitstore.pipeline.cache import monitor as module
from logitstore.pipeline.cache.monitor import Quality
from logitstore.storage.errors import BadLogitsError

RANDOM = np.random.default_rng(3)
LOGITS = RANDOM.normal(size=(2, 3, 40, 5)).astype(np.float32) * 3
"""(teacher, block, row, class)."""
LABELS = RANDOM.integers(-1, 5, size=(3, 40))


@pytest.mark.parametrize("piece", [1, 35, 1 << 18])
def test_the_figures_are_those_of_all_labelled_rows(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    quality = Quality(["a", "b"])
    for block in range(3):
        for number, name in enumerate("ab"):
            quality.note(name, (0, block), LOGITS[number, block], LABELS[block])
    known = LABELS.reshape(-1) >= 0
    for number, name in enumerate("ab"):
        z, labels = LOGITS[number].reshape(-1, 5)[known], LABELS.reshape(-1)[known]
        tally = quality.tallies[name]
        assert tally.rows == known.sum() < LABELS.size
        assert tally.accuracy == (z.argmax(axis=1) == labels).mean()
        expected = F.cross_entropy(torch.from_numpy(z).double(), torch.from_numpy(labels)).item()
        assert tally.nll == pytest.approx(expected, rel=1e-6)
    differ = LOGITS[0].argmax(axis=-1) != LOGITS[1].argmax(axis=-1)
    assert (quality.compared, quality.disagreed) == (120, differ.sum())
    assert quality.detail.startswith(f"a {quality.tallies['a'].accuracy:.2%} right, ")
    assert quality.detail.endswith(f"they disagree on {differ.mean():.2%}")


def test_three_teachers_disagree_where_not_all_say_the_same() -> None:
    quality = Quality(["a", "b", "c"])
    predicted = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
    for name, classes in zip("abc", predicted, strict=True):
        quality.note(name, (0, 0), np.eye(2, dtype=np.float32)[classes], np.full(4, -1))
    assert (quality.compared, quality.disagreed) == (4, 3)
    assert quality.detail == "they disagree on 75.00%"


def test_rows_that_teachers_saw_apart_are_not_compared() -> None:
    quality = Quality(["a", "b"])
    for at in ((0, 0), (1, 0), (0, 1)):
        quality.note("a", at, LOGITS[0, 0], LABELS[0])
    quality.note("b", (0, 2), LOGITS[1, 0], LABELS[0])
    assert quality.compared == 0


def test_centred_halves_have_the_same_figures_up_to_rounding() -> None:
    ours, theirs = Quality(["a"]), Quality(["a"])
    z = LOGITS[0, 0]
    ours.note("a", (0, 0), z, LABELS[0])
    theirs.note("a", (0, 0), (z - z.max(axis=1, keepdims=True)).astype(np.float16), LABELS[0])
    assert theirs.tallies["a"].right == ours.tallies["a"].right
    assert theirs.tallies["a"].nll == pytest.approx(ours.tallies["a"].nll, abs=2e-3)


def test_logits_that_are_not_finite_are_left_to_who_stores_them() -> None:
    quality = Quality(["a"], stop_below=1.0)
    spoilt = LOGITS[0, 0].copy()
    spoilt[:, 2] = np.nan
    quality.note("a", (0, 0), spoilt, np.zeros(40, np.int64))
    quality.judge("a", "teacher 'a'", last=True)
    assert quality.tallies["a"].rows == 0
    assert math.isnan(quality.tallies["a"].accuracy)
    assert quality.detail == ""


def test_a_teacher_is_judged_when_enough_is_known_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_ROWS", 60)
    quality = Quality(["a"], stop_below=0.5)
    labels = (LOGITS[0, 0].argmax(axis=1) + 1) % 5  # all wrong
    quality.note("a", (0, 0), LOGITS[0, 0], labels)
    quality.judge("a", "teacher 'a'")
    with pytest.raises(BadLogitsError, match=r"teacher 'a': accuracy on the first 40 labelled rows"):
        quality.judge("a", "teacher 'a'", last=True)
    quality.note("a", (0, 1), LOGITS[0, 0], labels)
    with pytest.raises(BadLogitsError) as caught:
        quality.judge("a", "teacher 'a'")
    assert str(caught.value).startswith(
        "teacher 'a': accuracy on the first 80 labelled rows: expected at least 0.5 (--stop-below), found 0, "
    )


def test_a_teacher_that_is_good_enough_goes_on() -> None:
    quality = Quality(["a"], stop_below=1.0)
    quality.note("a", (0, 0), LOGITS[0, 0], LOGITS[0, 0].argmax(axis=1))
    quality.judge("a", "teacher 'a'", last=True)
