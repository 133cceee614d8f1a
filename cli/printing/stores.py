"""Sizes and digest of a store, and the error of its encoded captures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...storage.describe import store_bytes
from .text import print_records, print_text

if TYPE_CHECKING:
    from ...pipeline.cache.monitor import Tally
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
    size = format_bytes(store_bytes(store))
    print_text(f"store   {store.path}", f"size    {size}", f"digest  {store.digest}")


def captured_line(name: str, tally: "Tally") -> str:
    """Return the line of a capture that was made now."""
    return f"captured  {name}" + (f"  ({tally.described})" if tally.described else "")


def print_fidelity(records: Sequence[Mapping[str, Any]], *, source: str | None) -> None:
    """Print the KL of an encoded capture as a table, a line a temperature.

    source: the capture that was compressed; None if the teacher's own logits were encoded.
    """
    bounds: dict[str, str] = {}
    if any(record["bound"] is not None for record in records):
        bounds = {"bound to the teacher": "bound:.2e"}
    if source is not None and any(record["bound_to_source"] is not None for record in records):
        bounds[f"bound to {source}"] = "bound_to_source:.2e"
    measured = {"max": "max:.2e", "99.9th percentile": "p99.9:.2e", "mean": "mean:.2e"}
    print_records(
        {"T": "temperature:g", **bounds, **measured},
        records,
        title=f"KL to {source or 'the teacher'} as measured, in nats a row"
        f"{', and the bounds that no row exceeds' if bounds else ''}",
    )
