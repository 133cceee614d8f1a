"""Identity of a clustering, and whether it is missing. Imports no torch."""

from typing import Any

from ...storage.api import Store
from ...storage.errors import ConfigError
from ...storage.identity import as_json, check_same
from ..experiment.schema import settled
from ..experiment.tables import Cluster
from ..workspace import Workspace
from .memory import GIB, MATRICES, choose_dimensions, gib
from .sets import check_sizes

_LATER = {"disjoint", "normalise", "restarts"}
"""Keys that came later: at their defaults they are left out, and an older clustering is the same."""


def check_cluster(cluster: Cluster, num_classes: int) -> int | None:
    """Return the dimensions that the covariance is projected into; None if the whole matrix fits.

    Takes no time, so that it can come first. Raises ConfigError for settings that do not fit the number of classes.
    """
    check_sizes(num_classes, cluster.clusters, cluster.classes_per_cluster, disjoint=cluster.disjoint)
    dimensions = choose_dimensions(num_classes, int(cluster.memory * GIB))
    if dimensions is not None and cluster.normalise:
        raise ConfigError(
            "normalise",
            expected=f"memory = {gib(MATRICES * 8 * num_classes**2)}, for the whole matrix",
            found=f"{cluster.memory:g}, for a projection, of which variances would have to be known beforehand",
            remedy="raise memory, or leave normalise out",
        )
    return dimensions


def cluster_identity(store: Store, cluster: Cluster) -> dict[str, Any]:
    """Return the identity of a clustering. Raises PartNotFound or StoreIncomplete for a capture that is not sealed."""
    captures = {
        name: {"seal": store.teachers[name].digest, "share": share} for name, share in cluster.shares.items()
    }
    dimensions = check_cluster(cluster, store.num_classes)
    source: dict[str, Any] = {"captures": captures}
    if cluster.teacher is not None:
        source = {"capture": {"name": cluster.teacher, "seal": captures[cluster.teacher]["seal"]}}
    return {
        **source,
        "clusters": cluster.clusters,
        "classes_per_cluster": cluster.classes_per_cluster,
        "temperature": cluster.temperature,
        "seed": cluster.seed,
        "algorithm": f"{cluster.method}-kmeans",
        **settled(cluster, later=_LATER, idle=set(Cluster.model_fields) - _LATER),
        **({} if dimensions is None else {"dimensions": dimensions}),
    }


def needs_clustering(store: Store, cluster: Cluster) -> bool:
    """Return whether a clustering is missing, or has lost files. Raises SpecMismatch for a name that is another's."""
    part = f"clusters/{cluster.part_name}"
    sealed = store.find_part(part)
    if sealed is None:
        return True
    check_same(
        f"{store.path}: {part}",
        as_json(cluster_identity(store, cluster)),
        {key: value for key, value in sealed.spec.identity.items() if key != "views"},
        made="with which it was made",
        remedy="change it back, or give the new one another name",
    )
    return not store.is_whole(part)


def missing_clustering(work: Workspace) -> Cluster | None:
    """Return the experiment's clustering if it is missing, checked as far as its sizes go. Raises as the above."""
    cluster, store = work.experiment.cluster, work.find_store()
    if cluster is None:
        return None
    captured = store is not None and all(store.find_part(f"teachers/{name}") for name in cluster.shares)
    if store is not None and captured and not needs_clustering(store, cluster):
        return None
    check_cluster(cluster, work.rows.num_classes)
    return cluster
