"""The command `plan`: the cost of an experiment before it is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import (
    device_option,
    examples,
    experiment_argument,
    json_option,
    models_option,
    settings,
    verbosity_options,
)
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import format_cell, print_json, print_table, print_text, printable

if TYPE_CHECKING:
    from ...pipeline.plan.stage import EncodingPlan, Plan, TeacherPlan


_NAMES_SHOWN = 8
"""Maximum number of teachers that a line names."""


@click.command(
    "plan",
    epilog=examples(
        "logitstore plan experiments/mnist.toml",
        "logitstore plan experiments/mnist.toml --rows 256 --json",
    ),
)
@verbosity_options
@experiment_argument
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of rows, of all views together, that each teacher is run on; 2048 by default.",
)
@click.option(
    "--store",
    metavar="STORE",
    help="Path of the store; runs/<name of the experiment>/store.zarr by default.",
)
@models_option
@device_option
@json_option
def command(
    experiment: Path,
    rows: int | None,
    store: str | None,
    models: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Print the cost of an EXPERIMENT: bytes, files and error with every encoding, and teacher hours.

    Each teacher with weights is run on a few rows. Without weights the figures come from a model of logits, and the output
    names it. Nothing is written.
    """
    from ...pipeline.experiment.document import load_experiment
    from ...pipeline.models.records import Models
    from ...pipeline.plan.stage import plan
    from ...storage.backends.local import local_path

    found = load_experiment(experiment)
    path = Path("runs") / experiment.stem / "store.zarr" if store is None else local_path(store)
    kept = Models(path.parent / "models" if models is None else models)
    with show_progress(quiet=settings().quiet) as progress:
        made = plan(found, path, kept, sample_rows=rows, device=device, progress=progress)
    if as_json:
        print_json(made)
    else:
        _print(made)


def _print(made: "Plan") -> None:
    inputs = f"inputs of {made.input_bytes:,} bytes stored" if made.input_bytes else "inputs not stored"
    print_text(
        f"{made.num_rows:,} rows x {_counted(made.views, 'view')} x {_counted(len(made.teachers), 'teacher')}, "
        f"{made.num_classes:,} classes, {inputs}"
    )
    print_text()
    _print_sizes(made)
    _print_divergences(made)
    reasons = [
        (said, reason)
        for encoding in made.encodings
        for said, reason in (
            (f"{encoding.name} is not possible", encoding.refused),
            (f"compress cannot make {encoding.name}", encoding.not_compressed),
        )
        if reason is not None
    ]
    print_text()
    for said, reason in reasons:
        print_text(printable(f"{said}: {reason}"))
    if reasons:
        print_text()
    _print_passes(made)
    _print_disk(made)


def _print_sizes(made: "Plan") -> None:
    print_table(
        ["encoding", "bytes a row", "in all", "files", "rows a block", "compress makes of it"],
        [
            [
                _name(encoding),
                encoding.row_bytes,
                None if encoding.bytes is None else format_bytes(encoding.bytes),
                encoding.files,
                encoding.block_rows,
                _compressed(encoding),
            ]
            for encoding in made.encodings
        ],
        title="\n".join(
            [
                "bytes a row: of one view of one teacher, after the codec; in all: the whole store with samples and inputs",
                *_sources(made.teachers, made, with_model=True),
            ]
        ),
    )


def _print_divergences(made: "Plan") -> None:
    real = [teacher for teacher in made.teachers if teacher.source != "model"] or made.teachers
    for title, kind in (("worst", "kl_max"), ("mean", "kl_mean")):
        print_text()
        print_table(
            ["encoding", *(f"T = {temperature:g}" for temperature in made.temperatures)],
            [
                [
                    _name(encoding),
                    *map(_scientific, getattr(encoding, kind) or [None] * len(made.temperatures)),
                ]
                for encoding in made.encodings
            ],
            title="\n".join(
                [f"{title} KL of what is stored, over the rows of the sample, nats", *_sources(real, made)]
            ),
        )


