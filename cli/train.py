"""How are students trained from a store: stage three alone?"""

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


@click.command(
    "train",
    epilog=examples(
        "logitstore train experiments/mnist.toml runs/mnist/store.zarr",
        "torchrun --nproc-per-node 2 -m logitstore train experiments/mnist.toml runs/mnist/store.zarr",
    ),
)
@verbosity_options
@experiment_argument
@store_argument
@models_option
@device_option
@dry_run_option
def command(experiment: Path, store: str, models: Path | None, device: str | None, dry_run: bool) -> None:
    """Train the students of an EXPERIMENT from a STORE, once a seed: no teacher is run.

    A student that was trained from the same captures with the same settings is not trained again, and one that was
    interrupted goes on from its last checkpoint, where it has checkpoint_every. Several processes train each
    student together: torchrun --nproc-per-node N -m logitstore train EXPERIMENT STORE.
    """
    from ..pipeline.agenda import missing_students
    from ..pipeline.experiment import load_experiment
    from ..pipeline.ranks import OtherRankFailed, joined
    from ..pipeline.records import Models
    from ..storage.api import open_store
    from ..storage.files import local_path

    try:
        with joined() as ranks:
            found, path = load_experiment(experiment), local_path(store)
            kept, opened = Models(path.parent / "models" if models is None else models), open_store(path)
            missing = missing_students(found, kept, opened)
            if dry_run:
                if ranks.is_first:
                    print_todo([f"train student {run.name}" for run in missing])
                return
            names: list[str] = []
            # Several ranks always ask the first what is missing: it may be done before the last has looked.
            if missing or ranks.size > 1:
                from ..pipeline.train import train_students

                with show_progress(quiet=settings().quiet or not ranks.is_first) as progress:
                    names = train_students(found, opened, kept, device=device, progress=progress, ranks=ranks)
            if ranks.is_first:
                if not names:
                    print_text("nothing to do: every student is trained and unchanged")
                for name in names:
                    print_text(f"trained  {kept.weights_path('students', name)}")
    except OtherRankFailed as failure:
        raise click.exceptions.Exit(failure.exit_code) from failure
