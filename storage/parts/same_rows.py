"""Rows compared with those of the store: labels, order and ids of a transfer set, and the inputs that a teacher saw.

A view that is not augmented shows the rows as they are: its `seen` is `samples/digest`. A block of another transfer set,
or of another order of this one, differs from it.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from numpy.typing import NDArray

from ..errors import ConfigError, RowMismatch, StoreCorrupt
from ..format.constants import CAPTURE, SAMPLES, SPEC
from ..format.documents import integer, shorten, table
from .part_reader import PartReader
from .root import Root

WITHOUT_INPUTS: Final[Mapping[str, str]] = {"id": "ids", "row": "row numbers"}
"""Content of digests that are none of inputs, by `digest_of` of the identity of samples; others are of inputs or their files."""


def check_row_labels(
    rows: range,
    found: Int64[np.ndarray, " rows"],
    expected: Int64[np.ndarray, " rows"],
    source: Int64[np.ndarray, " rows"],
) -> None:
    """Refuse labels other than those of the store. Raises RowMismatch with the first.

    rows: of the store. found: labels of the transfer set, -1 if unknown. expected: those of the store. source: index of
    each row in the transfer set.

    >>> check_row_labels(range(4, 6), np.array([0, 2]), np.array([0, 1]), np.array([8, 3]))
    Traceback (most recent call last):
    logitstore.storage.errors.RowMismatch: row 5 (index 3 of the transfer set): label: expected 1, found 2 (1 of 2 rows \
differ); give the transfer set the labels of the store, or make a new store
    """
    remedy = "give the transfer set the labels of the store, or make a new store"
    _check_values("label", rows, found, expected, source, remedy)


def check_sources(
    rows: range,
    found: Int64[np.ndarray, " rows"],
    expected: Int64[np.ndarray, " rows"],
    source: Int64[np.ndarray, " rows"],
) -> None:
    """Refuse rows in an order other than that of the store. Raises RowMismatch with the first."""
    remedy = "use the order with which the store was made, or make a new store"
    _check_values("index in the transfer set", rows, found, expected, source, remedy)


def check_ids(
    rows: range,
    found: UInt8[np.ndarray, "rows width"],
    expected: UInt8[np.ndarray, "rows width"],
    source: Int64[np.ndarray, " rows"],
) -> None:
    """Refuse ids other than those of the store, as rows of UTF-8. Raises RowMismatch with the first."""
    ours, theirs = (
        np.array([row.tobytes().rstrip(b"\0").decode(errors="replace") for row in ids])
        for ids in (found, expected)
    )
    remedy = "give the rows the ids of the store, or make a new store"
    _check_values("id", rows, ours, theirs, source, remedy)


def _check_values(
    name: str,
    rows: range,
    found: NDArray[Any],
    expected: NDArray[Any],
    source: Int64[np.ndarray, " rows"],
    remedy: str,
) -> None:
    bad = np.flatnonzero(found != expected)
    if len(bad):
        first = int(bad[0])
        raise RowMismatch(
            f"row {rows.start + first} (index {int(source[first])} of the transfer set): {name}",
            expected=shorten(expected[first].item()),
            found=f"{shorten(found[first].item())} ({len(bad)} of {len(rows)} rows differ)",
            remedy=remedy,
        )


def check_knows_inputs(identity: Mapping[str, Any], where: str) -> None:
    """Refuse samples whose digests are none of inputs: those of an import without inputs. Raises ConfigError.

    identity: of the samples.
    """
    if (content := WITHOUT_INPUTS.get(str(identity.get("digest_of")))) is not None:
        raise ConfigError(
            where,
            expected="digests of the inputs, with which those of a data set are compared",
            found=f"digests of {content}, as of an import without inputs",
            remedy="import the logits again with --inputs or --digests (inputs=…, digests=…)",
        )


def augmentation_of(identity: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Return the augmentation in the identity of a capture, None without one. Raises ManifestInvalid.

    >>> augmentation_of({"augmentation": {"first_view": "x"}}, "spec.json")
    Traceback (most recent call last):
    logitstore.storage.errors.ManifestInvalid: spec.json: augmentation: first_view: expected an integer of at least 0, \
found 'x'; run `logitstore verify` and restore the file from a copy
    """
    if identity.get("augmentation") is None:
        return None
    augmentation = table(identity["augmentation"], where, "augmentation")
    integer(augmentation.get("first_view", 0), 0, where, "augmentation: first_view")
    return augmentation


def is_augmented(augmentation: Mapping[str, Any] | None, view: int) -> bool:
    """Return whether a teacher saw augmented inputs in a view.

    augmentation: of `augmentation_of`.
    """
    return augmentation is not None and view >= augmentation.get("first_view", 0)


def check_seen(
    where: str,
    rows: range,
    seen: UInt64[np.ndarray, " rows"],
    digests: UInt64[np.ndarray, " rows"],
    remedy: str,
) -> None:
    """Refuse rows of a view that a teacher saw as they are, but not as the samples are. Raises RowMismatch."""
    bad = np.flatnonzero(seen != digests)
    if len(bad):
        first, last = rows.start + int(bad[0]), rows.start + int(bad[-1])
        raise RowMismatch(
            f"{where}, row {first}",
            expected=f"the input of the samples, with digest {int(digests[bad[0]]):016x}",
            found=f"{int(seen[bad[0]]):016x}: another input was seen ({len(bad)} rows from {first} to {last} differ)",
            remedy=remedy,
        )


def check_capture(root: Root, name: str) -> None:
    """Compare every row that the teacher of a sealed capture saw as it is with the samples.

    name: "teachers/wide"; other parts pass, and blocks that are damaged or missing: these are other faults.
    Raises RowMismatch, or ManifestInvalid for a spec that tells of no augmentation.
    """
    part = root.part(name)
    if part.kind != CAPTURE:
        return
    augmentation = augmentation_of(part.spec.identity, f"{part.folder.path}/{SPEC}")
    remedy = "do not use this capture: capture this teacher again under another name"
    for view in range(part.seal.views):
        for block in () if is_augmented(augmentation, view) else range(root.grid.num_blocks):
            rows = root.grid.rows(block)
            with contextlib.suppress(StoreCorrupt):
                seen = PartReader(part, root.grid).read("seen", rows, view)
                digests = PartReader(root.part(SAMPLES), root.grid).read("digest", rows)
                check_seen(f"{root.path}: {name}, view {view}", rows, seen, digests, remedy)
