"""Stage two: the sets of classes that a teacher, or an ensemble of teachers, confuses.

1. The covariance of the softened predictions is taken from the store; if it does not fit the given memory, a random projection
   of its columns.
2. The columns are clustered, and each cluster gets a set of classes.
3. If there are labels, the errors of the predictions that lie inside a set are counted.
4. Matrix, assignment, centres and sets are sealed as a part of their own, with the figures of 2 and 3 as its notes.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ...storage.api import Store
from ...storage.format.documents import integer
from ...storage.parts.clusterings import ClusteringReader
from ...storage.progress import Progress, silent
from ...storage.sharing.card_file import refresh_card
from ..experiment.tables import Cluster
from ..runtime.dask_tasks import over_blocks
from .covariance import covariance
from .errors_inside import DRAWS, ErrorsInside, errors_inside
from .memory import GIB
from .projection import ProjectionError, projected_columns
from .sets import Clustering, confusable_sets, correlation_of
from .softened import Softened, softened_outputs
from .todo import check_cluster, cluster_identity, needs_clustering

_DIGITS = 9
"""Significant digits of a figure in the notes, few enough for every machine to agree."""


def cluster_store(
    store: Store, cluster: Cluster, *, scheduler: Any = "threads", progress: Progress = silent
) -> str:
    """Make and seal `clusters/<name>`, unless it is there; its digest.

    scheduler: as of `dask.compute`. Raises PartNotFound or StoreIncomplete for a teacher that is not cached, BadDataError for
    one without all classes, ConfigError for sizes that make no sets, SpecMismatch for the name of another clustering, and for
    teachers of an ensemble that saw different inputs.
    """
    softened = softened_outputs(store, cluster.shares, cluster.temperature)
    dimensions = check_cluster(cluster, store.num_classes)
    if missing := needs_clustering(store, cluster):
        store.check_writable()
        how: dict[str, Any] = {
            "scheduler": scheduler,
            "memory": int(cluster.memory * GIB),
            "progress": progress,
        }
        arrays: dict[str, NDArray[Any]]
        projection: ProjectionError | None = None
        if dimensions is None:
            matrix = covariance(softened, **how)
            found = _sets(correlation_of(matrix) if cluster.normalise else matrix, cluster)
            arrays = {"covariance": matrix.astype(np.float32), "centres": found.centres.astype(np.float32)}
        else:
            projected = projected_columns(softened, dimensions, seed=cluster.seed, **how)
            projection = projected.error
            found = _sets(projected.columns, cluster)
            arrays = {
                "projected": projected.columns.astype(np.float32),
                "projected_centres": found.centres.astype(np.float32),
            }
        errors = count_errors(store, found.sets, softened, cluster.disjoint, cluster.seed, progress=progress)
        store.write_clustering(
            cluster.part_name,
            {**arrays, "assignment": found.assignment, "sets": found.sets},
            identity=cluster_identity(store, cluster),
            notes=_notes(found, errors, projection),
        )
    refresh_card(store.root, made=bool(missing))
    return store.clustering(cluster.part_name).digest


def _sets(columns: NDArray[np.float64], cluster: Cluster) -> Clustering:
    return confusable_sets(
        columns,
        clusters=cluster.clusters,
        classes_per_cluster=cluster.classes_per_cluster,
        seed=cluster.seed,
        method=cluster.method,
        restarts=cluster.restarts,
        disjoint=cluster.disjoint,
    )


def _notes(
    found: Clustering, errors: ErrorsInside | None, projection: ProjectionError | None
) -> dict[str, Any]:
    notes: dict[str, Any] = {"inertia": _rounded(found.inertia), "converged": found.converged}
    if errors is not None:
        notes["errors_inside"] = {
            "errors": errors.errors,
            "inside": errors.inside,
            "random_share": _rounded(errors.random_share),
            "draws": errors.draws,
            **({"random_deviation": _rounded(errors.random_deviation)} if errors.draws else {}),
        }
    if projection is not None:
        notes["projection_error"] = {
            "classes": projection.classes,
            "rms": _rounded(projection.rms),
            "largest": _rounded(projection.largest),
            "expected": _rounded(projection.expected),
        }
    return notes


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def count_errors(
    store: Store,
    sets: Int64[np.ndarray, "clusters classes_per_cluster"],
    softened: Softened,
    disjoint: bool,
    seed: int,
    *,
    progress: Progress = silent,
) -> ErrorsInside | None:
    """Count the errors of softened predictions inside a set, and inside random sets; None without labels.

    The predictions are those of view 0; of an ensemble, at the temperature of the clustering.
    """
    labels = store.samples.labels
    if not (labels >= 0).any():
        return None

    def predict(view: int, rows: range) -> Int64[np.ndarray, "rows"]:
        return np.concatenate([softened.read(view, some).argmax(axis=1) for some in softened.slices(rows)])

    blocks = [(view, rows) for view, rows in softened.blocks() if view == 0]
    predictions = np.concatenate(over_blocks("errors", blocks, predict, progress=progress))
    return errors_inside(
        sets, labels, predictions, num_classes=store.num_classes, disjoint=disjoint, draws=DRAWS, seed=seed
    )


def errors_in_sets(store: Store, name: str) -> ErrorsInside | None:
    """Return the teacher's errors inside a set of clustering `name`; None without labels.

    They are read from the notes, or, for an older clustering without them, counted now.
    """
    clustering = ClusteringReader(store.root, name)
    noted = clustering.errors_inside
    if noted is not None:
        return ErrorsInside(**noted)
    about, identity = clustering.about, clustering.part.spec.identity
    if about["teacher"] is None or not (store.samples.labels >= 0).any():
        return None
    temperature = 1.0 if about["temperature"] is None else float(about["temperature"])
    softened = softened_outputs(store, {about["teacher"]: 1.0}, temperature)
    seed = integer(identity.get("seed", 0), 0, str(clustering.part.folder.path), "seed")
    return count_errors(store, clustering.sets, softened, False, seed)
