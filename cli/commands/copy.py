"""The command `copy`: a store, or a part of it, in another place."""

from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import pick, print_json, print_table, print_text

if TYPE_CHECKING:
    from ...storage.sharing.copying import Copied


@options.subcommand(
    "copy",
    "logitstore copy logitstore-demo/store.zarr backup/store.zarr --dry-run",
    "logitstore copy logitstore-demo/store.zarr s3://teachers/digits.zarr",
    "logitstore copy https://host/digits.zarr digits.zarr --teacher wide",
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@options.captures_option
@options.expect_option
@options.follow_links_option
@options.dry_run_option
@options.json_option
def command(source: str, destination: str, **choice: Any) -> None:
    """Copy the store SRC, a path or a URL, to DST.

    Every object is compared with the seals when it arrives. If DST is a store of the same samples, the parts that it
    lacks are added, and its own stay: several teams may copy a store, add teachers and copy it back. If the command is
    killed, run it again: nothing that had arrived is sent again.
    """
    run(source, destination, **choice)


def run(source: str, destination: str, *, as_json: bool, merge: bool = False, **choice: Any) -> None:
    """Copy and print, for `copy` and `merge`. choice: keywords of `copy_store`."""
    from ...storage.sharing.copying import copy_store

    teachers = list(choice.pop("teachers")) or None
    with show_progress(quiet=options.settings().quiet) as progress:
        done = copy_store(source, destination, teachers=teachers, merge=merge, progress=progress, **choice)
    if as_json:
        names = (
            "source",
            "path",
            "dry_run",
            "digest",
            "bytes",
            "missing",
            "sent",
            "parts",
            "there",
            "unsealed",
            "gone",
        )
        print_json(pick(done, *names))
    else:
        _print(done)


def _print(done: "Copied") -> None:
    if done.parts:
        print_table(
            ["part", "size", "to copy" if done.dry_run else "copied"],
            [[plan.part, format_bytes(plan.bytes), format_bytes(plan.missing)] for plan in done.parts],
        )
        print_text("")
    else:
        others = "the other" if done.unsealed or done.gone else "all"
        print_text(f"nothing to do: {done.path} has {others} {len(done.there)} parts")
    print_text(*(f"not copied  {part}: begun and not sealed" for part in done.unsealed))
    print_text(*(f"not copied  {part}: removed from {done.path}" for part in done.gone))
    amount = done.missing if done.dry_run else done.sent
    print_text(
        f"store   {done.path}",
        f"{'to copy' if done.dry_run else 'copied '} {format_bytes(amount)}",
        f"digest  {done.digest}",
    )
