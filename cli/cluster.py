"""Which classes does a teacher in a store confuse: stage two alone?"""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .options import (
    dry_run_option,
    examples,
    json_option,
    settings,
    store_argument,
    teacher_option,
    verbosity_options,
)
from .output import print_json, print_text
from .progress import show_progress
from .run import print_todo
from .show import clustering_record, print_clustering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..pipeline.experiment import Cluster

_ANSWER_WITHIN = 10.0
"""Seconds that a scheduler has to answer."""


@click.command(
    "cluster",
    epilog=examples(
        "logitstore cluster runs/mnist/store.zarr --teacher wide --clusters 3 --classes-per-cluster 4",
    ),
)
@verbosity_options
@store_argument
@teacher_option
@click.option("--clusters", type=int, required=True, metavar="K", help="Number of sets.")
@click.option("--classes-per-cluster", type=int, required=True, metavar="M", help="Classes of a set.")
@click.option("--temperature", type=float, metavar="T", help="Of the softmax; 1 by default.")
@click.option("--seed", type=int, metavar="N", help="Of k-means; 0 by default.")
@click.option("--name", metavar="NEW", help="Name in the store; TEACHER-KxM by default.")
@click.option("--scheduler", metavar="tcp://…", help="A dask scheduler to compute on; threads by default.")
@dry_run_option
@json_option
def command(
    store: str, teacher: str, scheduler: str | None, dry_run: bool, as_json: bool, **table: Any
) -> None:
    """Group the classes whose predictions go together, and seal the sets in the STORE.

    The covariance of the teacher's softened predictions is clustered by k-means. No labels are needed; where
    there are some, the share of the teacher's errors that lie inside a set is printed, beside the share that
    random sets of the same size and number would hold.
    """
    from ..pipeline.agenda import needs_clustering
    from ..pipeline.cluster import cluster_store, errors_in_sets
    from ..storage.api import open_store
    from ..storage.files import local_path

    cluster = _checked(teacher, table)
    opened = open_store(local_path(store))  # it will be written to
    _ = opened.teachers[cluster.teacher]  # a teacher that is not there comes before anything else
    todo = needs_clustering(opened, cluster)
    if dry_run:
        print_todo([f"make clustering {cluster.part_name}"] if todo else [], as_json=as_json)
        return
    with show_progress(quiet=settings().quiet) as progress, _scheduler(scheduler) as where:
        cluster_store(opened, cluster, scheduler=where, progress=progress)
    record = clustering_record(opened, cluster.part_name)
    errors = errors_in_sets(opened, cluster.part_name)
    if as_json:
        found = (
            None
            if errors is None
            else {
                "errors": errors.errors,
                "inside": errors.inside,
                "share": errors.share,
                "random_share": errors.random_share,
            }
        )
        print_json({**record, "errors_inside": found, "store": opened.digest})
        return
    if not todo:
        print_text(f"nothing to do: clusters/{cluster.part_name} is made and unchanged")
    print_clustering(record)
    if errors is not None:
        print_text()
        share = f"{errors.inside:,} of them ({errors.share:.1%})" if errors.errors else "none of them"
        print_text(
            f"{cluster.teacher} makes {errors.errors:,} errors on the labelled rows; {share} lie inside a set, "
            f"random sets would hold {errors.random_share:.1%}"
        )
    print_text(f"digest  {opened.digest}")


def _checked(teacher: str, options: dict[str, Any]) -> "Cluster":
    """The options as the table of an experiment. Raises ConfigError, which names the option."""
    from pydantic import ValidationError

    from ..pipeline.experiment import Cluster
    from ..pipeline.schema import explain

    given = {key: value for key, value in options.items() if value is not None}
    try:
        return Cluster.model_validate({"teacher": teacher, **given})
    except ValidationError as error:
        raise explain(error, "logitstore cluster") from None


@contextmanager
def _scheduler(address: str | None) -> "Iterator[Any]":
    """What `dask.compute` takes as its scheduler. Raises TransientIOError where none answers."""
    if address is None:
        yield "threads"
        return
    from distributed import Client

    from ..storage.errors import TransientIOError

    try:
        client = Client(address, timeout=_ANSWER_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TransientIOError(
            f"--scheduler {address}",
            expected=f"a dask scheduler that answers within {_ANSWER_WITHIN:.0f} s",
            found=str(error) or type(error).__name__,
            remedy="start one with `dask scheduler`, or leave the option out to compute on threads",
        ) from error
    with client:
        yield client
