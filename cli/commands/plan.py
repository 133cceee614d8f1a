"""The command `plan`: the cost of an experiment before it is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import format_cell, print_json, print_table, print_text

if TYPE_CHECKING:
    from ...pipeline.plan.inputs import Bound
    from ...pipeline.plan.stage import EncodingPlan, Plan, TeacherPlan

_MAX_NAMES = 8
"""Maximum number of teachers that a line names."""


@options.subcommand(
    "plan",
    "logitstore plan experiments/mnist.toml",
    "logitstore plan experiments/mnist.toml --rows 256 --json",
    "logitstore plan new.toml --reuse runs/mnist/store.zarr",
)
@options.experiment_argument
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of rows, of all views together, that each teacher is run on; 2048 by default.",
)
@click.option(
    "--scan",
    is_flag=True,
    help="Read every example of the data sets first, and list all that cannot be used.",
)
@click.option(
    "--store",
    metavar="STORE",
    help="Path or URL of the store; runs/<name of the experiment>/store.zarr by default.",
)
@options.reuse_option
@options.models_option
@options.device_option
@options.json_option
def command(
    experiment: Path,
    rows: int | None,
    scan: bool,
    store: str | None,
    reuse: tuple[str, ...],
    models: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Print the cost of an EXPERIMENT: bytes, files and error with every encoding, and hours.

    The networks of all students are tried, and the labelled sets compared with the transfer set.

    Each teacher with weights is run on a few rows. Without weights the figures come from a model of logits, and the output
    names it. Nothing is written.
    """
    from ...pipeline.experiment.document import load_experiment
    from ...pipeline.models.records import Models
    from ...pipeline.plan.scan import scan_sets
    from ...pipeline.plan.stage import plan
    from ...storage.backends.remote import path_of

    loaded = load_experiment(experiment)
    folder = Path("runs") / experiment.stem
    path = folder / "store.zarr" if store is None else path_of(store)
    beside = path.parent if isinstance(path, Path) else folder
    kept = Models(beside / "models" if models is None else models)
    with show_progress(quiet=options.settings().quiet) as progress:
        scanned = scan_sets(loaded, progress) if scan else {}
        made = plan(loaded, path, kept, sample_rows=rows, device=device, progress=progress, reuse=reuse)
    if scanned and not as_json:
        print_text(*(f"{name}: all {count:,} examples can be used" for name, count in scanned.items()), "")
    (print_json if as_json else _print)(made)


def _print(made: "Plan") -> None:
    inputs = f"inputs of {made.input_bytes:,} bytes stored" if made.input_bytes else "inputs not stored"
    print_text(
        f"{made.num_rows:,} rows x {_counted(made.views, 'view')} x {_counted(len(made.teachers), 'teacher')}, "
        f"{made.num_classes:,} classes, {inputs}",
        "",
    )
    _print_sizes(made)
    _print_divergences(made)
    reasons = [
        f"{outcome}: {reason}"
        for encoding in made.encodings
        for outcome, reason in (
            (f"{encoding.name} is not possible", encoding.refused),
            (f"compress cannot make {encoding.name}", encoding.not_compressed),
        )
        if reason is not None
    ]
    reasons += _unpaid(made)
    print_text(
        "",
        *reasons,
        *([""] if reasons else []),
        *_passes(made),
        *_stage_one(made),
        *_students(made),
        *_reuse(made),
        _disk(made),
    )


def _reuse(made: "Plan") -> list[str]:
    """Return a line for each teacher, and one for each store that holds no rows of it."""
    lines = []
    for one in made.reuse:
        origin = f" from {' and '.join(one.sources)}" if one.sources else ""
        lines.append(
            f"reuse           {one.teacher}: {one.reused:,} of {one.rows:,} rows{origin}; "
            f"the teacher runs on {one.rows - one.reused:,}"
        )
        lines += [f"                {one.teacher} takes no rows of {reason}" for reason in one.reasons]
    return lines