def _print_passes(made: "Plan") -> None:
    passes = made.passes
    hours = [
        sum(getattr(teacher, key) for teacher in made.teachers) for key in ("cached_hours", "live_hours")
    ]
    line = f"teacher passes  cached {passes.cached:,}, live {passes.live:,} ({_counted(passes.epochs, 'epoch')} of students)"
    if not passes.live:
        line = f"teacher passes  cached {passes.cached:,}; no student learns from a teacher"
    elif passes.pays_from is None:
        line += ": the cache never pays within this experiment"
    else:
        line += f", {passes.live / passes.cached:.3g} times fewer; pays from epoch {passes.pays_from:,} on"
    print_text(line)
    print_text(
        f"teacher hours   cached {_hours(hours[0])}, live {_hours(hours[1])} on {made.device}, without reading inputs"
    )
    for teacher in made.teachers:
        speed = f"{teacher.rows_per_second:,.0f} rows/s, {_hours(teacher.cached_hours)} for the cache"
        print_text(
            printable(f"  {teacher.name}: {speed}{' (not trained yet)' * (teacher.source == 'model')}")
        )


def _print_disk(made: "Plan") -> None:
    needed = made.own.bytes
    line = f"disk            {format_bytes(made.free_bytes)} free for {made.store}"
    if needed is not None:
        fits = "fits" if needed + made.specialist_bytes <= made.free_bytes else "does not fit"
        line += f"; {made.own.name} needs {format_bytes(needed)}"
        if made.specialists:
            count = _counted(made.specialists, "capture")
            line += f", and {count} of specialists at most {format_bytes(made.specialist_bytes)}"
        line += f": {fits}"
    print_text(printable(line))


def _sources(teachers: "Sequence[TeacherPlan]", made: "Plan", *, with_model: bool = False) -> list[str]:
    """Return the origin of the figures of some teachers, a line each. with_model: describes the model."""
    from ...pipeline.plan.sample import MODEL

    total = made.num_rows * made.views
    share = f"{made.sample_rows:,} of {_counted(total, 'row')}" + (" and views" if made.views > 1 else "")
    lines = []
    for source, said in (
        ("teacher", f"from the teachers themselves, run on {share}: "),
        ("capture", f"from sealed captures, {share}: "),
        ("model", "from a model, not from your teachers: "),
    ):
        theirs = [teacher for teacher in teachers if teacher.source == source]
        if theirs:
            names = ", ".join(teacher.name for teacher in theirs[:_NAMES_SHOWN])
            more = f", … {len(theirs) - _NAMES_SHOWN} more" if len(theirs) > _NAMES_SHOWN else ""
            rounded = any(teacher.is_rounded for teacher in theirs)
            note = " (KL is to what float16 has kept of the teacher)" if rounded else ""
            if source == "model":
                note = f" ({MODEL})" if with_model else ""
            lines.append(printable(f"{said}{names}{more}{note}"))
    return lines


def _name(encoding: "EncodingPlan") -> str:
    return f"{encoding.name}  (the experiment's)" if encoding.is_own else encoding.name


def _compressed(encoding: "EncodingPlan") -> str | None:
    if encoding.compressed_row_bytes is None:
        return None
    return f"{format_cell(encoding.compressed_row_bytes)} a row, {encoding.compressed_dtype}"


def _scientific(value: float | None) -> str:
    """Format a KL to two digits.

    >>> _scientific(0.00123), _scientific(0.0), _scientific(None)
    ('1.2e-03', '0', '—')
    """
    if value is None:
        return "—"
    return f"{value:.1e}" if value else "0"


def _hours(hours: float) -> str:
    """Format hours.

    >>> _hours(12.345), _hours(0.5), _hours(1 / 3600)
    ('12.3 h', '30.0 min', '1 s')
    """
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"


def _counted(number: int, what: str) -> str:
    """Format a number of things.

    >>> _counted(1, "view"), _counted(2000, "view")
    ('1 view', '2,000 views')
    """
    return f"{number:,} {what}{'s' * (number != 1)}"
