"""Laws of sequential k-means."""

import tracemalloc
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline.cluster.kmeans import KMeans, _Centres, minibatch_kmeans, online_kmeans, seed_centres
from logitstore.storage.errors import BadDataError, ConfigError


def groups(seed: int, sizes: list[int], dimensions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Points in groups that are far apart and in random order, and the group of each."""
    generator = np.random.default_rng(seed)
    truth = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    middles = 100 * np.eye(max(dimensions, len(sizes)))[: len(sizes), :]
    return middles[truth] + generator.normal(size=(len(truth), middles.shape[1])), truth


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


def check_guarantees(points: np.ndarray, clusters: int, result: KMeans) -> None:
    assert sorted(set(result.assignment.tolist())) == list(range(clusters))
    first = [int(np.flatnonzero(result.assignment == group)[0]) for group in range(clusters)]
    assert first == sorted(first)
    for group in range(clusters):
        np.testing.assert_allclose(result.centres[group], points[result.assignment == group].mean(axis=0))
    distances = ((points[:, None] - result.centres) ** 2).sum(axis=2)
    own = distances[np.arange(len(points)), result.assignment]
    assert result.inertia == pytest.approx(own.sum())
    if result.converged:
        assert (own <= distances.min(axis=1) * (1 + 1e-6) + 1e-18).all()


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 25),
    dimensions=st.integers(1, 4),
    data=st.data(),
    whole=st.booleans(),
)
def test_what_is_guaranteed(seed: int, count: int, dimensions: int, data: st.DataObject, whole: bool) -> None:
    clusters = data.draw(st.integers(1, count))
    points = np.random.default_rng(seed).normal(size=(count, dimensions))
    # Whole numbers give ties and equal points.
    points = np.round(points) if whole else points
    result = online_kmeans(points, clusters, restarts=2, seed=seed)
    check_guarantees(points, clusters, result)
    again = online_kmeans(points.copy(), clusters, restarts=2, seed=seed)
    assert (again.assignment == result.assignment).all()
    assert again.inertia == result.inertia


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_as_many_groups_as_points_is_exact(seed: int, count: int) -> None:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    result = online_kmeans(points, count, restarts=1)
    assert result.inertia == 0
    assert result.assignment.tolist() == list(range(count))
    assert (result.centres == points).all()


def test_one_group_has_the_mean() -> None:
    points, _ = groups(0, [5, 6])
    result = online_kmeans(points, 1)
    np.testing.assert_allclose(result.centres, points.mean(axis=0, keepdims=True))
    assert result.inertia == pytest.approx(points.var(axis=0).sum() * len(points))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_groups_that_are_far_apart_are_found(seed: int, scale: float) -> None:
    points, truth = groups(seed, [3, 10, 4, 7, 1])
    assert same_partition(online_kmeans(points * scale, 5, seed=seed).assignment, truth)


def test_a_coordinate_that_all_points_share_changes_nothing() -> None:
    points = np.random.default_rng(0).normal(size=(60, 5))
    near, far = (online_kmeans(np.column_stack([points, np.full(60, offset)]), 5) for offset in (0.0, 1e12))
    assert far.assignment.tolist() == near.assignment.tolist()
    assert np.isclose(far.inertia, near.inertia)
    assert np.allclose(far.centres[:, 5], 1e12, rtol=1e-12) and np.allclose(
        far.centres[:, :5], near.centres[:, :5]
    )


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_scikit_learn_finds_them_mostly_and_is_never_tighter(scale: float) -> None:
    """It judges its starts by a part of the points, so that it may miss a small group."""
    found = 0
    for seed in range(5):
        points, truth = groups(seed, [3, 10, 4, 7, 1])
        theirs = minibatch_kmeans(points * scale, 5, seed=seed)
        check_guarantees(points * scale, 5, theirs)
        found += same_partition(theirs.assignment, truth)
        assert online_kmeans(points * scale, 5, seed=seed).inertia <= theirs.inertia * (1 + 1e-9)
    assert found >= 3


def test_the_guard_of_recovery_can_fail() -> None:
    points, truth = groups(0, [3, 10, 4, 7, 1])
    assert not same_partition(online_kmeans(points, 4).assignment, truth)
    assert not same_partition(np.zeros(25, np.int64), truth)


def test_the_order_of_the_points_does_not_matter_with_enough_starts() -> None:
    points = np.random.default_rng(3).normal(size=(12, 2))
    best = online_kmeans(points, 3, restarts=40)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(points))
        shuffled = online_kmeans(points[order], 3, restarts=40)
        assert shuffled.inertia == pytest.approx(best.inertia)
        assert same_partition(shuffled.assignment, best.assignment[order])


def test_small_cases_reach_the_optimum() -> None:
    points = np.random.default_rng(4).normal(size=(8, 2))

    def inertia(labels: np.ndarray) -> float:
        parts = [points[labels == group] for group in range(3)]
        return sum(float(((part - part.mean(axis=0)) ** 2).sum()) for part in parts if len(part))

    optimum = min(inertia(np.array(labels)) for labels in product(range(3), repeat=8))
    assert online_kmeans(points, 3, restarts=30).inertia == pytest.approx(optimum)


def test_more_passes_and_starts_are_never_worse() -> None:
    points = np.random.default_rng(5).normal(size=(60, 4))
    one_pass = online_kmeans(points, 6, passes=1, restarts=1)
    assert not one_pass.converged
    check_guarantees(points, 6, one_pass)
    settled = online_kmeans(points, 6, restarts=1)
    assert settled.converged
    assert settled.inertia < one_pass.inertia
    assert online_kmeans(points, 6, restarts=8).inertia <= settled.inertia


def test_starts_are_different_points_and_far_apart() -> None:
    points, truth = groups(6, [40, 2, 2])
    hits = 0
    for seed in range(50):
        chosen = seed_centres(points, 3, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 3
        hits += len(set(truth[chosen].tolist())) == 3
    assert hits >= 48
    assert sorted(seed_centres(np.zeros((4, 2)), 4, np.random.default_rng(0)).tolist()) == [0, 1, 2, 3]


def test_equal_points_are_at_no_distance_whatever_rounding_says() -> None:
    points = np.random.default_rng(0).normal(size=(3, 7))
    differences = np.einsum("ij,ij->i", points, points) - np.diag(points @ points.T)
    assert (differences != 0).any()  # control: products leave something
    for seed in range(50):
        chosen = seed_centres(np.repeat(points, 20, axis=0), 5, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 5
        assert set((chosen[:3] // 20).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("clusters", [0, -1, 4])
@pytest.mark.parametrize("method", [online_kmeans, minibatch_kmeans])
def test_a_number_of_groups_that_cannot_be(method: object, clusters: int) -> None:
    assert callable(method)
    with pytest.raises(ConfigError) as caught:
        method(np.zeros((3, 2)), clusters)
    assert str(caught.value) == (
        f"clusters: expected from 1 to the number of points, 3, found {clusters}; choose a number in between"
    )


def test_points_that_are_not_finite() -> None:
    points = np.zeros((3, 2))
    points[1, 0] = np.nan
    with pytest.raises(BadDataError, match=r"^point 1: expected finite coordinates, found NaN or infinity;"):
        online_kmeans(points, 2)


@pytest.mark.parametrize("key", ["passes", "restarts"])
def test_counts_below_one(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: expected 1 or more, found 0; raise it$"):
        online_kmeans(np.zeros((3, 2)), 2, **{key: 0})


# Against the algorithm in its plainest form


def macqueen(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Return the groups of sequential k-means, its means computed anew from their points after each move."""
    generator = np.random.default_rng([seed, 0])
    seeds = seed_centres(points, clusters, generator)
    group = np.full(len(points), -1)
    group[seeds] = np.arange(clusters)

    def distances(index: int) -> np.ndarray:
        means = np.stack([points[group == number].mean(axis=0) for number in range(clusters)])
        return ((points[index] - means) ** 2).sum(axis=1)

    for index in generator.permutation(np.flatnonzero(group < 0)):
        group[index] = distances(index).argmin()
    moved = True
    while moved:
        moved = False
        for index in generator.permutation(len(points)):
            found, old = distances(index), group[index]
            if found.min() < found[old] * (1 - 1e-9) - 1e-12 and (group == old).sum() > 1:
                group[index], moved = found.argmin(), True
    return group


@pytest.mark.parametrize("seed", range(12))
def test_every_point_is_compared_with_the_means_of_that_moment(seed: int) -> None:
    """The products with many points are computed ahead; a mean that has moved since must not be seen as it was.

    Neither may a mean be off: that of n points is their sum over n. Both pass for k-means where groups lie far apart.
    """
    points = np.random.default_rng(seed).normal(size=(90, 3))
    found = online_kmeans(points, 7, restarts=1, seed=seed)
    assert same_partition(found.assignment, macqueen(points, 7, seed))


def test_of_several_starts_the_one_that_leaves_the_least_is_taken() -> None:
    """Greedy k-means++ leaves less inertia than k-means++, which takes the first draw."""

    def left(points: np.ndarray, chosen: np.ndarray) -> float:
        return float(((points[:, None] - points[chosen]) ** 2).sum(axis=2).min(axis=1).sum())

    def plain(points: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
        chosen = [int(generator.integers(len(points)))]
        while len(chosen) < clusters:
            odds = ((points[:, None] - points[chosen]) ** 2).sum(axis=2).min(axis=1)
            chosen.append(int(generator.choice(len(points), p=odds / odds.sum())))
        return np.array(chosen)

    points = np.random.default_rng(8).normal(size=(120, 4))
    greedy, first = (
        np.mean([left(points, choose(points, 8, np.random.default_rng(seed))) for seed in range(60)])
        for choose in (seed_centres, plain)
    )
    assert greedy < 0.9 * first


def test_no_group_becomes_empty_whatever_rounding_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that is alone is its own mean; with distances this inexact another mean seems nearer."""
    visit = _Centres.visit
    noise = np.random.default_rng(0)

    def inexact(self: _Centres, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for index, distances in visit(self, order):
            yield index, distances + noise.uniform(0, 2, distances.shape)

    monkeypatch.setattr(_Centres, "visit", inexact)
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(9, 2))
        assert len(online_kmeans(points, 6, passes=5, restarts=1, seed=seed).centres) == 6


def test_starts_in_many_threads_take_the_memory_of_the_points_about_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The points about their mean, and the differences from their centres; not once for each start."""
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    points = np.random.default_rng(0).normal(size=(400, 2000))
    tracemalloc.start()
    try:
        online_kmeans(points, 8, restarts=8, passes=2)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2 * points.nbytes < most < 5 * points.nbytes
