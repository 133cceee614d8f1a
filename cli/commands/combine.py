"""The command `combine`: a generalist and its specialists become one teacher."""

from typing import Any

import click

from ..options import dry_run_option, examples, json_option, settings, store_argument, verbosity_options
from ..printing.progress import show_progress
from ..printing.text import print_json, print_table, print_text, print_todo


@click.command(
    "combine",
    epilog=examples(
        "logitstore combine runs/omniglot/store.zarr --generalist wide --specialist 'wide-24x40-*' --name combined",
        "logitstore combine runs/omniglot/store.zarr --generalist wide --specialist wide-24x40-0 --name one --top 2",
    ),
)
@verbosity_options
@store_argument
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
@click.option("--name", required=True, metavar="NEW", help="Name of the new capture in the store.")
@click.option(
    "--top",
    type=int,
    metavar="N",
    help="Number of most likely classes whose specialists are asked; 1 by default.",
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
@click.option(
    "--max-kl", type=float, metavar="NATS", help="Store codes instead, with a KL that no row exceeds."
)
@click.option(
    "--min-temperature",
    type=float,
    metavar="T",
    help="Lowest temperature at which --max-kl holds; 1 by default.",
)
@dry_run_option
@json_option
def command(
    store: str,
    generalist: str,
    specialists: tuple[str, ...],
    name: str,
    dry_run: bool,
    as_json: bool,
    encoding: str | None,
    max_kl: float | None,
    min_temperature: float | None,
    **given: Any,
) -> None:
    """Combine captures in the STORE, a generalist and its specialists, into a new one of all classes.

    A specialist is asked about a row if its set holds the generalist's most likely class. The new capture is the one
    distribution that agrees best with all that were asked (Hinton et al. 2015, equation 5). If the command is killed, run
    it again to resume.
    """
    from ...pipeline.combine.stage import combine
    from ...pipeline.combine.todo import plan_combination
    from ...storage.api import open_store
    from ...storage.backends.local import local_path

    wish: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    wish |= {"generalist": generalist, "specialists": list(specialists), "name": name}
    wish["encoding"] = _encoding(encoding, max_kl, min_temperature)
    opened = open_store(local_path(store))  # it will be written to
    if dry_run:
        print_todo(plan_combination(opened, **wish).lines, as_json=as_json)
        return
    with show_progress(quiet=settings().quiet) as progress:
        report = combine(opened, **wish, progress=progress)
    if as_json:
        print_json(
            {
                "name": report.name,
                "generalist": report.generalist,
                "specialists": report.specialists,
                "made": report.made,
                "rows_by_active": report.active,
                "store": report.digest,
            }
        )
        return
    if not report.made:
        print_text(f"nothing to do: teachers/{name} is made and unchanged")
    else:
        print_text(f"teachers/{name}: {generalist} with {len(report.specialists)} specialists")
        total = sum(report.active.values())
        everything = opened.teachers[name].num_views * opened.num_rows
        print_table(
            ["active specialists", "rows", "share"],
            [[str(k), f"{rows:,}", f"{rows / total:.1%}"] for k, rows in report.active.items()],
            title=f"of the {total:,} rows combined now, of {everything:,}" if total < everything else None,
        )
    print_text(f"digest  {report.digest}")


def _encoding(kind: str | None, max_kl: float | None, min_temperature: float | None) -> Any:
    """Return the requested encoding. Raises ConfigError for two encodings, or half of one."""
    from ...storage.errors import ConfigError

    if max_kl is None and min_temperature is None:
        return kind or "float16"
    if kind is not None or max_kl is None:
        raise ConfigError(
            "combine --encoding, --max-kl, --min-temperature",
            expected="--encoding alone, or --max-kl with or without --min-temperature",
            found="--min-temperature without --max-kl" if max_kl is None else "--encoding and --max-kl",
            remedy="leave one of them out",
        )
    return {"max_kl": max_kl} | ({} if min_temperature is None else {"min_temperature": min_temperature})
