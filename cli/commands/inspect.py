"""What is in a store, as its metadata alone tell?

Attributes, log, seals and specs are read, each checked, and of encoded captures the error that was measured of each
row (ten bytes); no other shard is opened and nothing that a store names is imported. A part that cannot be read is
listed with the reason, and the rest is shown all the same: what needs a newer logitstore is no error, what is damaged
or refused makes the exit code.
"""

from collections.abc import Iterator, Mapping
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
    """Say what is in a STORE: rows, classes, captures and how they were made, clusterings, sizes, seals.

    What is damaged is named, the rest is shown; the exit code then is 65 (75 where it could not be read).
    """
    from ...storage.api import open_store
    from ...storage.errors import LogitStoreError

    damaged: list[LogitStoreError] = []
    found = describe(open_store(store, expect=expect), damaged)
    if as_json:
        print_json(found)
    else:
        _print(found)
    click.get_current_context().exit(max((error.exit_code for error in damaged), default=0))


def _print(found: Mapping[str, Any]) -> None:
    names = found["class_names"]
    samples = found["samples"]
    print_text(f"store    {found['path']}")
    print_text(f"digest   {found['digest']}")
    print_text(f"size     {format_bytes(found['bytes'])}")
    blocks = found["num_blocks"]
    print_text(
        f"rows     {found['num_rows']:,} in {blocks:,} block{'s' if blocks > 1 else ''} "
        f"of {found['block_rows']:,}"
    )
    print_text(printable(f"classes  {found['num_classes']:,}{_listed(names)}"))
    if samples is not None:
        print_text(f"inputs   {_inputs(samples['inputs'])}")
    _print_parts(found)
    for capture in found["captures"]:
        print_text()
        print_text(f"teachers/{capture['name']}")
        for key, value in _flat(capture["provenance"]):
            print_text(printable(f"  {key} = {value}"))
        if capture["divergence"] is not None:
            origin = capture["derived_from"]
            print_text()
            print_fidelity(capture["divergence"], source=_origin(origin))
    for clustering in found["clusterings"]:
        print_text()
        print_text(f"clusters/{clustering['name']}: {len(clustering['sets'])} sets")
        print_text(printable(f"  {_how(clustering)}"))
        for members in clustering["sets"][:_NAMES_SHOWN]:
            print_text(printable(f"  {', '.join(members)}"))
        if clustering["single"]:
            print_text(printable(f"  in no set: {single_classes(clustering)}"))
    for part in found["unsealed"]:
        print_text()
        done = f"{part['blocks_done']:,} of {part['blocks']:,}"
        print_text(printable(f"{part['part']}: not sealed, {done} blocks are there"))
    for part in found["unreadable"]:
        print_text()
        print_text(printable(f"{part['part']}: cannot be read: {' '.join(part['reason'].split())}"))


def _how(clustering: Mapping[str, Any]) -> str:
    """Of which predictions a clustering is, and how it was made."""
    parts = [" + ".join(clustering["teachers"]) or "an unknown teacher"]
    parts += (
        [f"T = {clustering['temperature']:g}"] if isinstance(clustering["temperature"], int | float) else []
    )
    parts += [str(clustering["algorithm"])] if clustering["algorithm"] else []
    parts += ["correlations"] if clustering["normalise"] else []
    parts += ["disjoint sets"] if clustering["disjoint"] else []
    parts += [f"{clustering['dimensions']} random dimensions"] if clustering["dimensions"] else []
    parts += (
        [f"inertia {clustering['inertia']:.4g}"] if isinstance(clustering["inertia"], int | float) else []
    )
    return ", ".join(parts)


def _print_parts(found: Mapping[str, Any]) -> None:
    rows: list[list[Any]] = []
    if found["samples"] is not None:
        rows.append(["samples", found["samples"], None, None, None])
    rows += [[f"teachers/{c['name']}", c, c["views"], c["classes"], c["encoding"]] for c in found["captures"]]
    rows += [[f"clusters/{c['name']}", c, None, None, None] for c in found["clusterings"]]
    if rows:
        print_text()
        print_table(
            ["part", "size", "views", "classes", "encoding", "seal"],
            [[name, format_bytes(about["bytes"]), *cells, about["digest"]] for name, about, *cells in rows],
        )


def _origin(derived_from: Any) -> str | None:
    """The capture that an encoded one was made from, as it says."""
    if not isinstance(derived_from, Mapping):
        return None
    return f"teachers/{derived_from.get('capture')}"


def _listed(names: list[str] | None) -> str:
    if names is None:
        return ""
    more = f", … {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return f": {', '.join(names[:_NAMES_SHOWN])}{more}"


def _inputs(stored: Mapping[str, Any] | None) -> str:
    if stored is None:
        return "not stored"
    return f"stored, {stored['dtype']} of shape ({', '.join(map(str, stored['shape']))})"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested tables as dotted keys.

    >>> list(_flat({"teacher": {"args": {"hidden": [8]}}, "augmentation": None}))
    [('augmentation', '—'), ('teacher.args.hidden', '[8]')]
    """
    for key, item in sorted(value.items()):
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "—" if item is None else str(item)
