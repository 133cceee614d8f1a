"""K-means, one point at a time.

1. `seed_centres` picks k of the points, far apart, by greedy k-means++.
2. A first pass adds each point to its nearest centre, which becomes the mean of its points.
3. Further passes move a point whenever another centre has become nearer; both means follow at once.
4. `online_kmeans` runs that from several starts and keeps the tightest result; `minibatch_kmeans` is scikit-learn's algorithm
   beside it.

Source: MacQueen 1967, "Some methods for classification and analysis of multivariate observations" (steps 2 and 3), which
Hinton et al. 2015, section 5.3, name for the columns of the covariance; Arthur & Vassilvitskii 2007 (step 1; the best of
several draws, as in scikit-learn).
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no annotations

from ...storage.errors import BadDataError, ConfigError
from ...storage.extras import naming_extras

_TOGETHER = 64
"""Points whose products with the centres, or differences from one, are computed in one call."""
_MARGIN = 1e-9
"""Relative margin by which another centre has to be nearer."""
_ROUNDING = 1e-13
"""Rounding error of a squared distance, relative to the squared length of the centre."""
_EQUAL = 1e-12
"""Squared distance of two points that differ by rounding alone, relative to the sum of their squared lengths."""


@dataclass(frozen=True, eq=False)
class KMeans:
    """A grouping of points."""

    assignment: Int64[np.ndarray, "points"]
    """Group of each point. Groups are numbered by their first point, and none is empty."""
    centres: Float64[np.ndarray, "clusters dimensions"]
    """Mean of the points of each group."""
    inertia: float
    """Sum of the squared distances of the points from their centres."""
    converged: bool
    """Whether every point is nearest to its own centre, up to rounding; False where passes ran out."""


def online_kmeans(
    points: Float64[np.ndarray, "points dimensions"],
    clusters: int,
    *,
    passes: int = 100,
    restarts: int = 10,
    seed: int = 0,
) -> KMeans:
    """Group points by sequential k-means.

    points: at least `clusters` of them, all finite.
    clusters: number of groups, at least 1.
    passes: maximum passes over the points a start, the first included; a start ends when nothing moves.
    restarts: number of starts; the result with the least inertia is kept.
    seed: of the starts and of the order of the points.

    Raises ConfigError for numbers out of range, BadDataError for points that are not finite.

    >>> online_kmeans(np.array([[0.0], [5.0], [1.0], [6.0]]), 2).assignment.tolist()
    [0, 1, 0, 1]
    """
    from dask.system import CPU_COUNT  # a run with nothing left to do imports no dask

    check_arguments(points, clusters)
    for name, value in (("passes", passes), ("restarts", restarts)):
        if value < 1:
            raise ConfigError(name, expected="1 or more", found=str(value), remedy="raise it")
    # Distances are made of products, which lose digits far from the origin.
    near_origin = points - points.mean(axis=0)

    def start(number: int) -> tuple[Int64[np.ndarray, "points"], bool]:
        return _one_start(near_origin, clusters, passes, np.random.default_rng([seed, number]))

    # One thread a product: the last bits must not depend on the number of threads.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(restarts, CPU_COUNT)) as pool:
        # Finished one after another, as each takes memory of all points.
        results = (
            _finish(near_origin, assignment, converged=converged)
            for assignment, converged in pool.map(start, range(restarts))
        )
        best = min(results, key=lambda result: result.inertia)
    return _finish(points, best.assignment, converged=best.converged)


def minibatch_kmeans(
    points: Float64[np.ndarray, "points dimensions"], clusters: int, *, restarts: int = 10, seed: int = 0
) -> KMeans:
    """Group points by scikit-learn's MiniBatchKMeans; groups without points are left out. Raises MissingPackage."""
    with naming_extras():
        from sklearn.cluster import MiniBatchKMeans
    check_arguments(points, clusters)
    # Covariances of rare classes are so small that scikit-learn's float tolerances exceed them.
    scale = np.abs(points).max() or 1.0
    model = MiniBatchKMeans(clusters, n_init=restarts, random_state=seed % 2**32)
    return _finish(points, np.asarray(model.fit(points / scale).labels_, np.int64), converged=False)


def check_arguments(points: Float64[np.ndarray, "points dimensions"], clusters: int) -> None:
    """Refuse points that cannot be put into that many groups. Raises ConfigError, BadDataError."""
    if not 1 <= clusters <= len(points):
        raise ConfigError(
            "clusters",
            expected=f"from 1 to the number of points, {len(points)}",
            found=str(clusters),
            remedy="choose a number in between",
        )
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise BadDataError(
            f"point {int(np.argmin(finite))}",
            expected="finite coordinates",
            found="NaN or infinity",
            remedy="check the source of the points",
        )


