"""Sets of classes that a teacher confuses.

1. `correlation_of` makes the covariance independent of how likely a class is, on request.
2. `confusable_sets` groups the columns by k-means, then gives each group a set of one size: the classes whose columns are
   nearest to its centre. Sets overlap; with `disjoint`, each class goes to one centre at most.
3. `Clustering.single` names the classes in no set, which no specialist will know.

Source: Hinton et al. 2015, section 5.3; their sets overlap as well (61 sets of 300 of 15,000 classes).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from ...storage.errors import BadDataError, ConfigError
from .kmeans import minibatch_kmeans, online_kmeans, squared_distances


@dataclass(frozen=True, eq=False)
class Clustering:
    """Sets of classes that are confused with one another."""

    assignment: Int64[np.ndarray, "classes"]
    """Group of k-means of each class."""
    centres: Float64[np.ndarray, "clusters dimensions"]
    """Mean column in each group."""
    sets: Int64[np.ndarray, "clusters classes_per_cluster"]
    """The classes nearest to each centre, ascending; a class may be in several sets or in none."""
    inertia: float
    """Sum of the squared distances of the columns from the centres of their groups."""
    converged: bool
    """Whether k-means came to rest."""

    @property
    def coverage(self) -> Int64[np.ndarray, "classes"]:
        """Count the sets of each class."""
        return np.bincount(self.sets.ravel(), minlength=len(self.assignment)).astype(np.int64)

    @property
    def single(self) -> Int64[np.ndarray, "single"]:
        """Return the classes in no set, ascending."""
        return np.flatnonzero(self.coverage == 0)


def correlation_of(
    covariance: Float64[np.ndarray, "classes classes"],
) -> Float64[np.ndarray, "classes classes"]:
    """Return the correlations c_ij / √(c_ii c_jj); 0 for a class whose probability never changes.

    >>> correlation_of(np.array([[4.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))  # a store may hold any numbers
    moves = deviation > 0
    inverse = np.divide(1, deviation, where=moves, out=np.zeros_like(deviation))
    correlation = covariance * inverse * inverse[:, None]
    correlation[moves, moves] = 1
    return np.asarray(correlation)


def confusable_sets(
    columns: Float64[np.ndarray, "classes dimensions"],
    *,
    clusters: int,
    classes_per_cluster: int,
    seed: int = 0,
    method: Literal["online", "minibatch"] = "online",
    restarts: int = 10,
    disjoint: bool = False,
) -> Clustering:
    """Find sets of classes whose predictions go together.

    columns: of each class, its covariances or correlations with all classes, or their projection.
    clusters: number of sets, at least 1 and at most one a class. "minibatch" may make fewer.
    classes_per_cluster: classes of a set, at least 2 and fewer than all.
    seed: of k-means.
    method: "online", the sequential update of the paper, or "minibatch", scikit-learn's.
    restarts: starts of k-means; the tightest is kept.
    disjoint: puts a class into one set only; of all pairs of a class and a centre, the nearest go first.

    Raises ConfigError for numbers out of range, BadDataError for a covariance that is not finite.
    """
    classes = len(columns)
    check_sizes(classes, clusters, classes_per_cluster, disjoint=disjoint)
    if not np.isfinite(columns).all():
        raise BadDataError(
            "covariance",
            expected="finite numbers",
            found="NaN or infinity",
            remedy="compute it again from the store",
        )
    columns = np.ascontiguousarray(columns)
    kmeans = online_kmeans if method == "online" else minibatch_kmeans
    groups = kmeans(columns, clusters, restarts=restarts, seed=seed)
    distances = np.stack([squared_distances(columns, centre) for centre in groups.centres])
    sets = (_apart if disjoint else _nearest)(distances, classes_per_cluster)
    return Clustering(groups.assignment, groups.centres, sets, groups.inertia, groups.converged)


def _nearest(
    distances: Float64[np.ndarray, "clusters classes"], size: int
) -> Int64[np.ndarray, "clusters classes_per_cluster"]:
    """Return the `size` classes nearest to each centre; of classes equally far, the first."""
    return np.sort(np.argsort(distances, axis=1, kind="stable")[:, :size], axis=1)


def _apart(
    distances: Float64[np.ndarray, "clusters classes"], size: int
) -> Int64[np.ndarray, "clusters classes_per_cluster"]:
    """Give each centre `size` classes, each class to one centre at most; the nearest pairs first."""
    clusters, classes = distances.shape
    members: list[list[int]] = [[] for _ in range(clusters)]
    free = np.ones(classes, bool)
    for pair in np.argsort(distances, axis=None, kind="stable"):
        cluster, number = divmod(int(pair), classes)
        if free[number] and len(members[cluster]) < size:
            members[cluster].append(number)
            free[number] = False
    return np.sort(np.array(members, np.int64), axis=1)


def check_sizes(classes: int, clusters: int, classes_per_cluster: int, *, disjoint: bool = False) -> None:
    """Refuse a number or size of sets that does not fit the classes. Raises ConfigError."""
    if not 1 <= clusters <= classes:
        raise ConfigError(
            "clusters",
            expected=f"from 1 to the number of classes, {classes}",
            found=str(clusters),
            remedy="choose a number in between",
        )
    if not 2 <= classes_per_cluster < classes:
        raise ConfigError(
            "classes_per_cluster",
            expected=f"at least 2 and fewer than all {classes} classes",
            found=str(classes_per_cluster),
            remedy="choose a size in between",
        )
    if disjoint and clusters * classes_per_cluster > classes:
        raise ConfigError(
            "disjoint",
            expected=f"at most {classes} classes in all sets together",
            found=f"{clusters} sets of {classes_per_cluster}",
            remedy="make fewer or smaller sets, or let them overlap",
        )
