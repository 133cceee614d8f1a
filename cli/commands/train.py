"""How are students trained from a store: stage three alone?"""

from pathlib import Path

import click

from ..dask_client import scheduler_at
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
from ..printing.text import print_text, print_todo
from .cache import WAIT_SECONDS


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
@click.option(
    "--scheduler",
    metavar="tcp://…",
    help="A dask scheduler whose workers train the specialists, one each at a time.",
)
@dry_run_option
def command(
    experiment: Path,
    store: str,
    models: Path | None,
    device: str | None,
    scheduler: str | None,
    dry_run: bool,
) -> None:
    """Train the specialists and the students of an EXPERIMENT from a STORE: no teacher is run.

    Specialists are trained, captured in the STORE and combined, as the experiment says; students are trained once a
    seed. What was trained from the same captures with the same settings is not trained again, and a training that was
    interrupted goes on from its last checkpoint, where it has checkpoint_every. Several processes train each
    student together, and deal the specialists: torchrun --nproc-per-node N -m logitstore train EXPERIMENT STORE.
    """
    from ...pipeline.experiment.document import load_experiment
    from ...pipeline.models.records import Models
    from ...pipeline.runtime.ranks import OtherRankFailed, joined
    from ...pipeline.specialists.stage import make_specialists, pending_specialists
    from ...pipeline.train.todo import missing_students
    from ...pipeline.transfer import TransferRows
    from ...storage.api import open_store
    from ...storage.backends.local import local_path

    try:
        with joined(_patience(experiment)) as ranks:
            found, path = load_experiment(experiment), local_path(store)
            kept, opened = Models(path.parent / "models" if models is None else models), open_store(path)
            rows = None if found.specialists is None else TransferRows(found)
            special = None if rows is None else pending_specialists(found, rows, kept, opened)
            missing = missing_students(found, kept, opened)
            if dry_run:
                if ranks.is_first:
                    lines = [] if special is None else special.lines()
                    print_todo([*lines, *(f"train student {run.name}" for run in missing)])
                return
            names: list[str] = []
            quiet = settings().quiet or not ranks.is_first
            # Several ranks always ask the first what is missing: it may be done before the last has looked.
            if special or (special is not None and ranks.size > 1):
                with show_progress(quiet=quiet) as progress, scheduler_at(scheduler) as client:
                    done = make_specialists(
                        found,
                        opened,
                        kept,
                        rows=rows,
                        device=device,
                        progress=progress,
                        ranks=ranks,
                        scheduler=client,
                    )
                if ranks.is_first:
                    for name in done.trained:
                        print_text(f"trained   {kept.weights_path('specialists', name)}")
                    for name in done.captured:
                        print_text(f"captured  {name}")
                    if done.combined is not None:
                        print_text(f"combined  {done.combined}")
            if missing or ranks.size > 1:
                from ...pipeline.train.stage import train_students

                with show_progress(quiet=quiet) as progress:
                    names = train_students(found, opened, kept, device=device, progress=progress, ranks=ranks)
            if ranks.is_first:
                if not names and not special:
                    who = "every student" if rows is None else "everything"
                    print_text(f"nothing to do: {who} is trained and unchanged")
                said = "trained  " if rows is None else "trained   "
                for name in names:
                    print_text(f"{said}{kept.weights_path('students', name)}")
    except OtherRankFailed as failure:
        raise click.exceptions.Exit(failure.exit_code) from failure


def _patience(experiment: Path) -> float:
    """Seconds that a rank waits for the others, who may be training a specialist; less where there can be none."""
    from ...pipeline.runtime.ranks import TIMEOUT_SECONDS

    try:
        return WAIT_SECONDS if b"[specialists" in experiment.read_bytes() else TIMEOUT_SECONDS
    except OSError:
        return TIMEOUT_SECONDS  # which is said when it is read in earnest
