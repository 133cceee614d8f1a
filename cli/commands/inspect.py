"""`logitstore inspect`: the contents of a store, from its metadata alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from ...storage.describe import describe
from ..options import examples, expect_option, json_option, store_argument, verbosity_options
from ..printing.clusterings import single_classes
from ..printing.stores import format_bytes, print_fidelity
from ..printing.text import print_json, print_table, print_text, printable

_NAMES_SHOWN = 20
"""Class names that the text lists; the JSON has all of them."""


@click.command(
    "inspect",
    epilog=examples(
        "logitstore inspect logitstore-demo/store.zarr",
        "logitstore inspect logitstore-demo/store.zarr --json",
    ),
)
@verbosity_options
@store_argument
@expect_option
@json_option
def command(store: str, expect: str | None, as_json: bool) -> None:
    """Show the contents of a STORE: rows, classes, captures and their provenance, clusterings, sizes, seals.

    Damaged parts are listed with the reason, beside the rest. The exit code is then 65, or 75 for a part that could
    not be read.
    """
    record, errors = describe(store, expect=expect)
    (print_json if as_json else _print)(record)
    click.get_current_context().exit(max((error.exit_code for error in errors), default=0))


def _line(text: str) -> None:
    print_text(printable(text))


def _section(heading: str) -> None:
    print_text()
    _line(heading)


def _print(record: Mapping[str, Any]) -> None:
    samples, blocks = record["samples"], record["num_blocks"]
    print_text(f"store    {record['path']}")
    print_text(f"digest   {record['digest']}")
    print_text(f"size     {format_bytes(record['bytes'])}")
    plural = "s" if blocks > 1 else ""
    print_text(f"rows     {record['num_rows']:,} in {blocks:,} block{plural} of {record['block_rows']:,}")
    _line(f"classes  {record['num_classes']:,}{_names(record['class_names'])}")
    if samples is not None:
        print_text(f"inputs   {_inputs(samples['inputs'])}")
    _print_parts(record)
    for capture in record["captures"]:
        _section(f"teachers/{capture['name']}")
        for key, value in _flat(capture["provenance"]):
            _line(f"  {key} = {value}")
        if capture["divergence"] is not None:
            origin = capture["derived_from"]
            source = f"teachers/{origin.get('capture')}" if isinstance(origin, Mapping) else None
            print_text()
            print_fidelity(capture["divergence"], source=source)
    for clustering in record["clusterings"]:
        _section(f"clusters/{clustering['name']}: {len(clustering['sets'])} sets")
        _line(f"  {_origin(clustering)}")
        for members in clustering["sets"][:_NAMES_SHOWN]:
            _line(f"  {', '.join(members)}")
        if clustering["single"]:
            _line(f"  in no set: {single_classes(clustering)}")
    for part in record["unsealed"]:
        _section(
            f"{part['part']}: not sealed, {part['blocks_done']:,} of {part['blocks']:,} blocks are there"
        )
    for part in record["unreadable"]:
        _section(f"{part['part']}: cannot be read: {' '.join(part['reason'].split())}")


def _print_parts(record: Mapping[str, Any]) -> None:
    rows: list[list[Any]] = []
    if record["samples"] is not None:
        rows.append(["samples", record["samples"], None, None, None])
    rows += [
        [f"teachers/{c['name']}", c, c["views"], c["classes"], c["encoding"]] for c in record["captures"]
    ]
    rows += [[f"clusters/{c['name']}", c, None, None, None] for c in record["clusterings"]]
    if rows:
        print_text()
        print_table(
            ["part", "size", "views", "classes", "encoding", "seal"],
            [[name, format_bytes(about["bytes"]), *cells, about["digest"]] for name, about, *cells in rows],
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


def _names(names: Sequence[str] | None) -> str:
    if names is None:
        return ""
    more = f", … {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return f": {', '.join(names[:_NAMES_SHOWN])}{more}"


def _inputs(stored: Mapping[str, Any] | None) -> str:
    if stored is None:
        return "not stored"
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
