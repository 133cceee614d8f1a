"""The command `cluster`: stage two alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...storage.describe import clustering_record
from .. import options
from ..dask_client import scheduler_at
from ..printing.clusterings import error_record, errors_sentence, print_clustering
from ..printing.progress import show_progress
from ..printing.text import print_json, print_text, print_todo
from ..workspaces import store_to_write

if TYPE_CHECKING:
    from ...pipeline.experiment.tables import Cluster


@options.subcommand(
    "cluster",
    "logitstore cluster runs/mnist/store.zarr --teacher wide --clusters 3 --classes-per-cluster 4",
    "logitstore cluster store.zarr --teacher wide --teacher deep=2 --clusters 8 --classes-per-cluster 30 "
    "--figure clusters.png",
)
@options.store_argument
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    required=True,
    metavar="NAME[=WEIGHT]",
    help="Teacher in the store. Several are an ensemble; their softened outputs are averaged.",
)
@click.option("--clusters", type=int, required=True, metavar="K", help="Number of sets.")
@click.option(
    "--classes-per-cluster", type=int, required=True, metavar="M", help="Number of classes in a set."
)
@click.option("--temperature", type=float, metavar="T", help="Temperature of the softmax; 1 by default.")
@click.option("--method", metavar="NAME", help="k-means: online (the paper's, the default) or minibatch.")
@click.option("--restarts", type=int, metavar="N", help="Number of starts of k-means; 10 by default.")
@click.option("--normalise", is_flag=True, help="Cluster correlations, so that rare classes count as much.")
@click.option("--disjoint", is_flag=True, help="Put no class into two sets.")
@click.option("--seed", type=int, metavar="N", help="Seed of k-means; 0 by default.")
@click.option(
    "--memory",
    type=float,
    metavar="GIB",
    help="Memory for matrices of classes by classes; 4 by default. Without room for them, projections are clustered.",
)
@click.option("--name", metavar="NEW", help="Name in the store; TEACHER-KxM by default.")
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the correlations in the order of the clusters (.png, .svg, .pdf).",
)
@options.scheduler_option("A dask scheduler to compute on; threads by default.")
@options.cache_options
@options.dry_run_option
@options.json_option
def command(
    store: str,
    teachers: tuple[str, ...],
    figure: Path | None,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
    cache: Path | None,
    cache_size: str | None,
    no_cache: bool,
    **table: Any,
) -> None:
    """Group the classes whose predictions go together, and seal the sets in the STORE.

    The covariance of the softened predictions is clustered by k-means; the classes nearest to each centre are its set. No
    labels are needed. With labels, the share of the errors inside a set is printed, beside that of random sets.
    """
    from ...pipeline.cluster.figure import check_figure, check_matrix, draw_clustering
    from ...pipeline.cluster.stage import cluster_store, errors_in_sets
    from ...pipeline.cluster.todo import check_cluster, needs_clustering

    cluster = _checked(teachers, table)
    if figure is not None:
        check_figure(figure)
    opened = store_to_write(store, options.access_of_options(cache, cache_size, no_cache))
    for teacher in cluster.shares:
        _ = opened.teachers[teacher]  # raises for a missing teacher before anything else
    dimensions, name = check_cluster(cluster, opened.num_classes), cluster.part_name
    if figure is not None:
        check_matrix(figure, opened.num_classes, dimensions)
    todo = needs_clustering(opened, cluster)
    if dry_run:
        print_todo([f"make clustering {name}"] if todo else [], as_json=as_json)
        return
    with (
        show_progress(quiet=options.settings().quiet) as progress,
        scheduler_at(scheduler, otherwise="to compute on threads") as client,
    ):
        cluster_store(opened, cluster, scheduler="threads" if client is None else client, progress=progress)
    if figure is not None:
        draw_clustering(opened, name, figure)
    record, errors = clustering_record(opened, name), errors_in_sets(opened, name)
    if as_json:
        print_json({**record, "errors_inside": error_record(errors), "store": opened.digest})
        return
    if not todo:
        print_text(f"nothing to do: clusters/{name} is made and unchanged")
    print_clustering(record)
    if errors is not None:
        print_text("", errors_sentence(record["teachers"], errors, "the labelled rows"))
    print_text(f"digest  {record['digest']}", f"store   {opened.digest}")


def _checked(teachers: Sequence[str], settings: dict[str, Any]) -> "Cluster":
    """Return the options as the table of an experiment. Raises ConfigError with the name of the option."""
    from ...pipeline.experiment.schema import checked
    from ...pipeline.experiment.tables import Cluster

    given = {key: value for key, value in settings.items() if value is not None}
    one = len(teachers) == 1 and "=" not in teachers[0]
    source = {"teacher": teachers[0]} if one else {"teachers": _weights(teachers)}
    return checked(Cluster, "cluster", **source, **given)


def _weights(teachers: Sequence[str]) -> dict[str, float]:
    """Return the weight of each teacher: the number behind its name, or 1. Raises ConfigError."""
    from ...storage.errors import ConfigError

    weights: dict[str, float] = {}
    for text in teachers:
        name, _, weight = text.partition("=")
        try:
            value = float(weight) if "=" in text else 1.0
        except ValueError:
            value = float("nan")
        if name in weights or not value > 0:
            raise ConfigError(
                f"--teacher {text}",
                expected="each teacher once, with a weight above 0",
                found=f"{name} twice" if name in weights else f"the weight {weight!r}",
                remedy="write it like wide=2",
            )
        weights[name] = value
    return weights
