"""The command `merge`: the parts of one store, added to another one of the same samples."""

from typing import Any

import click

from .. import options
from .copy import run


@options.subcommand("merge", "logitstore merge theirs/store.zarr ours/store.zarr --dry-run")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@options.captures_option
@options.expect_option
@options.follow_links_option
@options.dry_run_option
@options.json_option
def command(source: str, destination: str, **choice: Any) -> None:
    """Add to the store DST the parts of the store SRC that it lacks, as `copy` does; SRC is not changed.

    Both are copies of one store, to which captures or clusterings were added apart. Two parts of one name and other
    bytes are an error, before anything is written.
    """
    run(source, destination, merge=True, **choice)
