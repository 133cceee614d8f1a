"""The command `compress`: a smaller capture from a sealed one."""

from typing import Any

import click

from ...storage.describe import fidelity_records
from ..options import (
    dry_run_option,
    examples,
    json_option,
    settings,
    store_argument,
    teacher_option,
    verbosity_options,
)
from ..printing.progress import show_progress
from ..printing.stores import print_fidelity
from ..printing.text import print_json, print_table, print_text, print_todo


@click.command(
    "compress",
    epilog=examples(
        "logitstore compress runs/mnist/store.zarr --teacher wide --max-kl 1e-3 --name wide-kl1e-3",
        "logitstore compress runs/mnist/store.zarr --teacher wide --top-k 4 --name wide-top4",
        "logitstore compress runs/mnist/store.zarr --teacher wide --top-k-kl 0.01 --temperature 4 --name wide-top",
    ),
)
@verbosity_options
@store_argument
@teacher_option
@click.option("--max-kl", type=float, metavar="NATS", help="Guaranteed maximum of the KL of every row.")
@click.option(
    "--min-temperature",
    type=float,
    metavar="T",
    help="Lowest temperature at which --max-kl holds; 1 by default.",
)
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
@click.option("--name", required=True, metavar="NEW", help="Name of the new capture in the store.")
@dry_run_option
@json_option
def command(store: str, teacher: str, name: str, dry_run: bool, as_json: bool, **wishes: Any) -> None:
    """Make an encoded capture NEW from a capture in the STORE, which is not changed.

    Give one of --max-kl, --top-k and --top-k-kl. A row then takes a fraction of its bytes; its KL to the source is
    measured, recorded and printed. If the command is killed, run it again to resume.
    """
    from ...pipeline.compress.stage import compress, plan_compression, say
    from ...storage.api import open_store
    from ...storage.backends.local import local_path

    wish = _wish(wishes)
    opened = open_store(local_path(store))  # it will be written to
    plan = plan_compression(opened, teacher, name, wish)
    if dry_run:
        print_todo(plan.lines, as_json=as_json)
        return
    with show_progress(quiet=settings().quiet) as progress:
        report = compress(opened, teacher, name, wish, progress=progress)
    if as_json:
        print_json(
            {
                "name": report.name,
                "source": report.source,
                "made": report.made,
                "encoding": report.encoding.describe(),
                "row_bytes": report.row_bytes,
                "source_row_bytes": report.source_row_bytes,
                "divergence": fidelity_records(report.fidelity),
                "store": report.digest,
            }
        )
        return
    if not report.made:
        print_text(f"nothing to do: teachers/{name} is made and unchanged")
    print_text(f"teachers/{name}: {say(report.encoding)}")
    print_table(
        ["capture", "bytes a row", "share"],
        [
            [f"teachers/{teacher}", f"{report.source_row_bytes:,.1f}", "100.0%"],
            [
                f"teachers/{name}",
                f"{report.row_bytes:,.1f}",
                f"{report.row_bytes / report.source_row_bytes:.1%}",
            ],
        ],
    )
    print_text()
    print_fidelity(fidelity_records(report.fidelity), source=f"teachers/{teacher}")
    print_text(f"digest  {report.digest}")


_KINDS = {
    "max_kl": ("min_temperature",),
    "top_k": (),
    "top_k_kl": ("temperature", "statistic"),
}
"""The options of which one is needed, each with those that may stand beside it."""


def _wish(options: dict[str, Any]) -> dict[str, Any]:
    """Return the request. Raises ConfigError for none, and for several."""
    from ...storage.errors import ConfigError

    given = {key: value for key, value in options.items() if value is not None}
    asked = [kind for kind in _KINDS if kind in given]
    if len(asked) != 1:
        raise ConfigError(
            "compress",
            expected="one of --max-kl, --top-k and --top-k-kl",
            found=" and ".join(map(_flag, asked)) or "no such option",
            remedy="give one of them",
        )
    for key in given:
        if key not in (asked[0], *_KINDS[asked[0]]):
            beside = next(kind for kind, more in _KINDS.items() if key in more)
            raise ConfigError(
                f"compress {_flag(key)}",
                expected=f"{_flag(key)} with {_flag(beside)} alone",
                found=f"{_flag(key)} with {_flag(asked[0])}",
                remedy=f"leave {_flag(key)} out",
            )
    return given


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
