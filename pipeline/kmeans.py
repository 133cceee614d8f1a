"""How are points put into k groups, one point at a time?

1. `seed_centres` picks k of the points, far apart, by k-means++.
2. A first pass adds each point to its nearest centre, which becomes the mean of what it has got.
3. Further passes move a point whenever another centre has become nearer; both means follow at once.
4. `online_kmeans` does that from several starts and keeps the tightest result; `minibatch_kmeans` is
   scikit-learn's algorithm beside it.

Source: MacQueen 1967, "Some methods for classification and analysis of multivariate observations" (steps 2
and 3), which Hinton et al. 2015, section 5.3, name for the columns of the covariance; Arthur & Vassilvitskii
2007 (step 1).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ..storage.errors import BadDataError, ConfigError


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
    """Whether every point is nearest to its own centre (up to rounding); False where passes ran out."""


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
    passes: most passes over the points a start, the first included; it ends sooner when nothing moves.
    restarts: number of starts; the result with the least inertia is kept.
    seed: of the starts and of the order of the points; the same arguments give the same result.

    Raises ConfigError for numbers out of range, BadDataError for points that are not finite.

    >>> online_kmeans(np.array([[0.0], [5.0], [1.0], [6.0]]), 2).assignment.tolist()
    [0, 1, 0, 1]
    """
    check_arguments(points, clusters)
    for name, value in (("passes", passes), ("restarts", restarts)):
        if value < 1:
            raise ConfigError(name, expected="1 or more", found=str(value), remedy="raise it")
    results = [
        _one_start(points, clusters, passes, np.random.default_rng([seed, start]))
        for start in range(restarts)
    ]
    return min(results, key=lambda result: result.inertia)


def minibatch_kmeans(
    points: Float64[np.ndarray, "points dimensions"], clusters: int, *, restarts: int = 10, seed: int = 0
) -> KMeans:
    """The same by scikit-learn's MiniBatchKMeans, to compare with; groups without points are left out."""
    from sklearn.cluster import MiniBatchKMeans

    check_arguments(points, clusters)
    # Covariances of rare classes are so small that scikit-learn's float tolerances would swallow them.
    scale = np.abs(points).max() or 1.0
    model = MiniBatchKMeans(clusters, n_init=restarts, random_state=seed % 2**32)
    return _finish(points, np.asarray(model.fit(points / scale).labels_, np.int64), converged=False)


def check_arguments(points: Float64[np.ndarray, "points dimensions"], clusters: int) -> None:
    """Refuse points that cannot be put into that many groups."""
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
            remedy="check what the points were computed from",
        )


def seed_centres(
    points: Float64[np.ndarray, "points dimensions"], clusters: int, generator: np.random.Generator
) -> Int64[np.ndarray, "clusters"]:
    """Indices of `clusters` different points, each drawn with odds of its squared distance from the others.

    Where fewer than `clusters` points differ in their coordinates, the rest is drawn evenly.
    """
    chosen = [int(generator.integers(len(points)))]
    nearest = _squared_distances(points, points[chosen[0]])
    while len(chosen) < clusters:
        odds = nearest.copy()
        odds[chosen] = 0
        if not odds.sum() > 0:
            odds[:] = 1
            odds[chosen] = 0
        chosen.append(int(generator.choice(len(points), p=odds / odds.sum())))
        nearest = np.minimum(nearest, _squared_distances(points, points[chosen[-1]]))
    return np.array(chosen, np.int64)


def _one_start(
    points: Float64[np.ndarray, "points dimensions"],
    clusters: int,
    passes: int,
    generator: np.random.Generator,
) -> KMeans:
    seeds = seed_centres(points, clusters, generator)
    centres = points[seeds].copy()
    sizes = np.ones(clusters, np.int64)
    assignment = np.full(len(points), -1, np.int64)
    assignment[seeds] = np.arange(clusters)
    for index in generator.permutation(np.flatnonzero(assignment < 0)):
        group = int(np.argmin(_squared_distances(centres, points[index])))
        assignment[index] = group
        sizes[group] += 1
        centres[group] += (points[index] - centres[group]) / sizes[group]

    moved = -1
    for _ in range(passes - 1):
        moved = 0
        for index in generator.permutation(len(points)):
            distances = _squared_distances(centres, points[index])
            old, new = int(assignment[index]), int(np.argmin(distances))
            # The margin keeps rounding from moving a point to and fro. A point that is alone in its group
            # is at distance 0 (nearly, and `sizes` says so for sure) and stays: no group becomes empty.
            if distances[new] < distances[old] * (1 - 1e-9) and sizes[old] > 1:
                sizes[old] -= 1
                sizes[new] += 1
                centres[old] -= (points[index] - centres[old]) / sizes[old]
                centres[new] += (points[index] - centres[new]) / sizes[new]
                assignment[index] = new
                moved += 1
        if not moved:
            break
    return _finish(points, assignment, converged=moved == 0)


def _finish(
    points: Float64[np.ndarray, "points dimensions"],
    assignment: Int64[np.ndarray, "points"],
    *,
    converged: bool,
) -> KMeans:
    """Number the groups by their first point and take their means anew, without the drift of updates."""
    _, first, group = np.unique(assignment, return_index=True, return_inverse=True)
    assignment = np.argsort(np.argsort(first))[group].astype(np.int64)
    centres = np.stack([points[assignment == group].mean(axis=0) for group in range(len(first))])
    inertia = float(((points - centres[assignment]) ** 2).sum())
    return KMeans(assignment, centres, inertia, converged)


def _squared_distances(
    points: Float64[np.ndarray, "points dimensions"], point: Float64[np.ndarray, "dimensions"]
) -> Float64[np.ndarray, "points"]:
    difference = points - point
    return np.asarray(np.einsum("ij,ij->i", difference, difference))