def seed_centres(
    points: Float64[np.ndarray, "points dimensions"], clusters: int, generator: np.random.Generator
) -> Int64[np.ndarray, "clusters"]:
    """Draw the indices of `clusters` different points, with odds of the squared distance from the points chosen before.

    Of several draws, the one that leaves the least inertia is taken. Where fewer than `clusters` points differ, the rest is
    drawn evenly.
    """
    lengths = np.einsum("ij,ij->i", points, points)

    def distances_from(some: Int64[np.ndarray, "some"]) -> Float64[np.ndarray, "some points"]:
        sums = lengths[some][:, None] + lengths
        distances: Float64[np.ndarray, "some points"] = sums - 2 * (points[some] @ points.T)
        distances[distances <= _EQUAL * sums] = 0
        return distances

    chosen = [int(generator.integers(len(points)))]
    (nearest,) = distances_from(np.array(chosen))
    draws = 2 + int(math.log(clusters))
    while len(chosen) < clusters:
        odds = nearest.copy()
        odds[chosen] = 0
        if not odds.sum() > 0:
            odds[:] = 1
            odds[chosen] = 0
        drawn = generator.choice(len(points), size=draws, p=odds / odds.sum())
        then = np.minimum(nearest, distances_from(drawn))
        best = int(np.argmin(then.sum(axis=1)))
        chosen.append(int(drawn[best]))
        nearest = then[best]
    return np.array(chosen, np.int64)


def _one_start(
    points: Float64[np.ndarray, "points dimensions"],
    clusters: int,
    passes: int,
    generator: np.random.Generator,
) -> tuple[Int64[np.ndarray, "points"], bool]:
    """Return the group of each point after a start, and whether the last pass moved none."""
    seeds = seed_centres(points, clusters, generator)
    centres = _Centres(points, seeds)
    assignment = np.full(len(points), -1, np.int64)
    assignment[seeds] = np.arange(clusters)
    for index, distances in centres.visit(generator.permutation(np.flatnonzero(assignment < 0))):
        group = int(np.argmin(distances))
        assignment[index] = group
        centres.add(group, index)

    moved = -1
    for _ in range(passes - 1):
        moved = 0
        for index, distances in centres.visit(generator.permutation(len(points))):
            old, new = int(assignment[index]), int(np.argmin(distances))
            # The margin keeps rounding from moving a point to and fro. A point that is alone in its group
            # is at distance 0 (nearly, and `sizes` says so for sure) and stays: no group becomes empty.
            margin = _MARGIN * distances[old] + _ROUNDING * centres.squares[old]
            if distances[new] < distances[old] - margin and centres.sizes[old] > 1:
                centres.remove(old, index)
                centres.add(new, index)
                assignment[index] = new
                moved += 1
        if not moved:
            break
    return assignment, moved == 0


class _Centres:
    """Means that follow each move of a point, and the distances of the points from them.

    Products of some points with all centres are one call of BLAS. When a centre moves, its products with the points still
    to come are computed again: each point is compared with the centres of that time.
    """

    def __init__(
        self, points: Float64[np.ndarray, "points dimensions"], seeds: Int64[np.ndarray, "clusters"]
    ) -> None:
        """Start each group with one point."""
        self._points, self._means = points, points[seeds].copy()
        self.sizes = np.ones(len(seeds), np.int64)
        """Number of points of each."""
        self.squares = np.einsum("ij,ij->i", self._means, self._means)
        """Squared length of each."""
        self._coming = points[:0]
        self._products = np.empty((0, len(seeds)))

    def visit(
        self, order: Int64[np.ndarray, "some"]
    ) -> Iterator[tuple[int, Float64[np.ndarray, "clusters"]]]:
        """Yield each point in turn, with its squared distance from every centre at that time."""
        for first in range(0, len(order), _TOGETHER):
            some = order[first : first + _TOGETHER]
            coming = self._points[some]
            products = coming @ self._means.T
            lengths = np.einsum("ij,ij->i", coming, coming)
            for number, index in enumerate(some.tolist()):
                self._coming, self._products = coming[number + 1 :], products[number + 1 :]
                yield index, self.squares - 2 * products[number] + lengths[number]

    def add(self, group: int, index: int) -> None:
        """Put a point into a group."""
        self.sizes[group] += 1
        self._move(group, (self._points[index] - self._means[group]) / self.sizes[group])

    def remove(self, group: int, index: int) -> None:
        """Remove a point from a group that has others."""
        self.sizes[group] -= 1
        self._move(group, (self._means[group] - self._points[index]) / self.sizes[group])

    def _move(self, group: int, step: Float64[np.ndarray, "dimensions"]) -> None:
        mean = self._means[group]
        mean += step
        self.squares[group] = mean @ mean
        self._products[:, group] = self._coming @ mean


def _finish(
    points: Float64[np.ndarray, "points dimensions"],
    assignment: Int64[np.ndarray, "points"],
    *,
    converged: bool,
) -> KMeans:
    """Number the groups by their first point and compute their means anew, without the drift of updates."""
    _, first, group = np.unique(assignment, return_index=True, return_inverse=True)
    assignment = np.argsort(np.argsort(first))[group].astype(np.int64)
    centres = np.stack([points[assignment == group].mean(axis=0) for group in range(len(first))])
    squares = centres[assignment]
    squares -= points
    squares *= squares
    return KMeans(assignment, centres, float(squares.sum()), converged)


def squared_distances(
    points: Float64[np.ndarray, "points dimensions"], point: Float64[np.ndarray, "dimensions"]
) -> Float64[np.ndarray, "points"]:
    """Return the squared distance of each point from one."""
    distances = np.empty(len(points))
    for first in range(0, len(points), _TOGETHER):
        difference = points[first : first + _TOGETHER] - point
        np.einsum("ij,ij->i", difference, difference, out=distances[first : first + _TOGETHER])
    return distances
