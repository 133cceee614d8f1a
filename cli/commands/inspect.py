"""The command `inspect`: the contents of a store, from its metadata alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import click

from ...storage.describe import describe
from .. import options
from ..printing.clusterings import single_classes
from ..printing.stores import format_bytes, print_fidelity
from ..printing.text import print_json, print_table, print_text, shorten_names

_MAX_SETS = 20
"""Maximum number of sets that the text lists; the JSON has all of them."""


@options.subcommand(
    "inspect",
    "logitstore inspect logitstore-demo/store.zarr",
    "logitstore inspect logitstore-demo/store.zarr --json",
    "logitstore inspect logitstore-demo/store.zarr --digest",
)
@options.store_argument
@options.expect_option
@click.option(
    "--digest", "digest_alone", is_flag=True, help="Print the digest of the store, and nothing else."
)
@options.follow_links_option
@options.json_option
def command(store: str, expect: str | None, digest_alone: bool, follow_links: bool, as_json: bool) -> None:
    """Show the contents of a STORE: rows, classes, captures and their provenance, clusterings, sizes, seals.

    Damaged parts are listed with the reason, beside the rest. The exit code is then 65, or 75 for a part that could
    not be read.
    """
    if digest_alone:
        _print_digest(store, expect, follow_links=follow_links, as_json=as_json)
        return
    record, errors = describe(store, expect=expect, follow_links=follow_links)
    (print_json if as_json else _print)(record)
    click.get_current_context().exit(max((error.exit_code for error in errors), default=0))


def _print_digest(store: str, expect: str | None, *, follow_links: bool, as_json: bool) -> None:
    from ...storage.api import open_store

    if as_json:
        raise click.UsageError("--digest prints one line of text; remove --json, whose output has the digest")
    print_text(open_store(store, expect=expect, follow_links=follow_links).digest)


def _print(record: Mapping[str, Any]) -> None:
    samples, blocks = record["samples"], record["num_blocks"]
    names = "" if record["class_names"] is None else f": {shorten_names(record['class_names'])}"
    print_text(
        f"store    {record['path']}",
        f"digest   {record['digest']}",
        f"size     {format_bytes(record['bytes'])}",
        f"rows     {record['num_rows']:,} in {blocks:,} block{'s' * (blocks > 1)} of {record['block_rows']:,}",
        f"classes  {record['num_classes']:,}{names}",
        *([] if samples is None else [f"inputs   {_inputs(samples['inputs'])}"]),
    )
    if record["card"] is not None:
        print_text("", "card")
        print_text(*(f"  {key:<12} {' '.join(text.split())}" for key, text in record["card"].items()))
    _print_parts(record)
    for capture in record["captures"]:
        print_text("", f"teachers/{capture['name']}")
        print_text(*(f"  {key} = {value}" for key, value in _flat(capture["provenance"])))
        if capture["transform"] is not None:
            print_text("", *_transform(capture["transform"], capture["row_bytes"]))
        if capture["divergence"] is not None:
            origin = capture["derived_from"]
            print_text("")
            print_fidelity(
                capture["divergence"],
                source=f"teachers/{origin.get('capture')}" if isinstance(origin, Mapping) else None,
            )
    for clustering in record["clusterings"]:
        print_text(
            "",
            f"clusters/{clustering['name']}: {len(clustering['sets'])} sets",
            f"  {_origin(clustering)}",
            *(f"  {shorten_names(members)}" for members in clustering["sets"][:_MAX_SETS]),
            *([f"  in no set: {single_classes(clustering)}"] if clustering["single"] else []),
        )
    for part in record["unsealed"]:
        done = f"{part['blocks_done']:,} of {part['blocks']:,} blocks are there"
        print_text("", f"{part['part']}: not sealed, {done}")
    for name in record["removed"]:
        print_text("", f"{name}: removed")
    for part in record["unreadable"]:
        print_text("", f"{part['part']}: cannot be read: {' '.join(part['reason'].split())}")


def _print_parts(record: Mapping[str, Any]) -> None:
    parts = [] if record["samples"] is None else [("samples", record["samples"])]
    parts += [(f"teachers/{capture['name']}", capture) for capture in record["captures"]]
    parts += [(f"clusters/{clustering['name']}", clustering) for clustering in record["clusterings"]]
    if parts:
        print_text("")
        optional = "views", "classes", "encoding"
        print_table(
            ["part", "size", *optional, "seal"],
            [
                [name, format_bytes(part["bytes"]), *map(part.get, optional), part["digest"]]
                for name, part in parts
            ],
        )


def _origin(clustering: Mapping[str, Any]) -> str:
    """Return the teachers of a clustering and the options that made it, as one line."""
    temperature, inertia = clustering["temperature"], clustering["inertia"]
    parts = [
        " + ".join(clustering["teachers"]) or "an unknown teacher",
        f"T = {temperature:g}" if isinstance(temperature, int | float) else "",
        str(clustering["algorithm"] or ""),
        "correlations" if clustering["normalise"] else "",
        "disjoint sets" if clustering["disjoint"] else "",
        f"{clustering['dimensions']} random dimensions" if clustering["dimensions"] else "",
        f"inertia {inertia:.4g}" if isinstance(inertia, int | float) else "",
    ]
    return ", ".join(filter(None, parts))


def _transform(found: Mapping[str, Any], row_bytes: float) -> list[str]:
    """Return the figures of a capture in the transform encoding, as lines."""
    refined = "no row is in the basis"
    if found["refine"]:
        refined = (
            "{refine_min} to {refine_max}, median {refine_median}, 80 % of the rows {refine_p10} to {refine_p90}: "
            "how often a row's step is divided by √2"
        )
        refined = refined.format_map(found)
    alive = "unknown" if found["alive"] is None else f"{found['alive']:.4g}"
    return [
        f"  bytes a row      {row_bytes:.4g}, and {format_bytes(found['basis_bytes'])} of the basis",
        f"  components       {found['components']:,}, of which a chunk of rows uses {alive} on average",
        f"  refinement       {refined}",
        f"  escaped rows     {found['escaped']:,} of {found['rows']:,} ({found['escaped'] / found['rows']:.2%})",
    ]


def _inputs(stored: Mapping[str, Any] | None) -> str:
    if stored is None:
        return "not stored"
    if "files" in stored:
        return f"stored as the files of images, {format_bytes(stored['most_bytes'])} at most"
    return f"stored, {stored['dtype']} of shape ({', '.join(map(str, stored['shape']))})"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested tables to dotted keys.

    >>> list(_flat({"teacher": {"args": {"hidden": [8]}}, "augmentation": None}))
    [('augmentation', '—'), ('teacher.args.hidden', '[8]')]
    """
    for key, item in sorted(value.items()):
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "—" if item is None else str(item)
