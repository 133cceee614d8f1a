"""Laws of the confusable sets, and that they catch the confusions they are for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.held_logits import moments

from logitstore.pipeline.cluster.errors_inside import errors_inside, random_sets
from logitstore.pipeline.cluster.sets import check_sizes, confusable_sets, correlation_of
from logitstore.storage.errors import BadDataError, ConfigError

GROUPS = np.array([[0, 4, 7], [1, 2, 8], [3, 5, 6]])


def confused(seed: int = 0, rows: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, 9) of a teacher that confuses the classes of a group, and the labels."""
    generator = np.random.default_rng(seed)
    group_of = np.empty(9, np.int64)
    for group, members in enumerate(GROUPS):
        group_of[members] = group
    labels = generator.integers(9, size=rows)
    logits = generator.normal(size=(rows, 9))
    logits += 3.0 * (group_of[labels][:, None] == group_of)
    logits[np.arange(rows), labels] += 1.5
    return logits.astype(np.float32), labels


def covariance_of(logits: np.ndarray, temperature: float = 2.0) -> np.ndarray:
    total = moments(logits, temperature)
    return np.asarray(total.scatter / total.count)


@given(st.integers(0, 2**32), st.integers(3, 12), st.data())
def test_form_of_the_sets(seed: int, classes: int, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, classes))
    size = data.draw(st.integers(2, classes - 1))
    logits = np.random.default_rng(seed).normal(size=(50, classes)).astype(np.float32)
    covariance = covariance_of(logits)
    found = confusable_sets(covariance, clusters=clusters, classes_per_cluster=size, seed=seed)
    assert found.sets.shape == (clusters, size)
    assert (np.diff(found.sets, axis=1) > 0).all()
    assert found.coverage.sum() == clusters * size
    distances = ((covariance.T - found.centres[:, None]) ** 2).sum(axis=2)
    for cluster, members in enumerate(found.sets):
        outside = np.setdiff1d(np.arange(classes), members)
        assert distances[cluster, members].max() <= distances[cluster, outside].min()
    again = confusable_sets(covariance, clusters=clusters, classes_per_cluster=size, seed=seed)
    assert (again.sets == found.sets).all()
    assert (again.assignment == found.assignment).all()


@pytest.mark.parametrize("seed", range(4))
def test_groups_that_are_confused_are_found(seed: int) -> None:
    logits, _ = confused(seed)
    found = confusable_sets(covariance_of(logits), clusters=3, classes_per_cluster=3, seed=seed)
    assert sorted(found.sets.tolist()) == sorted(GROUPS.tolist())
    assert (found.coverage == 1).all()
    # Without confusions there is nothing to find: the guard can fail.
    noise = np.random.default_rng(seed).normal(size=(6000, 9)).astype(np.float32)
    other = confusable_sets(covariance_of(noise), clusters=3, classes_per_cluster=3, seed=seed)
    assert sorted(other.sets.tolist()) != sorted(GROUPS.tolist())


def test_sets_larger_than_the_groups_overlap() -> None:
    logits, _ = confused()
    found = confusable_sets(covariance_of(logits), clusters=3, classes_per_cluster=5)
    assert found.coverage.sum() == 15
    assert found.coverage.max() > 1
    for members in GROUPS:
        assert any(set(members) <= set(chosen) for chosen in found.sets)


def test_classes_may_be_numbered_in_any_order() -> None:
    covariance = covariance_of(confused()[0])
    order = np.random.default_rng(1).permutation(9)
    found = confusable_sets(covariance[np.ix_(order, order)], clusters=3, classes_per_cluster=3)
    assert sorted(sorted(order[members].tolist()) for members in found.sets) == sorted(GROUPS.tolist())


