"""The command `cache`: stage one alone."""

from pathlib import Path

import click

from .. import options
from ..printing.scores import validated_lines
from ..printing.stores import captured_line, print_store
from ..printing.text import nothing_to_do, print_text, print_todo
from ..workspaces import workspace


@options.subcommand(
    "cache",
    "logitstore cache experiments/mnist.toml runs/mnist/store.zarr",
    "logitstore cache new.toml new/store.zarr --reuse runs/mnist/store.zarr",
    "logitstore cache experiments/mnist.toml s3://bucket/mnist.zarr --models runs/mnist/models",
    "torchrun --nproc-per-node 2 -m logitstore cache experiments/mnist.toml runs/mnist/store.zarr",
)
@options.experiment_argument
@options.store_argument
@options.models_option
@options.device_option
@click.option(
    "--stop-below",
    type=click.FloatRange(0, 1),
    metavar="ACCURACY",
    help="Stop when a teacher is right on a smaller share of its first labelled rows.",
)
@options.reuse_option
@options.dry_run_option
def command(
    experiment: Path,
    store: str,
    models: Path | None,
    device: str | None,
    stop_below: float | None,
    reuse: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run the teachers of an EXPERIMENT once and seal their logits in a STORE.

    Teachers without weights are trained first, from the labels. Sealed captures are skipped. An interrupted capture
    is resumed and ends with the same bytes. Several processes share the work, and any other number of them can
    resume it: torchrun --nproc-per-node N -m logitstore cache EXPERIMENT STORE.

    For a data set that grew or changed, --reuse names the store of the earlier one: the teachers run on new rows alone.
    """
    from ...pipeline.cache.todo import find_todo

    with workspace(experiment, store, models, device, reuse) as work:
        if dry_run:
            if work.ranks.is_first:
                todo = find_todo(work)
                print_todo(todo.lines(), compared=todo.compared)
            return
        from ...pipeline.cache.stage import cache

        report = cache(work, stop_below=stop_below)
        if not work.ranks.is_first:
            return
        for name in report.captured:
            print_text(
                captured_line(name, report.quality[name]), *validated_lines(work.models, "teachers", name)
            )
        if not report.captured:
            kept = f"{', '.join(report.kept)} captured already and unchanged"
            print_text(nothing_to_do(kept, report.compared))
        print_text("")
        print_store(work.store)