def _print_sizes(made: "Plan") -> None:
    print_text(
        "bytes a row: of one view of one teacher, after the codec; in all: the whole store with samples and inputs",
        "rows/s: measured here, without codec and disk; those of a transform include no calibration",
        *(
            [
                "a transform takes fewer bytes of a teacher, whose logits depend on one another, than of a model"
            ]
            if any(teacher.source == "model" for teacher in made.teachers)
            else []
        ),
        *_sources(made.teachers, made, with_model=True),
    )
    print_table(
        [
            "encoding",
            "bytes a row",
            "in all",
            "files",
            "rows a block",
            "encode rows/s",
            "decode rows/s",
            "compress makes of it",
        ],
        [
            [
                _name(encoding),
                encoding.row_bytes,
                None if encoding.bytes is None else format_bytes(encoding.bytes),
                encoding.files,
                encoding.block_rows,
                _whole(encoding.encode_rows_per_second),
                _whole(encoding.decode_rows_per_second),
                None
                if encoding.compressed_row_bytes is None
                else f"{format_cell(encoding.compressed_row_bytes)} a row, {encoding.compressed_dtype}",
            ]
            for encoding in made.encodings
        ],
    )


def _print_divergences(made: "Plan") -> None:
    real = [teacher for teacher in made.teachers if teacher.source != "model"] or made.teachers
    unknown = (None,) * len(made.temperatures)
    for title, divergences in (
        ("worst", [encoding.kl_max for encoding in made.encodings]),
        ("mean", [encoding.kl_mean for encoding in made.encodings]),
    ):
        print_text(
            "",
            f"{title} KL of the stored logits, over the rows of the sample, nats",
            *_sources(real, made),
        )
        print_table(
            ["encoding", *(f"T = {temperature:g}" for temperature in made.temperatures)],
            [
                [_name(encoding), *(format_cell(kl, ".1e") if kl != 0 else "0" for kl in row or unknown)]
                for encoding, row in zip(made.encodings, divergences, strict=True)
            ],
        )


def _unpaid(made: "Plan") -> list[str]:
    """Return a line for each transform that takes no fewer bytes than an encoding with a bound as tight."""
    sizes = {encoding.name: encoding.bytes for encoding in made.encodings}
    return [
        f"{encoding.name} does not pay: {format_bytes(sizes[encoding.name] or 0)} in all with its basis, "
        f"{format_bytes(sizes[encoding.cheaper] or 0)} in {encoding.cheaper}"
        for encoding in made.encodings
        if encoding.cheaper is not None
    ]


def _passes(made: "Plan") -> list[str]:
    """Return the passes and the hours of the teachers, with the cache and without, and the speed of each."""
    passes, teachers = made.passes, made.teachers
    cached, live = (sum(getattr(t, key) for t in teachers) for key in ("cached_hours", "live_hours"))
    line = f"cached {passes.cached:,}, live {passes.live:,} ({_counted(passes.epochs, 'epoch')} of students)"
    if not passes.live:
        line = f"cached {passes.cached:,}; no student learns from a teacher"
    elif passes.pays_from is None:
        line += ": the cache never pays within this experiment"
    else:
        line += f", {passes.live / passes.cached:.3g} times fewer; pays from epoch {passes.pays_from:,} on"
    return [
        f"teacher passes  {line}",
        f"teacher hours   cached {_hours(cached)}, live {_hours(live)} on {made.device}, without inputs",
        *(
            f"  {teacher.name}: {teacher.rows_per_second:,.0f} rows/s, {_hours(teacher.cached_hours)} for the cache"
            f"{' (not trained yet)' * (teacher.source == 'model')}"
            for teacher in teachers
        ),
    ]


def _stage_one(made: "Plan") -> list[str]:
    """Return the hours of stage one with its inputs, and the time of each a row."""
    inputs = made.inputs
    teachers = sum(teacher.cached_hours for teacher in made.teachers) * 3600 / made.num_rows
    parts = f"fetched in {_milliseconds(inputs.fetch_seconds)}"
    if inputs.view_seconds:
        parts += f", an augmented view made in {_milliseconds(inputs.view_seconds)}"
    views = f" of {made.views:,} views" if made.views > 1 else ""
    line = f"{_hours(inputs.hours)}: inputs take {_milliseconds(inputs.row_seconds)} a row{views} ({parts}), "
    line += f"teachers {_milliseconds(teachers)}; {_waits(inputs.bound, 'the teachers take', f'cache.workers = {inputs.workers}')}"
    return [f"stage one       {line}"]