def test_errors_lie_inside_the_sets_that_were_found() -> None:
    logits, labels = confused(1)
    sets = confusable_sets(covariance_of(logits), clusters=3, classes_per_cluster=3).sets
    result = errors_inside(sets, labels, logits.argmax(axis=1), num_classes=9)
    assert result.errors > 500
    assert result.share > 0.9
    assert result.random_share == pytest.approx(1 - (1 - 6 / 72) ** 3)


def test_errors_are_counted_as_defined() -> None:
    sets = np.array([[0, 1], [1, 2]])
    labels = np.array([0, 0, 0, 2, 3, -1, 1])
    predictions = np.array([0, 1, 2, 1, 0, 1, 1])
    result = errors_inside(sets, labels, predictions, num_classes=4)
    assert (result.errors, result.inside, result.share) == (4, 2, 0.5)
    assert math.isnan(errors_inside(sets, labels[:1], predictions[:1], num_classes=4).share)


@pytest.mark.parametrize("disjoint", [False, True])
def test_the_random_share_is_what_random_sets_have(disjoint: bool) -> None:
    generator = np.random.default_rng(2)
    labels, predictions = np.array([[a, b] for a in range(7) for b in range(7) if a != b]).T
    shares, expected = [], 0.0
    for _ in range(2000):
        sets = random_sets(2, 3, 7, generator, disjoint=disjoint)
        result = errors_inside(sets, labels, predictions, num_classes=7, disjoint=disjoint)
        shares.append(result.share)
        expected = result.random_share
    assert np.mean(shares) == pytest.approx(expected, abs=4 * np.std(shares) / math.sqrt(2000) + 1e-12)
    drawn = errors_inside(
        random_sets(2, 3, 7, generator),
        labels,
        predictions,
        num_classes=7,
        disjoint=disjoint,
        draws=500,
        seed=3,
    )
    assert drawn.draws == 500 and drawn.random_share == expected
    assert drawn.random_deviation == pytest.approx(np.std(shares), rel=0.2, abs=1e-9)


def test_draws_of_random_sets_follow_from_the_seed() -> None:
    logits, labels = confused(2)
    sets, predictions = GROUPS, logits.argmax(axis=1)
    how = {"num_classes": 9, "draws": 20}
    first = errors_inside(sets, labels, predictions, **how, seed=1)
    assert errors_inside(sets, labels, predictions, **how, seed=1) == first
    assert errors_inside(sets, labels, predictions, **how, seed=2).random_deviation != first.random_deviation
    assert first.random_deviation > 0
    assert first.share > first.random_share + 3 * first.random_deviation


def test_disjoint_sets_hold_no_class_twice() -> None:
    logits, _ = confused()
    covariance = covariance_of(logits)
    found = confusable_sets(covariance, clusters=3, classes_per_cluster=3, disjoint=True)
    assert sorted(found.sets.tolist()) == sorted(GROUPS.tolist())
    assert len(found.single) == 0
    small = confusable_sets(covariance, clusters=4, classes_per_cluster=2, disjoint=True)
    assert (small.coverage <= 1).all() and small.coverage.sum() == 8
    assert len(small.single) == 1 and small.coverage[small.single] == 0
    overlapping = confusable_sets(covariance, clusters=4, classes_per_cluster=4)
    assert overlapping.coverage.max() > 1, "control: sets of this number and size do overlap"
    with pytest.raises(ConfigError) as caught:
        confusable_sets(covariance, clusters=4, classes_per_cluster=4, disjoint=True)
    assert str(caught.value) == (
        "disjoint: expected at most 9 classes in all sets together, found 4 sets of 4; make fewer or smaller sets, or "
        "let them overlap"
    )


def test_of_disjoint_sets_the_nearest_pairs_go_first() -> None:
    points = np.array([[0.0], [0.1], [0.2], [0.35], [10.0], [10.1], [10.3], [9.0]])
    found = confusable_sets(points, clusters=2, classes_per_cluster=3, disjoint=True)
    # centres 0.1625 and 9.85: 0.35 is the farthest of its group, 9.0 of the other
    assert found.sets.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert found.single.tolist() == [3, 7]


