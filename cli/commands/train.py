"""The command `train`: stage three alone."""

from pathlib import Path

from .. import options
from ..dask_client import scheduler_at
from ..printing.text import print_text, print_todo
from ..workspaces import PATIENCE, workspace


@options.subcommand(
    "train",
    "logitstore train experiments/mnist.toml runs/mnist/store.zarr",
    "torchrun --nproc-per-node 2 -m logitstore train experiments/mnist.toml runs/mnist/store.zarr",
)
@options.experiment_argument
@options.store_argument
@options.models_option
@options.device_option
@options.scheduler_option("A dask scheduler whose workers train the specialists, one each at a time.")
@options.dry_run_option
def command(
    experiment: Path,
    store: str,
    models: Path | None,
    device: str | None,
    scheduler: str | None,
    dry_run: bool,
) -> None:
    """Train the specialists and the students of an EXPERIMENT from a STORE, without running a teacher.

    Specialists are trained, captured in the STORE and combined, as the experiment asks. Students are trained once a
    seed. A model is skipped if its captures and settings are unchanged. With checkpoint_every, an interrupted
    training resumes from its last checkpoint. Several processes train each student together and divide the
    specialists: torchrun --nproc-per-node N -m logitstore train EXPERIMENT STORE.
    """
    from ...pipeline.specialists.todo import find_todo
    from ...pipeline.train.todo import missing_students

    with workspace(experiment, store, models, device, patience=_patience(experiment)) as work:
        _ = work.store  # nothing is trained without one
        several, write = work.ranks.size > 1, print_text if work.ranks.is_first else _discard
        special, students = find_todo(work), missing_students(work)
        if dry_run:
            if work.ranks.is_first:
                print_todo([*special.lines(), *(f"train student {run.name}" for run in students)])
            return
        has_specialists = work.experiment.specialists is not None
        # Several ranks always ask the first for its todo: all may be done before the last has looked.
        if special or (has_specialists and several):
            from ...pipeline.specialists.stage import make_specialists

            with scheduler_at(scheduler) as client:
                done = make_specialists(work, special, scheduler=client)
            write(*(f"trained   {work.models.weights_path('specialists', name)}" for name in done.trained))
            write(*(f"captured  {name}" for name in done.captured))
            write(*(f"combined  {name}" for name in [done.combined] if name is not None))
        names: list[str] = []
        if students or several:
            from ...pipeline.train.stage import train_students

            names = train_students(work, missing_students(work) if special else students)
        if not names and not special:
            trained = "everything" if has_specialists else "every student"
            write(f"nothing to do: {trained} is trained and unchanged")
        verb = "trained   " if has_specialists else "trained  "
        write(*(f"{verb}{work.models.weights_path('students', name)}" for name in names))


def _discard(*lines: str) -> None:
    """Print nothing, on ranks other than the first."""


def _patience(experiment: Path) -> float:
    """Return the seconds that a rank waits for the others: longer if they may be training a specialist."""
    from ...pipeline.runtime.ranks import TIMEOUT_SECONDS
    from ...storage.backends.posix import read_plain

    try:
        return PATIENCE if b"[specialists" in read_plain(experiment) else TIMEOUT_SECONDS
    except OSError:
        return TIMEOUT_SECONDS  # loading the experiment will raise the error
