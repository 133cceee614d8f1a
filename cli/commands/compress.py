"""The command `compress`: a smaller capture from a sealed one."""

from pathlib import Path
from typing import Any

import click

from ...storage.describe import fidelity_records
from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes, print_fidelity
from ..printing.text import pick, print_json, print_table, print_text, print_todo
from ..workspaces import store_to_write

_KINDS = {
    "transform_kl": options.TRANSFORM_OPTIONS,
    "max_kl": ("min_temperature",),
    "top_k": (),
    "top_k_kl": ("temperature", "statistic"),
}
"""The requests, each with the options that refine it."""


@options.subcommand(
    "compress",
    "logitstore compress runs/mnist/store.zarr --teacher wide --transform-kl 1e-2 --name wide-small",
    "logitstore compress runs/mnist/store.zarr --teacher wide --max-kl 1e-3 --name wide-kl1e-3",
    "logitstore compress runs/mnist/store.zarr --teacher wide --top-k 4 --name wide-top4",
    "logitstore compress runs/mnist/store.zarr --teacher wide --top-k-kl 0.01 --temperature 4 --name wide-top",
)
@options.store_argument
@options.teacher_option
@options.transform_kl_option
@options.temperatures_option
@options.calibration_rows_option
@options.calibration_seed_option
@click.option("--max-kl", type=float, metavar="NATS", help="Maximum KL of every row, at any temperature.")
@options.min_temperature_option
@click.option(
    "--top-k", type=int, metavar="K", help="Keep the K largest logits of a row and the figures of its tail."
)
@click.option(
    "--top-k-kl", type=float, metavar="NATS", help="Keep the smallest K whose measured KL is at most this."
)
@click.option("--temperature", type=float, metavar="T", help="Temperature at which --top-k-kl is measured.")
@click.option(
    "--statistic",
    metavar="NAME",
    help="Statistic of the KL of all rows for --top-k-kl: max (the default), mean or p99.9.",
)
@options.new_name_option
@options.cache_options
@options.dry_run_option
@options.json_option
def command(
    store: str,
    teacher: str,
    name: str,
    cache: Path | None,
    cache_size: str | None,
    no_cache: bool,
    dry_run: bool,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Make an encoded capture NEW from a capture in the STORE, which is not changed.

    Give one of --transform-kl, --max-kl, --top-k and --top-k-kl. A row then takes a fraction of its bytes; its KL to the
    source is measured, recorded and printed. If the command is killed, run it again to resume.
    """
    from ...pipeline.compress.stage import compress, plan_compression, say

    chosen = options.choose_one("compress", _KINDS, wishes, required=True)
    wish = options.transform_named("compress", chosen)
    opened = store_to_write(store, options.access_of_options(cache, cache_size, no_cache))
    plan = plan_compression(opened, teacher, name, wish)
    if dry_run:
        print_todo(plan.lines, as_json=as_json)
        return
    with show_progress(quiet=options.settings().quiet) as progress:
        report = compress(opened, teacher, name, wish, progress=progress)
    divergence, sizes = fidelity_records(report.fidelity), (report.source_row_bytes, report.row_bytes)
    if as_json:
        record = pick(report, "name", "source", "made", "row_bytes", "source_row_bytes", "basis_bytes")
        encoding = report.encoding.describe()
        print_json({**record, "encoding": encoding, "divergence": divergence, "store": report.digest})
        return
    if not report.made:
        print_text(f"nothing to do: teachers/{name} is made and unchanged")
    print_text(f"teachers/{name}: {say(report.encoding)}")
    print_table(
        ["capture", "bytes a row", "share"],
        [
            [f"teachers/{capture}", f"{size:,.1f}", f"{size / sizes[0]:.1%}"]
            for capture, size in zip((teacher, name), sizes, strict=True)
        ],
    )
    if report.basis_bytes:
        print_text(f"and {format_bytes(report.basis_bytes)} of its basis, once for all rows")
    print_text("")
    print_fidelity(divergence, source=f"teachers/{teacher}")
    print_text(f"digest  {report.digest}")
