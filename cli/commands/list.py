"""The command `list`: the stores under a folder or a URL, from their metadata alone."""

import click

from .. import options
from ..printing.stores import format_bytes
from ..printing.text import pick, print_json, print_table, print_text, shorten_names


@options.subcommand(
    "list",
    "logitstore list logitstore-demo",
    "logitstore list s3://teachers --depth 2 --json",
)
@click.argument("prefix", metavar="PREFIX")
@click.option(
    "--depth", type=int, metavar="N", help="Levels below PREFIX that are looked into; 3 by default."
)
@options.follow_links_option
@options.json_option
def command(prefix: str, depth: int | None, follow_links: bool, as_json: bool) -> None:
    """List the stores under PREFIX, a folder or a URL: rows, classes, teachers, bytes, digest and title.

    No shard is read. A damaged store is listed with the reason, beside the rest. The exit code is then 65, or 75 for one
    that could not be read.
    """
    from ...storage.sharing.catalog import DEPTH, exit_code, find_stores

    depth = DEPTH if depth is None else depth
    stores = find_stores(prefix, depth=depth, follow_links=follow_links)
    if as_json:
        names = "name", "path", "num_rows", "num_classes", "bytes", "sealed", "digest", "title", "problem"
        records = [
            pick(one, *names)
            | {"teachers": [{"name": name, "encoding": encoding} for name, encoding in one.teachers]}
            for one in stores
        ]
        print_json({"path": prefix, "depth": depth, "stores": records})
    elif not stores:
        print_text(f"no store under {prefix}, down to {depth} levels")
    else:
        print_table(
            ["store", "rows", "classes", "teachers", "size", "sealed", "digest", "title"],
            [
                [
                    one.name,
                    one.num_rows,
                    one.num_classes,
                    shorten_names([f"{name} ({encoding})" for name, encoding in one.teachers]) or None,
                    None if one.bytes is None else format_bytes(one.bytes),
                    None if one.bytes is None else "yes" if one.sealed else "no",
                    None if one.digest is None else f"{one.digest[:19]}…",
                    None if one.title is None else shorten_names([one.title]),
                ]
                for one in stores
            ],
        )
        print_text(
            *(
                f"{one.name}: {' '.join(str(one.problem).split())}"
                for one in stores
                if one.problem is not None
            )
        )
    click.get_current_context().exit(exit_code(stores))
