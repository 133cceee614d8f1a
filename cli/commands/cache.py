"""The command `cache`: stage one alone."""

from pathlib import Path

import click

from ..options import (
    device_option,
    dry_run_option,
    examples,
    experiment_argument,
    models_option,
    settings,
    store_argument,
    verbosity_options,
)
from ..printing.progress import show_progress
from ..printing.stores import print_store
from ..printing.text import print_text, print_todo

WAIT_SECONDS = 86_400.0
"""Seconds that a rank waits for the others. One that dies is noticed at once; this is for one that hangs."""


@click.command(
    "cache",
    epilog=examples(
        "logitstore cache experiments/mnist.toml runs/mnist/store.zarr",
        "torchrun --nproc-per-node 2 -m logitstore cache experiments/mnist.toml runs/mnist/store.zarr",
    ),
)
@verbosity_options
@experiment_argument
@store_argument
@models_option
@device_option
@click.option(
    "--stop-below",
    type=click.FloatRange(0, 1),
    metavar="ACCURACY",
    help="Stop when a teacher is right on a smaller share of its first labelled rows.",
)
@dry_run_option
def command(
    experiment: Path,
    store: str,
    models: Path | None,
    device: str | None,
    stop_below: float | None,
    dry_run: bool,
) -> None:
    """Run the teachers of an EXPERIMENT once and seal their logits in a STORE.

    Teachers without weights are trained first, from the labels. What is sealed is not done again; what was
    interrupted goes on where it stopped, and ends with the same bytes. Several processes share the work, and any
    other number goes on with it: torchrun --nproc-per-node N -m logitstore cache EXPERIMENT STORE.
    """
    from ...pipeline.cache.todo import find_todo
    from ...pipeline.experiment.document import load_experiment
    from ...pipeline.runtime.ranks import OtherRankFailed, joined
    from ...pipeline.workspace import Workspace
    from ...storage.backends.local import local_path

    try:
        # A rank may wait for the last block of another, or for a teacher to be trained: longer than for a step.
        with (
            joined(WAIT_SECONDS) as ranks,
            show_progress(quiet=settings().quiet or not ranks.is_first) as progress,
        ):
            work = Workspace.of_store(
                load_experiment(experiment),
                local_path(store),
                models,
                device=device,
                progress=progress,
                ranks=ranks,
            )
            if dry_run:
                if ranks.is_first:
                    print_todo(find_todo(work).lines())
                return
            from ...pipeline.cache.stage import cache

            report = cache(work, stop_below=stop_below)
            if not ranks.is_first:
                return
            for name in report.captured:
                tally = report.quality[name]
                good = f"  ({tally.accuracy:.2%} right, {tally.nll:.3g} nats a row)" if tally.rows else ""
                print_text(f"captured  {name}{good}")
            if not report.captured:
                print_text(f"nothing to do: {', '.join(report.kept)} captured already and unchanged")
            print_text()
            print_store(work.store)
    except OtherRankFailed as failure:
        raise click.exceptions.Exit(failure.exit_code) from failure
