"""A store with captures in the transform encoding: two views, permuted columns, rows that are stored whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.encodings.refine import ESCAPED
from support.stores import some_inputs

ROWS, CLASSES, FEATURES, VIEWS, BLOCK_ROWS = 150, 40, 7, 2, 64
MAX_KL = 1e-3
ENCODINGS: Mapping[str, Any] = {
    "wide": {"transform": {"max_kl": MAX_KL}},
    "deep": {"transform": {"max_kl": 1e-2, "temperatures": [1, 4]}},
    "budget": {"max_kl": 1e-3},
    "half": "float16",
    "largest": {"top_k": 9},
}
"""Encoding of each teacher; `wide` has its columns in another order, and escaped rows."""
AUGMENTATION: Mapping[str, Any] = {"factory": "tests:noise", "args": {}, "seed": 0, "first_view": 1}


@dataclass(frozen=True)
class Transformed:
    """A store, and the logits that were put into it."""

    path: Path
    store: Store
    logits: Mapping[str, NDArray[np.float32]]
    """By teacher: (view, row, class), raw, in the order of the store's classes."""
    labels: NDArray[np.int64]


def teacher_logits(seed: int, views: int = VIEWS, rows: int = ROWS) -> NDArray[np.float32]:
    """Return logits of a linear head with few features; every tenth row of each view, from its number on, is noise."""
    random = np.random.default_rng(seed)
    hidden = np.maximum(random.standard_normal((views, rows, FEATURES)), 0)
    weights, bias = random.standard_normal((FEATURES, CLASSES)), random.standard_normal(CLASSES)
    logits = 2 * hidden @ weights + bias
    for view in range(views):
        logits[view, 3 + view :: 10] = 5 * random.standard_normal((len(range(3 + view, rows, 10)), CLASSES))
    return logits.astype(np.float32)


def make(path: Path, encodings: Mapping[str, Any] = ENCODINGS, rows: int = ROWS) -> Transformed:
    """Make the store at `path`, without fsync."""
    labels = (np.arange(rows, dtype=np.int64) * 7 + 1) % (CLASSES + 1) - 1
    inputs = some_inputs(rows)
    logits = {}
    with mock.patch("os.fsync"):
        store = create_store(
            path, num_classes=CLASSES, labels=labels, inputs=inputs, store_inputs=True, block_rows=BLOCK_ROWS
        )
        for number, (name, encoding) in enumerate(encodings.items()):
            given = logits[name] = teacher_logits(number, rows=rows)
            classes = np.random.default_rng(9).permutation(CLASSES) if name == "wide" else np.arange(CLASSES)
            is_clean = np.arange(rows) % 10 > 5
            with store.capture(
                name,
                provenance={"teacher": {"name": name}, "augmentation": dict(AUGMENTATION)},
                views=VIEWS,
                encoding=encoding,
                classes=classes.tolist(),
                calibration=given[:, is_clean].reshape(-1, CLASSES)[:, classes]
                if isinstance(encoding, dict) and "transform" in encoding
                else None,
            ) as capture:
                for view in range(VIEWS):
                    for some in capture.missing_blocks(view):
                        part = slice(some.start, some.stop)
                        shown = inputs[part] + np.uint8(view)
                        capture.write(some, given[view, part][:, classes], view=view, seen=digest_rows(shown))
    return Transformed(path, open_store(path), logits, labels)


def decoded_by_hand(made: Transformed, name: str, view: int) -> NDArray[np.float64]:
    """Decode a view of a teacher by the formula of the format page, in float64, from Zarr's own reader."""
    import zarr

    group: Any = zarr.open_group(f"{made.path}/teachers/{name}", mode="r")
    codes = group["codes"][view].astype(np.int64)
    refine = group["refine"][view]
    signed = np.where(codes % 2 == 0, codes // 2, -(codes + 1) // 2)
    steps = group["step"][:].astype(np.float64) * 2.0 ** (-refine.astype(np.float64)[:, None] / 2)
    decoded: NDArray[np.float64] = (signed * steps) @ group["basis"][:].astype(np.float64) + group["centre"][
        :
    ]
    escaped = refine == ESCAPED
    whole: Any = group["escape"]
    decoded[escaped] = whole[view][escaped] * float(whole.attrs["scale_factor"])
    decoded -= decoded.max(axis=1, keepdims=True)
    ordered = np.empty_like(decoded)
    ordered[:, group["classes"][:]] = decoded
    return ordered


def escaped_rows(made: Transformed, name: str, view: int) -> NDArray[np.int64]:
    """Return the rows of a view that are stored whole."""
    return np.flatnonzero(made.store.teachers[name].reader.read("refine", slice(None), view) == ESCAPED)