def test_classes_in_no_set_are_named() -> None:
    covariance = covariance_of(confused()[0])
    found = confusable_sets(covariance, clusters=1, classes_per_cluster=3)
    assert sorted([*found.single.tolist(), *found.sets[0].tolist()]) == list(range(9))
    assert len(confusable_sets(covariance, clusters=3, classes_per_cluster=3).single) == 0


def test_correlations_do_not_know_how_likely_a_class_is() -> None:
    """Groups of rare classes, a thousand times less likely than the others, are found only among correlations."""
    generator = np.random.default_rng(0)
    rows, group_of = 4000, np.repeat([0, 1, 2, 3], 3)
    active = generator.integers(4, size=rows)
    probabilities = 0.2 + (active[:, None] == group_of) * generator.uniform(0.5, 1.0, (rows, 12))
    probabilities[:, 6:] *= 1e-3
    covariance = np.cov(probabilities.T, ddof=0)
    correlation = correlation_of(covariance)
    np.testing.assert_allclose(correlation, np.corrcoef(probabilities.T), atol=1e-12)
    truth = group_of.reshape(4, 3) * 3 + np.arange(3)
    normalised = confusable_sets(correlation, clusters=4, classes_per_cluster=3)
    assert sorted(normalised.sets.tolist()) == truth.tolist()
    plain = confusable_sets(covariance, clusters=4, classes_per_cluster=3)
    assert sorted(plain.sets.tolist()) != truth.tolist()


def test_minibatch_sets_are_as_many_as_its_groups() -> None:
    points = np.zeros((6, 2))
    points[3:] = 1.0  # two different points: no third group
    found = confusable_sets(points, clusters=3, classes_per_cluster=2, method="minibatch", restarts=2)
    assert len(found.sets) == len(found.centres) == len(set(found.assignment.tolist())) <= 3
    covariance = covariance_of(confused()[0])
    theirs = confusable_sets(covariance, clusters=3, classes_per_cluster=3, method="minibatch")
    ours = confusable_sets(covariance, clusters=3, classes_per_cluster=3)
    assert sorted(theirs.sets.tolist()) == sorted(ours.sets.tolist()) == sorted(GROUPS.tolist())
    assert ours.inertia <= theirs.inertia * (1 + 1e-9)


@pytest.mark.parametrize(
    ("clusters", "size", "message"),
    [
        (0, 3, "clusters: expected from 1 to the number of classes, 9, found 0; choose a number in between"),
        (
            10,
            3,
            "clusters: expected from 1 to the number of classes, 9, found 10; choose a number in between",
        ),
        (3, 1, "classes_per_cluster: expected at least 2 and fewer than all 9 classes, found 1; "),
        (3, 9, "classes_per_cluster: expected at least 2 and fewer than all 9 classes, found 9; "),
    ],
)
def test_sizes_that_cannot_be(clusters: int, size: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sizes(9, clusters, size)
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError):
        confusable_sets(np.eye(9), clusters=clusters, classes_per_cluster=size)


def test_what_is_no_covariance() -> None:
    with pytest.raises(BadDataError, match=r"^covariance: expected finite numbers, found NaN or infinity;"):
        confusable_sets(np.full((4, 4), np.nan), clusters=2, classes_per_cluster=2)


@pytest.mark.parametrize(("name", "bad"), [("sets", 4), ("labels", -2), ("labels", 4), ("predictions", -1)])
def test_classes_that_do_not_exist(name: str, bad: int) -> None:
    arrays = {"sets": np.array([[0, 1]]), "labels": np.array([0, 1]), "predictions": np.array([0, 1])}
    arrays[name].flat[1] = bad
    with pytest.raises(BadDataError, match=rf"^{name}: expected classes from -?\d to 3, found {bad}; "):
        errors_inside(**arrays, num_classes=4)
