"""Laws of the metrics: any batches, the definitions, and numbers known otherwise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, top_k_accuracy_score

from logitstore.pipeline.evaluate.metrics import (
    Accumulator,
    agreement,
    ensemble_logits,
    evaluate_logits,
    log_softmax,
)
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError


def draw(seed: int, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = (3 * generator.normal(size=(rows, classes))).astype(np.float32)
    return logits, generator.integers(classes, size=rows)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 8), st.lists(st.integers(0, 60), max_size=4))
def test_any_batches_give_the_same(seed: int, rows: int, classes: int, cuts: list[int]) -> None:
    logits, labels = draw(seed, rows, classes)
    whole = evaluate_logits(logits, labels)
    parts = [Accumulator(classes), Accumulator(classes)]
    for index, batch in enumerate(np.split(np.arange(rows), sorted(min(cut, rows) for cut in cuts))):
        parts[index % 2].update(logits[batch], labels[batch])
    parts[0].merge(parts[1])
    result = parts[0].result()
    assert (result.rows, result.errors, result.top_k_errors) == (rows, whole.errors, whole.top_k_errors)
    assert result.nll == pytest.approx(whole.nll, rel=1e-12)
    assert result.calibration_error == pytest.approx(whole.calibration_error, abs=1e-12)


@given(st.integers(0, 2**32), st.sampled_from([0.5, 1.0, 20.0]))
def test_definitions(seed: int, temperature: float) -> None:
    logits, labels = draw(seed, 40, 6)
    result = evaluate_logits(logits, labels, temperature=temperature, top_k=3)
    probabilities = np.exp(log_softmax(logits, temperature))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    classes = np.arange(6)
    assert result.nll == pytest.approx(log_loss(labels, probabilities, labels=classes))
    assert result.top_k_accuracy == pytest.approx(top_k_accuracy_score(labels, logits, k=3, labels=classes))
    assert result.errors == (logits.argmax(axis=1) != labels).sum()
    assert result.accuracy == pytest.approx(1 - result.errors / 40)
    # A constant on each row is not seen.
    moved = evaluate_logits(logits.astype(np.float64) + labels[:, None], labels, temperature=temperature)
    assert moved.nll == pytest.approx(result.nll)


def test_a_model_that_knows_nothing() -> None:
    result = evaluate_logits(np.zeros((10, 10)), np.arange(10), top_k=4)
    assert result.nll == pytest.approx(math.log(10))
    assert (result.errors, result.top_k_errors) == (9, 6)
    assert result.calibration_error == pytest.approx(0)


def test_nothing_underflows() -> None:
    result = evaluate_logits(np.array([[0.0, 5000.0]], np.float32), np.array([0]))
    assert result.nll == pytest.approx(5000)
    assert result.calibration_error == pytest.approx(1)


def test_calibration_error_by_hand() -> None:
    """Confidence .8 four times, right three times; confidence .6 twice, right twice: (.2 + .8) / 6."""
    logits = np.log([[0.8, 0.2]] * 4 + [[0.6, 0.4]] * 2)
    labels = np.array([0, 0, 0, 1, 0, 0])
    result = evaluate_logits(logits, labels, bins=10)
    assert result.calibration_error == pytest.approx((abs(3 - 3.2) + abs(2 - 1.2)) / 6)
    # With a single bin the two errors partly cancel.
    assert evaluate_logits(logits, labels, bins=1).calibration_error == pytest.approx(abs(5 - 4.4) / 6)


def test_a_model_that_is_calibrated_and_one_that_is_not() -> None:
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(100_000, 4))
    probabilities = np.exp(log_softmax(logits))
    labels = (probabilities.cumsum(axis=1) < generator.random((100_000, 1))).sum(axis=1)
    assert evaluate_logits(logits, labels).calibration_error < 0.01
    assert evaluate_logits(3 * logits, labels).calibration_error > 0.1


def test_rows_without_a_label_are_left_out() -> None:
    logits, labels = draw(1, 30, 5)
    labels[::3] = -1
    assert evaluate_logits(logits, labels) == evaluate_logits(logits[labels >= 0], labels[labels >= 0])
    with pytest.raises(BadDataError, match=r"^labels: expected at least one labelled row, found none; "):
        evaluate_logits(logits, np.full(30, -1))


@given(st.integers(0, 2**32), st.sampled_from(["arithmetic", "geometric"]), st.sampled_from([0.5, 1.0, 20.0]))
def test_ensembles(seed: int, mean: str, temperature: float) -> None:
    logits = {"a": draw(seed, 9, 4)[0], "b": draw(seed + 1, 9, 4)[0]}
    weights = {"b": 3.0, "a": 1.0}
    found = np.exp(ensemble_logits(logits, weights, mean, temperature))  # type: ignore[arg-type]
    a, b = (np.exp(log_softmax(logits[name], temperature)) for name in ("a", "b"))
    expected = 0.25 * a + 0.75 * b if mean == "arithmetic" else a**0.25 * b**0.75
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    if mean == "geometric":
        direct = log_softmax(0.25 * logits["a"].astype(float) + 0.75 * logits["b"].astype(float), temperature)
        np.testing.assert_allclose(found, np.exp(direct), rtol=1e-9)


def test_an_ensemble_of_one_is_its_member() -> None:
    logits, _ = draw(2, 9, 4)
    for mean in ("arithmetic", "geometric"):
        found = ensemble_logits({"a": logits}, mean=mean)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, log_softmax(logits), rtol=1e-12)


def test_the_mean_of_probabilities_is_never_worse_than_the_members_on_average() -> None:
    """Jensen: the ensemble's likelihood is at least the members' mean; a law of the arithmetic mean."""
    logits = {name: draw(seed, 200, 6)[0] for seed, name in enumerate("abc")}
    labels = draw(9, 200, 6)[1]
    members = [evaluate_logits(member, labels).nll for member in logits.values()]
    assert evaluate_logits(ensemble_logits(logits), labels).nll <= np.mean(members)


def test_agreement() -> None:
    first, _ = draw(3, 50, 5)
    assert agreement(first, 2 * first + 1) == 1
    assert agreement(first, -first) == 0
    second = first.copy()
    second[:10] *= -1
    assert agreement(first, second) == pytest.approx(0.8)


def test_what_cannot_be_measured() -> None:
    logits, labels = draw(4, 5, 3)
    bad = logits.copy()
    bad[3, 1] = np.nan
    with pytest.raises(BadLogitsError, match=r"^row 3: expected finite logits, found NaN or infinity; "):
        evaluate_logits(bad, labels)
    with pytest.raises(BadLogitsError, match=r"^logits: expected 4 classes, found 3; "):
        Accumulator(4).update(logits, labels)
    with pytest.raises(BadDataError, match=r"^labels: expected classes from 0 to 2, or -1 .*, found 3; "):
        evaluate_logits(logits, np.array([0, 1, 3, 2, 0]))
    with pytest.raises(ConfigError, match=r"^temperature: expected a finite number above 0, found nan; "):
        evaluate_logits(logits, labels, temperature=float("nan"))
    with pytest.raises(ConfigError, match=r"^bins: expected 1 or more, found 0; "):
        Accumulator(3, bins=0)
    with pytest.raises(ConfigError, match=r"^Accumulator.merge: expected an accumulator of num_classes, "):
        Accumulator(3).merge(Accumulator(3, bins=2))
    with pytest.raises(BadDataError, match=r"^logits: expected at least one row, found none; "):
        agreement(logits[:0], logits[:0])


def test_ensembles_that_cannot_be() -> None:
    logits = {"a": draw(5, 4, 3)[0], "b": draw(6, 4, 3)[0]}
    with pytest.raises(ConfigError, match=r"^weights: expected one for each of a, b, found a; "):
        ensemble_logits(logits, {"a": 1.0})
    with pytest.raises(ConfigError, match=r"^weights.b: expected a finite number above 0, found 0; "):
        ensemble_logits(logits, {"a": 1.0, "b": 0.0})
    with pytest.raises(
        BadLogitsError, match=r"^c: expected logits of shape \(4, 3\), .*, found shape \(4, 2\)"
    ):
        ensemble_logits({**logits, "c": draw(7, 4, 2)[0]})
    with pytest.raises(ConfigError, match=r"^teachers: expected at least one, found none; "):
        ensemble_logits({})


def test_of_equal_logits_the_lower_class_counts_and_ties_are_counted() -> None:
    """Rows 0 and 1 are ties at the top, of which one is right; row 2 has its tie below; row 3 has no label."""
    logits = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    labels = np.array([0, 1, 2, -1])
    result = evaluate_logits(logits, labels, top_k=2)
    assert (result.rows, result.errors, result.ties, result.top_k_errors) == (3, 2, 2, 1)
    parts = [Accumulator(3, top_k=2), Accumulator(3, top_k=2)]
    for part, rows in zip(parts, (slice(2), slice(2, 4)), strict=True):
        part.update(logits[rows], labels[rows])
    parts[0].merge(parts[1])
    assert parts[0].result() == result
