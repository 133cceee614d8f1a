"""The command `card`: `STORE.md`, what a store is, for people."""

import click

from .. import options
from ..printing.text import pick, print_json, print_text


@options.subcommand(
    "card",
    "logitstore card logitstore-demo/store.zarr",
    "logitstore card logitstore-demo/store.zarr --out -",
    "logitstore card digits.zarr --out README.md --location hf://datasets/someone/digits",
)
@options.store_argument
@click.option(
    "--out",
    metavar="FILE",
    help="Write the card to FILE, or - for the terminal; STORE.md in the store by default.",
)
@click.option(
    "--location", metavar="URL", help="Place of the store in the lines that load it: a path, or a URL."
)
@options.dry_run_option
@options.json_option
def command(store: str, out: str | None, location: str | None, dry_run: bool, as_json: bool) -> None:
    """Write STORE.md, the card of a STORE for people: its rows and classes, teachers, digest, licence, how to load it.

    The text follows from the metadata and from [card] of the experiment. Commands that make or copy a store write it, too.
    The digest does not cover it: whoever may write to the store may change it.
    """
    from ...storage.sharing.card_file import write_card

    to_stdout = out == "-"
    card = write_card(store, None if to_stdout else out, location=location, dry_run=dry_run or to_stdout)
    if as_json:
        path = None if to_stdout else card.path
        print_json({"path": path, **pick(card, "digest", "text", "changed", "dry_run")})
    elif to_stdout:
        print_text(*card.text.splitlines())
    else:
        done = ("would be written" if dry_run else "written") if card.changed else "nothing to do: unchanged"
        print_text(f"card    {card.path}: {done}", f"digest  {card.digest}")
