"""The command `rm`: captures and clusterings that nobody wants any more."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import pick, print_json, print_table, print_text, shorten_names

if TYPE_CHECKING:
    from ...storage.sharing.removing import Removed


@options.subcommand(
    "rm",
    "logitstore rm logitstore-demo/store.zarr --teacher wide --dry-run",
)
@options.store_argument
@click.option(
    "--teacher", "teachers", multiple=True, metavar="NAME", help="Capture to remove. May be repeated."
)
@click.option(
    "--clustering",
    "clusterings",
    multiple=True,
    metavar="NAME",
    help="Clustering to remove. May be repeated.",
)
@options.dry_run_option
@options.json_option
def command(store: str, as_json: bool, **choice: Any) -> None:
    """Remove captures and clusterings from a STORE, and free their bytes.

    The log says that they are gone, so the digest of the store changes, and their names are not used again. What was
    made from them stays. If the command is killed, run it again: it removes the rest. Nothing brings a part back but a
    copy that was made before.
    """
    from ...storage.sharing.removing import remove_parts

    with show_progress(quiet=options.settings().quiet) as progress:
        done = remove_parts(
            store,
            teachers=list(choice.pop("teachers")),
            clusterings=list(choice.pop("clusterings")),
            progress=progress,
            **choice,
        )
    if as_json:
        print_json(pick(done, "path", "dry_run", "digest", "bytes", "parts"))
    else:
        print_table(
            ["part", "state", "files", "size"],
            [[one.part, one.state, one.files, format_bytes(one.bytes)] for one in done.parts],
        )
        print_text("", *_lines(done))


def _lines(done: "Removed") -> Iterator[str]:
    for one in done.parts:
        if one.derived:
            yield f"stays   {shorten_names(one.derived)}, made from {one.part}"
        yield from (f"stays   {one.part}/{key}, which no writer put there" for key in one.strays)
    yield f"store   {done.path}"
    yield f"{'to free' if done.dry_run else 'freed  '} {format_bytes(done.bytes)}"
    yield f"digest  {done.digest}"
