"""How are the teachers of an experiment run into a store: stage one alone?"""

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
"""How long a rank waits for the others. One that dies is noticed at once; this is for one that hangs."""


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
    from ...pipeline.cache.todo import check_samples, missing_captures, open_existing
    from ...pipeline.experiment.document import load_experiment
    from ...pipeline.models.records import Models
    from ...pipeline.runtime.ranks import OtherRankFailed, joined
    from ...pipeline.transfer import TransferRows
    from ...storage.api import open_store
    from ...storage.backends.local import local_path

    try:
        # A rank may wait for the last block of another, or for a teacher to be trained: longer than for a step.
        with joined(WAIT_SECONDS) as ranks:
            found, path = load_experiment(experiment), local_path(store)
            kept = Models(path.parent / "models" if models is None else models)
            if dry_run:
                if not ranks.is_first:
                    return
                there, rows = open_existing(path), TransferRows(found)
                if there is not None:
                    check_samples(there, rows)
                missing = missing_captures(found, rows, kept, there)
                print_todo([f"capture teacher {member.name}" for member in missing])
                return
            from ...pipeline.cache.stage import cache

            with show_progress(quiet=settings().quiet or not ranks.is_first) as progress:
                report = cache(
                    found,
                    path,
                    kept,
                    device=device,
                    progress=progress,
                    ranks=ranks,
                    stop_below=stop_below,
                )
            if not ranks.is_first:
                return
            for name in report.captured:
                tally = report.quality[name]
                good = f"  ({tally.accuracy:.2%} right, {tally.nll:.3g} nats a row)" if tally.rows else ""
                print_text(f"captured  {name}{good}")
            if not report.captured:
                print_text(f"nothing to do: {', '.join(report.kept)} captured already and unchanged")
            print_text()
            print_store(open_store(path))
    except OtherRankFailed as failure:
        raise click.exceptions.Exit(failure.exit_code) from failure
