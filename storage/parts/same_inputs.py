"""Inputs of several captures compared: whoever pairs their logits by row pairs those of the same input.

1. The augmentations that the captures state must be equal in the views that are used.
2. So must the digests of the inputs, `seen`. Equal statements are not enough: an augmentation without a seed shows each
   teacher other inputs.

    seal of wide   seen: size, sha256, crc32c of each shard  ─┐ equal, as nearly always: nothing is read
    seal of deep   seen: size, sha256, crc32c of each shard  ─┘ else the rows of that block are read and compared
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from ..errors import RowMismatch, SpecMismatch
from .reader import CaptureReader
from .same_rows import is_augmented

_REMEDY: Final = "stream them one at a time, or capture one of them again"


def check_same_inputs(
    captures: Mapping[str, CaptureReader], views: Iterable[int], where: str, remedy: str = _REMEDY
) -> Mapping[str, Any] | None:
    """Compare the inputs that captures saw in some views; return their augmentation in these, None without one.

    where: the store, for messages. Raises SpecMismatch for augmentations that differ, RowMismatch with the first row of
    another input.
    """
    used = tuple(views)
    augmentation = _common_augmentation(captures, used, where, remedy)
    listed = list(captures.values())
    for other in listed[1:]:
        for view in used:
            _check_seen(listed[0], other, view, where, remedy)
    return augmentation


def _common_augmentation(
    captures: Mapping[str, CaptureReader], views: tuple[int, ...], where: str, remedy: str
) -> Mapping[str, Any] | None:
    """Return the augmentation of all captures in some views. Raises SpecMismatch."""
    by_name: dict[str, Any] = {
        name: c.augmentation if any(is_augmented(c.augmentation, view) for view in views) else None
        for name, c in captures.items()
    }
    names = list(by_name)
    for name in names[1:]:
        if by_name[name] != by_name[names[0]]:
            raise SpecMismatch(
                f"{where}: teachers {names[0]!r} and {name!r}",
                expected="captures of the same augmented inputs",
                found=f"{by_name[names[0]]} and {by_name[name]}"[:200],
                remedy=remedy,
            )
    return by_name[names[0]] if names else None


def _check_seen(first: CaptureReader, other: CaptureReader, view: int, where: str, remedy: str) -> None:
    """Compare the digests of two captures in a view. Raises RowMismatch with the first row that differs."""
    for block in first.part.table.differing_blocks("seen", view, other.part.table):
        # Other bytes may still hold the same digests, written by another version of a codec.
        rows = first.reader.grid.rows(block)
        ours, theirs = first.seen(rows, view), other.seen(rows, view)
        bad = np.flatnonzero(ours != theirs)
        if len(bad):
            row = int(bad[0])
            raise RowMismatch(
                f"{where}: teachers/{other.name}, view {view}, row {rows.start + row}",
                expected=f"the input that {first.name} saw, with digest {int(ours[row]):016x}",
                found=f"{int(theirs[row]):016x} ({len(bad)} of {len(rows)} rows that were compared differ)",
                remedy=remedy,
            )
