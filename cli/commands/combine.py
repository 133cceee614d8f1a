"""The command `combine`: a generalist and its specialists become one teacher."""

from pathlib import Path
from typing import Any

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.text import pick, print_json, print_table, print_text, print_todo
from ..workspaces import store_to_write

_KINDS = {"encoding": (), "transform_kl": options.TRANSFORM_OPTIONS, "max_kl": ("min_temperature",)}
"""The encodings, each with the options that refine it."""


@options.subcommand(
    "combine",
    "logitstore combine runs/omniglot/store.zarr --generalist wide --specialist 'wide-24x40-*' --name combined",
    "logitstore combine runs/omniglot/store.zarr --generalist wide --specialist wide-24x40-0 --name one --top 2",
)
@options.store_argument
@click.option("--generalist", required=True, metavar="NAME", help="Capture of all classes.")
@click.option(
    "--specialist",
    "specialists",
    required=True,
    multiple=True,
    metavar="NAME",
    help="Capture of a specialist; repeat it, or give a pattern of * and ? in quotes. A pattern never matches NEW and "
    "other combinations.",
)
@options.new_name_option
@click.option(
    "--top",
    type=int,
    metavar="N",
    help="Number of most likely classes whose specialists are active; 1 by default.",
)
@click.option(
    "--direction",
    type=click.Choice(["pq", "qp"]),
    help="pq for KL(p, q), the default, or qp for KL(q, p), with disjoint sets.",
)
@click.option(
    "--method",
    type=click.Choice(["fixed_point", "gradient_descent"]),
    help="Method for several active specialists; the paper's gradient descent is slow.",
)
@click.option(
    "--encoding",
    type=click.Choice(["float16", "float32"]),
    help="Encoding of the new capture; float16 by default.",
)
@options.transform_kl_option
@options.temperatures_option
@options.calibration_rows_option
@options.calibration_seed_option
@click.option(
    "--max-kl", type=float, metavar="NATS", help="Store codes instead, with a KL that no row exceeds."
)
@options.min_temperature_option
@options.cache_options
@options.dry_run_option
@options.json_option
def command(
    store: str,
    specialists: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    cache: Path | None,
    cache_size: str | None,
    no_cache: bool,
    encoding: str | None,
    transform_kl: float | None,
    temperatures: str | None,
    calibration_rows: int | None,
    calibration_seed: int | None,
    max_kl: float | None,
    min_temperature: float | None,
    **given: Any,
) -> None:
    """Combine captures in the STORE, a generalist and its specialists, into a new one of all classes.

    A specialist is active in a row if its set holds the generalist's most likely class. The new capture is the
    distribution that agrees best with the generalist and the active specialists (Hinton et al. 2015, equation 5). If
    the command is killed, run it again to resume.
    """
    from ...pipeline.combine.stage import combine
    from ...pipeline.combine.todo import plan_combination

    asked = {"encoding": encoding, "transform_kl": transform_kl, "temperatures": temperatures}
    asked |= {"calibration_rows": calibration_rows, "calibration_seed": calibration_seed}
    asked |= {"max_kl": max_kl, "min_temperature": min_temperature}
    chosen = options.transform_named("combine", options.choose_one("combine", _KINDS, asked))
    wish: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    wish |= {"specialists": list(specialists), "encoding": encoding or chosen or "float16"}
    opened = store_to_write(store, options.access_of_options(cache, cache_size, no_cache))
    if dry_run:
        print_todo(plan_combination(opened, **wish).lines, as_json=as_json)
        return
    with show_progress(quiet=options.settings().quiet) as progress:
        report = combine(opened, **wish, progress=progress)
    if as_json:
        record = pick(report, "name", "generalist", "specialists", "made")
        print_json({**record, "rows_by_active": report.active, "store": report.digest})
        return
    if not report.made:
        print_text(f"nothing to do: teachers/{report.name} is made and unchanged")
    else:
        print_text(f"teachers/{report.name}: {report.generalist} with {len(report.specialists)} specialists")
        total = sum(report.active.values())
        everything = opened.teachers[report.name].num_views * opened.num_rows
        print_table(
            ["active specialists", "rows", "share"],
            [[str(k), f"{rows:,}", f"{rows / total:.1%}"] for k, rows in report.active.items()],
            title=f"of the {total:,} rows combined now, of {everything:,}" if total < everything else None,
        )
    print_text(f"digest  {report.digest}")
