"""The command `train`: stage three alone."""

from pathlib import Path
from typing import Any

from .. import options
from ..dask_client import scheduler_at
from ..printing.scores import validated_lines
from ..printing.text import nothing_to_do, print_text, print_todo
from ..workspaces import workspace


@options.subcommand(
    "train",
    "logitstore train experiments/mnist.toml runs/mnist/store.zarr",
    "logitstore train experiments/mnist.toml s3://bucket/mnist.zarr --models runs/mnist/models --cache /scratch/shards",
    "torchrun --nproc-per-node 2 -m logitstore train experiments/mnist.toml runs/mnist/store.zarr",
)
@options.experiment_argument
@options.store_argument
@options.models_option
@options.device_option
@options.scheduler_option("A dask scheduler whose workers train the specialists, one each at a time.")
@options.cache_options
@options.follow_links_option
@options.dry_run_option
def command(
    experiment: Path,
    store: str,
    models: Path | None,
    device: str | None,
    scheduler: str | None,
    dry_run: bool,
    **means: Any,
) -> None:
    """Train the specialists and the students of an EXPERIMENT from a STORE, without running a teacher.

    Specialists are trained, captured in the STORE and combined, as the experiment asks. Students are trained once a
    seed. A model is skipped if its captures and settings are unchanged. With checkpoint_every, an interrupted
    training resumes from its last checkpoint. Several processes train each student together and divide the
    specialists: torchrun --nproc-per-node N -m logitstore train EXPERIMENT STORE.
    """
    from ...pipeline.same_set import describe_inputs
    from ...pipeline.specialists.todo import find_todo
    from ...pipeline.train.todo import check_compressed, missing_students

    with workspace(experiment, store, models, device, access=options.access_of_options(**means)) as work:
        compared = describe_inputs(work)  # nothing is trained without a store
        several, write = work.ranks.size > 1, print_text if work.ranks.is_first else _discard
        check_compressed(work)
        special, students = find_todo(work), missing_students(work)
        if dry_run:
            if work.ranks.is_first:
                lines = [*special.lines(), *(f"train student {run.name}" for run in students)]
                print_todo(lines, compared=compared)
            return
        has_specialists = work.experiment.specialists is not None
        # Several ranks always ask the first for its todo: all may be done before the last has looked.
        if special or (has_specialists and several):
            from ...pipeline.specialists.stage import make_specialists

            with scheduler_at(scheduler) as client:
                done = make_specialists(work, special, scheduler=client)
            for name in done.trained:
                path = work.models.weights_path("specialists", name)
                write(f"trained   {path}", *validated_lines(work.models, "specialists", name))
            write(*(f"captured  {name}" for name in done.captured))
            write(*(f"combined  {name}" for name in [done.combined] if name is not None))
        names: list[str] = []
        if students or several:
            from ...pipeline.train.stage import train_students

            names = train_students(work, missing_students(work) if special else students)
        if not names and not special:
            trained = "everything" if has_specialists else "every student"
            write(nothing_to_do(f"{trained} is trained and unchanged", compared))
        verb = "trained   " if has_specialists else "trained  "
        for name in names:
            write(
                f"{verb}{work.models.weights_path('students', name)}",
                *validated_lines(work.models, "students", name),
            )


def _discard(*lines: str) -> None:
    """Print nothing, on ranks other than the first."""
