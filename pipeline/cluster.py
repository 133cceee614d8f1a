"""Stage two: which classes does a teacher confuse?

The covariance of its softened predictions is taken from the store, its columns are clustered, and the sets
are sealed as a part of their own. Needs no labels; where there are some, `errors_in_sets` says how many of
the teacher's errors lie inside a set.
"""

from typing import Any

import numpy as np

from ..storage.api import Store
from ..storage.progress import Progress, silent
from .agenda import cluster_identity, needs_clustering
from .confusable import ErrorsInside, check_sizes, confusable_sets, errors_inside
from .covariance import covariance
from .experiment import Cluster


def cluster_store(
    store: Store, cluster: Cluster, *, scheduler: Any = "threads", progress: Progress = silent
) -> str:
    """Make and seal `clusters/<name>`, unless that is done; its digest.

    scheduler: as `dask.compute` takes it. Raises PartNotFound or StoreIncomplete where the teacher is not cached,
    ConfigError for sizes that make no sets, SpecMismatch where the name is another clustering's.
    """
    capture = store.teachers[cluster.teacher]
    check_sizes(store.num_classes, cluster.clusters, cluster.classes_per_cluster)
    if needs_clustering(store, cluster):
        matrix = covariance(
            capture.dask(cluster.temperature), cluster.temperature, scheduler=scheduler, progress=progress
        )
        found = confusable_sets(
            matrix,
            clusters=cluster.clusters,
            classes_per_cluster=cluster.classes_per_cluster,
            seed=cluster.seed,
        )
        arrays = {
            "covariance": matrix.astype(np.float32),
            "assignment": found.assignment,
            "centres": found.centres.astype(np.float32),
            "sets": found.sets,
        }
        store.write_clustering(cluster.part_name, arrays, identity=cluster_identity(store, cluster))
    return store.clustering(cluster.part_name).digest


def errors_in_sets(store: Store, name: str) -> ErrorsInside | None:
    """How many of the teacher's errors lie inside a set of clustering `name`; None without labels."""
    labels = store.samples.labels
    if not (labels >= 0).any():
        return None
    part = store.clustering(name)
    capture = store.teachers[str(part.spec.identity["capture"]["name"])]
    grid = store.root.grid
    predictions = np.concatenate(
        [capture.read(grid.rows(block), temperature=1.0).argmax(axis=1) for block in range(grid.num_blocks)]
    )
    return errors_inside(part.small("sets"), labels, predictions, num_classes=store.num_classes)
