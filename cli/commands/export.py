"""The command `export`: a capture as a plain file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import nothing_to_do, pick, print_json, print_text
from ..workspaces import store_to_read

if TYPE_CHECKING:
    from ...pipeline.exchange.export import Exported


@options.subcommand(
    "export",
    "logitstore export runs/mnist/store.zarr --teacher wide wide.parquet",
    "logitstore export runs/mnist/store.zarr --teacher wide wide.npy --rows 0:1000 --dtype float16",
    "logitstore export s3://teachers/mnist.zarr --teacher wide wide.safetensors --dry-run",
)
@options.store_argument
@click.argument("out", metavar="OUT")
@options.teacher_option
@click.option("--rows", metavar="A:B", help="Rows A to B - 1 of the store, as in Python; all by default.")
@click.option("--view", type=int, metavar="N", help="This view alone; all by default.")
@click.option(
    "--dtype",
    default="float32",
    metavar="NAME",
    help="float32, the default, or float16, which rounds to 11 bits.",
)
@click.option(
    "--temperature", type=float, metavar="T", help="Temperature at which a top-k capture is decoded."
)
@options.expect_option
@options.cache_options
@options.follow_links_option
@click.option("--force", is_flag=True, help="Replace the file OUT.")
@options.dry_run_option
@options.json_option
def command(
    store: str,
    out: str,
    teacher: str,
    rows: str | None,
    expect: str | None,
    cache: Path | None,
    cache_size: str | None,
    no_cache: bool,
    follow_links: bool,
    as_json: bool,
    **choice: Any,
) -> None:
    """Write the logits of a capture in the STORE to OUT, with numbers, ids and labels of its rows.

    OUT ends in .parquet (a line a row), .safetensors, or .npy (logits alone, the rest in files beside it). The largest
    logit of each row is 0; the column peak is the constant that was subtracted. OUT appears whole: if the command is
    killed, run it again.
    """
    from ...pipeline.exchange.export import export_logits

    chosen = None if rows is None else _slice(rows)
    access = options.access_of_options(cache, cache_size, no_cache, follow_links)
    opened = store_to_read(store, access, expect)
    with show_progress(quiet=options.settings().quiet) as progress:
        done = export_logits(opened, teacher, out, rows=chosen, progress=progress, **choice)
    if as_json:
        names = (
            "store",
            "digest",
            "teacher",
            "path",
            "dry_run",
            "made",
            "rows",
            "views",
            "columns",
            "dtype",
            "bytes",
        )
        print_json(pick(done, *names))
    else:
        _print(done)


def _slice(text: str) -> slice:
    """Return the rows that A:B names. Raises ConfigError.

    >>> _slice("10:20"), _slice(":5")
    (slice(10, 20, None), slice(None, 5, None))
    """
    if (found := re.fullmatch(r"(-?\d+)?:(-?\d+)?", text.strip())) is None:
        from ...storage.errors import ConfigError

        raise ConfigError(
            "export --rows",
            expected="A:B, the first row and the one behind the last",
            found=repr(text)[:80],
            remedy="write --rows 0:1000; other rows are chosen from Python, with export_logits(rows=…)",
        )
    start, stop = (None if one is None else int(one) for one in found.groups())
    return slice(start, stop)


def _print(done: "Exported") -> None:
    if not done.made:
        print_text(nothing_to_do(f"{done.path} is this export already"))
    elif done.dry_run:
        print_text(f"write {done.path}: teachers/{done.teacher} of {done.store}")
    views = f", {done.views} views" if done.views > 1 else ""
    print_text(
        f"file    {done.path}",
        f"logits  {done.rows:,} rows of {done.columns:,} columns in {done.dtype}{views}",
        f"size    {format_bytes(done.bytes)}",
        f"digest  {done.digest}",
    )
