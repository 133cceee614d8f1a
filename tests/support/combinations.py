"""A store with a generalist and some specialists, of known numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from logitstore.pipeline.combine.experts import Experts, active_specialists
from logitstore.pipeline.combine.solve import combine_rows
from logitstore.storage.api import Store, create_store, open_store
from support import stores

ROWS, CLASSES, BLOCK_ROWS, VIEWS = 45, 9, 8, 2
SETS: Mapping[str, Sequence[int]] = {"s-0": (0, 1, 2), "s-1": (2, 3, 4, 5), "s-2": (1, 2, 6)}
"""Specialists: some rows have none, some several."""
DISJOINT: Mapping[str, Sequence[int]] = {"d-0": (0, 1, 2), "d-1": (4, 6)}


@dataclass(frozen=True)
class Made:
    """A store, and the logits that went in."""

    store: Store
    inputs: NDArray[Any]
    logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """By capture: (view, row, column), centred."""

    @property
    def path(self) -> Path:
        return Path(self.store.path)

    def opened(self) -> Store:
        """Open the store as it is on the disk now."""
        return open_store(self.path)

    def expected(
        self, sets: Mapping[str, Sequence[int]], view: int = 0, top: int = 1, direction: Any = "pq"
    ) -> NDArray[np.float64]:
        """Return q of every row, from whole arrays in float64."""
        logits = self.logits["wide"][view].astype(np.float64)
        experts = Experts.of([(*own, -1) for own in sets.values()], CLASSES)
        active = active_specialists(logits, experts, top)
        said = [self.logits[name][view][active[:, m]].astype(np.float64) for m, name in enumerate(sets)]
        return np.asarray(np.exp(combine_rows(logits, experts, active, said, direction=direction)))


def head(store: Store, number: int, **other: Any) -> dict[str, Any]:
    """Return the provenance of a specialist."""
    return {
        "kind": "specialist",
        "generalist": {"capture": "wide", "seal": store.teachers["wide"].digest},
        "clustering": {"name": "wide-3x3", "digest": f"sha256:{'0' * 64}"},
        "set": number,
        "prior": 0.25,
        "share": 0.5,
        "dustbin_corrected": True,
    } | other


def write(
    made: Made,
    name: str,
    classes: Sequence[int] | None,
    provenance: Mapping[str, Any],
    *,
    views: int = VIEWS,
    encoding: Any = "float32",
    shown: NDArray[Any] | None = None,
) -> None:
    """Write a capture whose views are augmented, whole."""
    columns = CLASSES if classes is None else len(classes)
    seed = sum(map(ord, name))
    logits = np.random.default_rng(seed).normal(0, 2, (views, ROWS, columns)).astype(np.float32)
    made.logits[name] = logits - logits.max(axis=2, keepdims=True)
    teacher = stores.Teacher(
        views, encoding, augmented=True, classes=None if classes is None else tuple(classes)
    )
    inputs = made.inputs if shown is None else shown
    origin = {"augmentation": dict(stores.AUGMENTATION), **provenance}
    with mock.patch("os.fsync"):
        stores.write_capture(made.store, name, logits, teacher, inputs, origin)


def make(path: Path) -> Made:
    """Make a store of a generalist `wide`, and of the specialists of `SETS` and `DISJOINT`."""
    inputs = stores.some_inputs(ROWS)
    with mock.patch("os.fsync"):
        store = create_store(
            path, num_classes=CLASSES, labels=np.arange(ROWS) % CLASSES, inputs=inputs, block_rows=BLOCK_ROWS
        )
    made = Made(store, inputs)
    write(made, "wide", None, {"teacher": {"name": "wide"}, "transfer_set": None})
    for number, (name, own) in enumerate({**SETS, **DISJOINT}.items()):
        write(made, name, (*own, -1), {"teacher": {"name": name}, "head": head(store, number)})
    return made
