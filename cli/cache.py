"""How are the teachers of an experiment run into a store: stage one alone?"""

from pathlib import Path

import click

from .options import (
    device_option,
    dry_run_option,
    examples,
    experiment_argument,
    models_option,
    settings,
    store_argument,
    verbosity_options,
)
from .output import print_text
from .progress import show_progress
from .run import print_todo
from .show import print_store


@click.command(
    "cache",
    epilog=examples("logitstore cache experiments/mnist.toml runs/mnist/store.zarr"),
)
@verbosity_options
@experiment_argument
@store_argument
@models_option
@device_option
@dry_run_option
def command(experiment: Path, store: str, models: Path | None, device: str | None, dry_run: bool) -> None:
    """Run the teachers of an EXPERIMENT once and seal their logits in a STORE.

    Teachers without weights are trained first, from the labels. What is sealed is not done again; what was
    interrupted goes on where it stopped, and ends with the same bytes.
    """
    from ..pipeline.agenda import check_samples, missing_captures, open_existing
    from ..pipeline.experiment import load_experiment
    from ..pipeline.records import Models
    from ..pipeline.transfer import TransferRows
    from ..storage.api import open_store
    from ..storage.files import local_path

    found, path = load_experiment(experiment), local_path(store)
    kept = Models(path.parent / "models" if models is None else models)
    if dry_run:
        there, rows = open_existing(path), TransferRows(found)
        if there is not None:
            check_samples(there, rows)
        missing = missing_captures(found, rows, kept, there)
        print_todo([f"capture teacher {member.name}" for member in missing])
        return
    from ..pipeline.cache import cache

    with show_progress(quiet=settings().quiet) as progress:
        report = cache(found, path, kept, device=device, progress=progress)
    for name in report.captured:
        print_text(f"captured  {name}")
    if not report.captured:
        print_text(f"nothing to do: {', '.join(report.kept)} captured already and unchanged")
    print_text()
    print_store(open_store(path))