def _students(made: "Plan") -> list[str]:
    """Return the hours of the students, and the time of inputs and network of each a row."""
    if not made.students:
        return []
    lines = [
        f"student hours   {_hours(sum(one.hours for one in made.students))}, all seeds, without optimiser"
    ]
    for one in made.students:
        inputs = (
            f"inputs take {_milliseconds(one.input_seconds)} a row" if one.input_seconds else "stored inputs"
        )
        lines.append(
            f"  {one.name}: {_hours(one.hours)}; {inputs}, the network {_milliseconds(1 / one.rows_per_second)}"
            + f"; {_waits(one.bound, 'the network takes', f'train.workers = {one.workers}')}"
            * bool(one.input_seconds)
        )
    return lines


def _waits(bound: "Bound", network: str, workers: str) -> str:
    """Return what a run waits for, in words. network: it, with its verb. workers: the key with its value."""
    longer = {"inputs": "the inputs take longer", "network": f"{network} longer"}
    return f"{longer.get(bound, 'both share the processors of this machine')} ({workers})"


def _milliseconds(seconds: float) -> str:
    """Format milliseconds to two digits.

    >>> _milliseconds(0.00731), _milliseconds(0.0123), _milliseconds(1.5), _milliseconds(2e-7)
    ('7.3 ms', '12 ms', '1,500 ms', '0.0002 ms')
    """
    value = float(f"{seconds * 1000:.2g}")
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.6f}".rstrip("0").rstrip(".") + " ms"


def _disk(made: "Plan") -> str:
    """Return the free bytes of the disk, beside those that the store needs."""
    needed = made.own.bytes
    free = made.free_bytes
    line = f"disk            {'no limit stated' if free is None else format_bytes(free) + ' free'} for {made.store}"
    if needed is None:
        return line
    line += f"; {made.own.name} needs {format_bytes(needed)}"
    if made.specialists:
        count = _counted(made.specialists, "capture")
        line += f", and {count} of specialists at most {format_bytes(made.specialist_bytes)}"
    if free is None:
        return line
    return f"{line}: {'fits' if needed + made.specialist_bytes <= free else 'does not fit'}"


def _sources(teachers: "Sequence[TeacherPlan]", made: "Plan", *, with_model: bool = False) -> list[str]:
    """Return the origin of the figures of some teachers, a line each. with_model: describes the model."""
    from ...pipeline.plan.sample import MODEL

    share = f"{made.sample_rows:,} of {_counted(made.num_rows * made.views, 'row')}"
    share += " and views" if made.views > 1 else ""
    lines = []
    for source, origin in (
        ("teacher", f"from the teachers themselves, run on {share}"),
        ("capture", f"from sealed captures, {share}"),
        ("model", "from a model, not from your teachers"),
    ):
        theirs = [teacher for teacher in teachers if teacher.source == source]
        names = ", ".join(teacher.name for teacher in theirs[:_MAX_NAMES])
        more = f", … {len(theirs) - _MAX_NAMES} more" if len(theirs) > _MAX_NAMES else ""
        note = f" ({MODEL})" if source == "model" and with_model else ""
        if source != "model" and any(teacher.is_rounded for teacher in theirs):
            note = " (KL is to the float16 capture of the teacher)"
        lines += [f"{origin}: {names}{more}{note}"] if theirs else []
    return lines


def _name(encoding: "EncodingPlan") -> str:
    return f"{encoding.name}  (the experiment's)" if encoding.is_own else encoding.name


def _whole(speed: float | None) -> int | None:
    """Round rows a second to two digits."""
    return None if speed is None else int(float(f"{speed:.2g}"))


def _hours(hours: float) -> str:
    """Format hours.

    >>> _hours(12.345), _hours(0.5), _hours(1 / 3600)
    ('12.3 h', '30.0 min', '1 s')
    """
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"


def _counted(number: int, noun: str) -> str:
    """Format a number of things.

    >>> _counted(1, "view"), _counted(2000, "view")
    ('1 view', '2,000 views')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"
