"""The command `concat`: the rows of several stores in one."""

from typing import Any

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import pick, print_json, print_table, print_text


@options.subcommand(
    "concat",
    "logitstore concat first/store.zarr second/store.zarr both/store.zarr --dry-run",
    "logitstore concat first/store.zarr second/store.zarr both/store.zarr --teacher wide",
)
@click.argument("stores", nargs=-1, metavar="STORE STORE … OUT")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="NAME",
    help="Take this capture alone. May be repeated; default: all, which every STORE must have.",
)
@click.option(
    "--allow-duplicates", is_flag=True, help="Take rows of one id from several stores, and a store twice."
)
@options.follow_links_option
@options.dry_run_option
@options.json_option
def command(stores: tuple[str, ...], as_json: bool, **choice: Any) -> None:
    """Put the rows of each STORE, in this order, into a new store OUT.

    The stores have the same classes, teachers and encodings. Ids, labels, inputs and logits are taken bit for bit; nothing
    is encoded again, and clusterings are left out. If the command is killed, run it again to resume.
    """
    from ...storage.errors import ConfigError
    from ...storage.sharing.concatenating import concat_stores

    if len(stores) < 3:
        raise ConfigError(
            "concat",
            expected="two stores or more, and the new one",
            found=f"{len(stores)} paths",
            remedy="name the stores in order, and the new one last",
        )
    *sources, destination = stores
    teachers = list(choice.pop("teachers")) or None
    with show_progress(quiet=options.settings().quiet) as progress:
        done = concat_stores(sources, destination, teachers=teachers, progress=progress, **choice)
    if as_json:
        names = "sources", "path", "dry_run", "digest", "num_rows", "rows", "bytes", "parts"
        print_json(pick(done, *names))
        return
    if not any(part.made for part in done.parts):
        print_text(f"nothing to do: {done.path} has these rows")
    print_table(
        ["part", "size", "to make" if done.dry_run else "made"],
        [[one.part, format_bytes(one.bytes), "yes" if one.made else "no"] for one in done.parts],
    )
    print_text(
        "",
        f"store   {done.path}",
        f"rows    {done.num_rows:,}: {' + '.join(f'{count:,}' for count in done.rows)}",
        f"size    {format_bytes(done.bytes)}",
        *([] if done.digest is None else [f"digest  {done.digest}"]),
    )
