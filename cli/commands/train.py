"""The command `train`: stage three alone."""

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
    from ...pipeline.runtime.ranks import OtherRankFailed, joined
    from ...pipeline.specialists.todo import find_todo
    from ...pipeline.train.todo import missing_students
    from ...pipeline.workspace import Workspace
    from ...storage.backends.local import local_path

    try:
        with (
            joined(_patience(experiment)) as ranks,
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
            _ = work.store  # nothing is trained without one
            special, students = find_todo(work), missing_students(work)
            if dry_run:
                if ranks.is_first:
                    print_todo([*special.lines(), *(f"train student {run.name}" for run in students)])
                return
            has_specialists = work.experiment.specialists is not None
            # Several ranks always ask the first for its todo: all may be done before the last has looked.
            if special or (has_specialists and ranks.size > 1):
                from ...pipeline.specialists.stage import make_specialists

                with scheduler_at(scheduler) as client:
                    done = make_specialists(work, special, scheduler=client)
                if ranks.is_first:
                    for name in done.trained:
                        print_text(f"trained   {work.models.weights_path('specialists', name)}")
                    for name in done.captured:
                        print_text(f"captured  {name}")
                    if done.combined is not None:
                        print_text(f"combined  {done.combined}")
            names: list[str] = []
            if students or ranks.size > 1:
                from ...pipeline.train.stage import train_students

                names = train_students(work, missing_students(work) if special else students)
            if ranks.is_first:
                if not names and not special:
                    trained = "everything" if has_specialists else "every student"
                    print_text(f"nothing to do: {trained} is trained and unchanged")
                verb = "trained   " if has_specialists else "trained  "
                for name in names:
                    print_text(f"{verb}{work.models.weights_path('students', name)}")
    except OtherRankFailed as failure:
        raise click.exceptions.Exit(failure.exit_code) from failure


def _patience(experiment: Path) -> float:
    """Return the seconds that a rank waits for the others: longer if they may be training a specialist."""
    from ...pipeline.runtime.ranks import TIMEOUT_SECONDS

    try:
        return WAIT_SECONDS if b"[specialists" in experiment.read_bytes() else TIMEOUT_SECONDS
    except OSError:
        return TIMEOUT_SECONDS  # loading the experiment will raise the error
