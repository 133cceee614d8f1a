"""A store with captures in the transform encoding: most rows lie in the span of a basis, and some do not.

Logits are multiples of 1/8 that the basis reaches exactly, so that no rounding decides about a byte. The rows of `FAR` are
not in its span: they are escaped.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.storage.api import Store, create_store
from logitstore.storage.encodings.basis import Basis
from logitstore.storage.encodings.transform import Transform

ROWS, CLASSES, COMPONENTS, VIEWS, BLOCK_ROWS = 21, 8, 3, 2, 8
FAR = ((0, 3), (0, 17), (1, 0), (1, 20))
"""(view, row) of the escaped rows."""
ORDER = (3, 0, 6, 1, 7, 2, 5, 4)
"""The order of the columns of `turned`."""
PROVENANCE = {"teacher": "known"}


def known_basis() -> Basis:
    """Return rows of a Hadamard matrix: orthogonal for equal weights, and exact in every product."""
    signs = np.array([[1]], np.float32)
    while len(signs) < CLASSES:
        signs = np.block([[signs, signs], [signs, -signs]])
    return Basis(
        np.ascontiguousarray(signs[1 : COMPONENTS + 1]),
        np.arange(CLASSES, dtype=np.float32) * 3 / 16,
        np.array([0.25, 0.125, 0.125], np.float32),
        np.full(CLASSES, 0.125, np.float32),
    )


def known_logits() -> NDArray[np.float32]:
    """Return logits (view, row, class): codes in the basis, but for the rows of `FAR`."""
    basis = known_basis()
    numbers = np.arange(VIEWS * ROWS * COMPONENTS).reshape(VIEWS, ROWS, COMPONENTS)
    codes = (numbers * 37 % 61 - 30).astype(np.float32)
    logits = (codes * basis.step) @ basis.basis + basis.centre
    for view, row in FAR:
        logits[view, row] = (np.arange(CLASSES) * (row + 3) % 11).astype(np.float32) * 1.5
    return np.asarray(logits, np.float32)


def encoding(**options: Any) -> Transform:
    """Return the encoding with the basis of these logits."""
    return Transform(**({"max_kl": 1e-2, "temperatures": (1.0, 2.0, 4.0)} | options)).with_basis(
        known_basis()
    )


def begin(path: Path) -> Store:
    """Make the store, or open it to go on."""
    digests = np.arange(ROWS, dtype=np.uint64)
    return create_store(path, num_classes=CLASSES, digests=digests, block_rows=BLOCK_ROWS, exist_ok=True)


def write(store: Store, name: str, *, columns: Any = None, **options: Any) -> None:
    """Write the missing blocks of a capture, and seal it. columns: order of the columns. options: of `Store.capture`."""
    options = {"encoding": encoding(), "views": VIEWS, "provenance": PROVENANCE} | options
    order = list(range(CLASSES) if columns is None else columns)
    with store.capture(name, classes=columns, **options) as capture:
        for view in range(VIEWS):
            for rows in capture.missing_blocks(view):
                capture.write(rows, known_logits()[view, rows.start : rows.stop][:, order], view)


def turned(columns: Any = ORDER) -> Transform:
    """Return the encoding with the basis of columns in another order."""
    basis, order = known_basis(), list(columns)
    return encoding().with_basis(
        Basis(
            np.ascontiguousarray(basis.basis[:, order]), basis.centre[order], basis.step, basis.weight[order]
        )
    )


def make(path: Path, names: tuple[str, ...] = ("plain", "peaked", "turned")) -> Store:
    """Make a store with captures: `plain`, `peaked`, which keeps its constants, and `turned`."""
    store = begin(path)
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "peaked": {"encoding": encoding(keeps_peak=True)},
        "turned": {"columns": ORDER, "encoding": turned()},
    }
    for name in names:
        write(store, name, **options[name])
    return store


def centred() -> NDArray[np.float32]:
    """Return the logits as they come back: exact, but for the rows of `FAR`."""
    logits = known_logits()
    return np.asarray(logits - logits.max(axis=2, keepdims=True))
