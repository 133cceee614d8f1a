"""Tables of a store's parts and sizes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...storage.describe import store_bytes
from .text import print_table, print_text, printable

if TYPE_CHECKING:
    from ...storage.api import Store


def format_bytes(size: int) -> str:
    """Return a number of bytes in a readable unit.

    >>> [format_bytes(size) for size in (0, 1023, 1536, 44_956_928, 3 << 40)]
    ['0 bytes', '1,023 bytes', '1.5 KiB', '42.9 MiB', '3.0 TiB']
    """
    if size < 1024:
        return f"{size:,} bytes"
    power = min(4, (size.bit_length() - 1) // 10)
    return f"{size / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def print_store(store: "Store") -> None:
    """Print location, size and digest of a store."""
    print_text(f"store   {store.path}")
    print_text(f"size    {format_bytes(store_bytes(store))}")
    print_text(f"digest  {store.digest}")


def print_fidelity(records: Sequence[Mapping[str, Any]], *, source: str | None) -> None:
    """Print the KL of an encoded capture as a table, a line a temperature.

    source: the capture that was compressed; None if the teacher's own logits were encoded.
    """
    source = None if source is None else printable(source)  # it comes from a store
    given = source or "the teacher"
    bounds = {"bound": "bound to the teacher", "bound_to_source": f"bound to {source}"}
    if source is None:
        del bounds["bound_to_source"]
    if all(record["bound"] is None for record in records):
        bounds = {}
    print_table(
        ["T", *bounds.values(), "max", "99.9th percentile", "mean"],
        [
            [f"{record['temperature']:g}"] + [_nats(record[key]) for key in (*bounds, "max", "p99.9", "mean")]
            for record in records
        ],
        title=f"KL to {given} as measured, in nats a row{', and what no row exceeds' if bounds else ''}",
    )


def _nats(value: float | None) -> str | None:
    return None if value is None else f"{value:.2e}"
