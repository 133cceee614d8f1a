"""Clusterings of an experiment: what each is made from, and whether it is still missing."""

from typing import Any

from ...storage.api import Store
from ...storage.errors import ConfigError
from ...storage.identity import as_json, check_same
from ..experiment.schema import settled
from ..experiment.tables import Cluster
from .memory import GIB, MATRICES, choose_dimensions, gib
from .sets import check_sizes

# Clusters


def check_cluster(cluster: Cluster, num_classes: int) -> int | None:
    """Dimensions that the columns of the covariance are projected into; None where the whole matrix fits.

    Costs nothing, so it can come before everything else. Raises ConfigError for settings that no clustering of so many
    classes can have.
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
    """What a clustering follows from."""
    captures = {
        name: {"seal": store.root.digest_of(f"teachers/{name}"), "share": share}
        for name, share in cluster.shares.items()
    }
    dimensions = check_cluster(cluster, store.num_classes)
    return {
        **(
            {"captures": captures}
            if cluster.teacher is None
            else {"capture": {"name": cluster.teacher, "seal": captures[cluster.teacher]["seal"]}}
        ),
        "clusters": cluster.clusters,
        "classes_per_cluster": cluster.classes_per_cluster,
        "temperature": cluster.temperature,
        "seed": cluster.seed,
        "algorithm": f"{cluster.method}-kmeans",
        # Keys that came later: at their defaults a clustering is what it was.
        **settled(
            cluster,
            later={"disjoint", "normalise", "restarts"},
            idle=set(Cluster.model_fields) - {"disjoint", "normalise", "restarts"},
        ),
        **({} if dimensions is None else {"dimensions": dimensions}),
    }


def needs_clustering(store: Store, cluster: Cluster) -> bool:
    """Whether a clustering is still to be made, or has lost files. Raises SpecMismatch where its name is another one's."""
    if cluster.part_name not in store.clusterings:
        return True
    theirs = dict(store.root.spec(f"clusters/{cluster.part_name}").identity)
    theirs.pop("views", None)
    check_same(
        f"{store.path}: clusters/{cluster.part_name}",
        as_json(cluster_identity(store, cluster)),
        theirs,
        made="with which it was made",
        remedy="change it back, or give the new one another name",
    )
    return not store.root.is_whole(f"clusters/{cluster.part_name}")
