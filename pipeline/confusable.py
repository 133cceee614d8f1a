"""Which sets of classes does a teacher confuse, and how many of its errors lie inside them?

1. `confusable_sets` groups the columns of the covariance of its predictions by k-means, then takes for each
   group the classes whose columns are nearest to its centre: sets of one size, which may overlap.
2. `errors_inside` says, where there are labels, which share of the errors confuses two classes of one set,
   and which share random sets of the same size and number would have held.

Source: Hinton et al. 2015, section 5.3; their sets overlap as well (61 sets of 300 of 15,000 classes).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ..storage.errors import BadDataError, ConfigError
from .kmeans import online_kmeans


@dataclass(frozen=True, eq=False)
class Clustering:
    """Sets of classes that are confused with one another."""

    assignment: Int64[np.ndarray, "classes"]
    """The one group of k-means that each class is in."""
    centres: Float64[np.ndarray, "clusters classes"]
    """Mean column of the covariance in each group."""
    sets: Int64[np.ndarray, "clusters classes_per_cluster"]
    """The classes nearest to each centre, ascending; a class may be in several sets or in none."""
    inertia: float
    """Sum of the squared distances of the columns from the centres of their groups."""
    converged: bool
    """Whether k-means came to rest."""
    seed: int
    """Seed that it was made with."""

    @property
    def coverage(self) -> Int64[np.ndarray, "classes"]:
        """In how many sets each class is."""
        return np.bincount(self.sets.ravel(), minlength=len(self.assignment)).astype(np.int64)


def confusable_sets(
    covariance: Float64[np.ndarray, "classes classes"],
    *,
    clusters: int,
    classes_per_cluster: int,
    seed: int = 0,
) -> Clustering:
    """Find sets of classes whose predictions go together.

    covariance: of the softened predictions, symmetric, as `covariance.covariance` returns it.
    clusters: number of sets, at least 1 and at most one a class.
    classes_per_cluster: classes of a set, at least 2 and fewer than all.
    seed: of k-means; the same arguments give the same sets.

    Raises ConfigError for numbers out of range, BadDataError for a covariance that is not finite.
    """
    classes = len(covariance)
    check_sizes(classes, clusters, classes_per_cluster)
    if not np.isfinite(covariance).all():
        raise BadDataError(
            "covariance",
            expected="finite numbers",
            found="NaN or infinity",
            remedy="compute it again from the store",
        )
    columns = np.ascontiguousarray(covariance.T)
    groups = online_kmeans(columns, clusters, seed=seed)
    sets = np.empty((clusters, classes_per_cluster), np.int64)
    for cluster, centre in enumerate(groups.centres):
        distances = ((columns - centre) ** 2).sum(axis=1)
        # A stable sort: of classes that are equally far, the ones that come first.
        sets[cluster] = np.sort(np.argsort(distances, kind="stable")[:classes_per_cluster])
    return Clustering(groups.assignment, groups.centres, sets, groups.inertia, groups.converged, seed)


def check_sizes(classes: int, clusters: int, classes_per_cluster: int) -> None:
    """Refuse a number or a size of sets that cannot be; costs nothing, so it can come before the covariance.

    Raises ConfigError.
    """
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
            remedy="a set of one class has nothing to confuse, and one of all classes is no choice; "
            "choose a size in between",
        )


@dataclass(frozen=True)
class ErrorsInside:
    """How well sets of classes catch a generalist's errors."""

    errors: int
    """Labelled rows that are predicted wrongly."""
    inside: int
    """Those whose label and prediction are in one set together."""
    random_share: float
    """Share of any errors that as many random sets of this size hold, in expectation."""

    @property
    def share(self) -> float:
        """Share of the errors that lie inside a set; NaN where there are none."""
        return self.inside / self.errors if self.errors else float("nan")


def errors_inside(
    sets: Int64[np.ndarray, "clusters classes_per_cluster"],
    labels: Int64[np.ndarray, "rows"],
    predictions: Int64[np.ndarray, "rows"],
    *,
    num_classes: int,
) -> ErrorsInside:
    """Count the errors that a specialist for one of the sets could correct.

    sets: classes, each once in a set.
    labels: -1 where unknown; those rows are left out.
    predictions: the most probable class of each row.
    num_classes: of the teacher; labels, predictions and sets are below it.

    The share to compare with is exact: a set of M of the C classes, drawn evenly, holds a given pair with
    probability M (M - 1) / (C (C - 1)), and K of them are drawn independently. Raises BadDataError for a
    class that does not exist.
    """
    for name, values, least in (("sets", sets, 0), ("labels", labels, -1), ("predictions", predictions, 0)):
        wrong = values[(values < least) | (values >= num_classes)]
        if len(wrong):
            raise BadDataError(
                name,
                expected=f"classes from {least} to {num_classes - 1}",
                found=str(int(wrong[0])),
                remedy="check that they belong to this store",
            )
    together = np.zeros((num_classes, num_classes), bool)
    for members in sets:
        together[np.ix_(members, members)] = True
    wrong_rows = (labels >= 0) & (labels != predictions)
    inside = int(together[labels[wrong_rows], predictions[wrong_rows]].sum())
    count, size = sets.shape
    one = size * (size - 1) / (num_classes * (num_classes - 1))
    return ErrorsInside(int(wrong_rows.sum()), inside, 1 - (1 - one) ** count)
