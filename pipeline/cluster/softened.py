"""Softened outputs of a teacher, or of a weighted ensemble, in some rows of a store.

`Softened` names the captures, the shares of the ensemble and the temperature. Its rows are
Σ_m share_m · softmax(z_m / T), in float64 and in the order of the store's classes: the arithmetic mean of
`losses.soft_targets`. Only the requested rows are read, so that memory does not depend on the length of a block. It can be
sent to another process, which opens the captures anew.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from ...storage.api import Capture, Store
from ...storage.checks import check_temperature
from ...storage.errors import BadDataError, BadLogitsError, ConfigError, SpecMismatch
from ...storage.parts.same_inputs import check_same_inputs
from ..runtime.dask_tasks import Block
from .moments import pieces, slice_rows

_REMEDY: Final = "cluster teachers that saw the same inputs"


@runtime_checkable
class Logits(Protocol):
    """The part of a capture that is read here."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (views, rows, classes)."""

    def read(
        self, rows: range, view: int = 0, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Read the logits of some rows of a view, in nats, with any additive constant per row."""


@dataclass(frozen=True, eq=False)
class Source:
    """One teacher of an ensemble."""

    name: str
    """Its name in the store."""
    share: float
    """Share of the mean; the shares of all sum to 1."""
    logits: Logits
    """Logits of the capture."""


@dataclass(frozen=True, eq=False)
class Softened:
    """The softened outputs of an ensemble of teachers over all rows and views."""

    sources: tuple[Source, ...]
    """The teachers, at least one; all of one shape."""
    temperature: float
    """Temperature of the softmax."""
    block_rows: int
    """Number of rows a block."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (views, rows, classes)."""
        return self.sources[0].logits.shape

    def blocks(self) -> list[Block]:
        """List the blocks of all views, in order."""
        views, rows, _ = self.shape
        return [
            (view, range(first, min(first + self.block_rows, rows)))
            for view in range(views)
            for first in range(0, rows, self.block_rows)
        ]

    def slices(self, rows: range) -> Iterator[range]:
        """Cut some rows into slices of `moments.slice_rows`."""
        step = slice_rows(self.shape[2])
        return (range(first, min(first + step, rows.stop)) for first in range(rows.start, rows.stop, step))

    def read(
        self, view: int, rows: range, out: Float64[np.ndarray, "rows classes"] | None = None
    ) -> Float64[np.ndarray, "rows classes"]:
        """Read the probabilities of some rows of a view, into `out` if given. Raises BadLogitsError for NaN, infinity."""
        out = np.empty((len(rows), self.shape[2])) if out is None else out
        for number, source in enumerate(self.sources):
            logits = source.logits.read(rows, view, self.temperature)
            highest = _checked(logits, f"{source.name}: view {view}", rows.start)
            target = np.empty_like(out) if number else out
            for piece in pieces(*out.shape):
                softmax(
                    logits[piece],
                    self.temperature,
                    None if highest is None else highest[piece],
                    target[piece],
                )
            if source.share != 1:
                target *= source.share
            if number:
                out += target
        return out


def _checked(
    logits: Float32[np.ndarray, "rows classes"], where: str, first_row: int
) -> Float32[np.ndarray, "rows 1"] | None:
    """Return the largest of each row, None where all are 0, as in a capture. Raises BadLogitsError."""
    highest = logits.max(axis=1, keepdims=True)  # NaN where one is NaN
    if np.isfinite(highest).all() and math.isfinite(float(logits.min())):
        return highest if highest.any() else None
    row = int(np.argmin(np.isfinite(logits).all(axis=1)))
    raise BadLogitsError(
        f"{where}, row {first_row + row}",
        expected="finite logits",
        found="NaN or infinity",
        remedy="run `logitstore verify` on the store",
    )


def softmax(
    logits: Float32[np.ndarray, "rows classes"],
    temperature: float,
    highest: Float32[np.ndarray, "rows 1"] | None,
    out: Float64[np.ndarray, "rows classes"],
) -> None:
    """Write softmax(logits / temperature) along the classes, in float64, into `out`. Source: Hinton et al. 2015, eq. 1.

    highest: the largest logit of each row; None where it is 0.
    """
    out[...] = logits  # faster than a cast within another ufunc
    if highest is not None:
        out -= highest
    if temperature != 1:
        out *= 1 / temperature
    np.exp(out, out=out)
    out *= 1 / out.sum(axis=1, keepdims=True)


def softened_of(logits: Logits, temperature: float, block_rows: int) -> Softened:
    """Return the softened outputs of logits outside a store, such as an array."""
    check_temperature(temperature)
    return Softened((Source("logits", 1.0, logits),), float(temperature), block_rows)


def softened_outputs(store: Store, weights: Mapping[str, int | float], temperature: float) -> Softened:
    """Return the softened outputs of captures of a store.

    weights: of each capture, above 0, any scale. temperature: above 0.
    Raises PartNotFound or StoreIncomplete for a missing capture, BadDataError for one without all classes of the store (a
    specialist's), SpecMismatch where views or augmentations differ, RowMismatch where inputs do, ConfigError for weights or
    a temperature out of range.
    """
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights.values()):
        raise ConfigError(
            "teachers",
            expected="at least one teacher, with a weight above 0",
            found=", ".join(f"{name} = {weight:g}" for name, weight in weights.items()) or "no teacher",
            remedy="name a teacher of the store",
        )
    total = math.fsum(weights.values())
    captures = {name: store.teachers[name] for name in weights}
    for name, capture in captures.items():
        _check_classes(name, capture, store.num_classes)
    sources = tuple(Source(name, weights[name] / total, capture) for name, capture in captures.items())
    first, *others = captures.items()
    for name, capture in others:
        for what, theirs, ours in (
            ("views", capture.shape[0], first[1].shape[0]),
            ("augmentation", _augmentation(capture), _augmentation(first[1])),
        ):
            if theirs != ours:
                raise SpecMismatch(
                    f"teachers/{name}: {what}",
                    expected=f"{repr(ours)[:120]}, as teachers/{first[0]} has",
                    found=repr(theirs)[:120],
                    remedy=_REMEDY,
                )
    check_same_inputs(captures, range(first[1].num_views), str(store.path), _REMEDY)
    check_temperature(temperature)
    return Softened(sources, float(temperature), store.block_rows)


def _augmentation(capture: Any) -> Any:
    return capture.part.spec.identity.get("augmentation")


def _check_classes(name: str, capture: Capture, num_classes: int) -> None:
    """Refuse a capture without all classes of the store. Raises BadDataError."""
    if not capture.has_all_classes:
        raise BadDataError(
            f"teachers/{name}",
            expected=f"a capture of all {num_classes} classes of the store",
            found=f"a capture of {capture.columns_found}",
            remedy="cluster the generalist, or an ensemble of such teachers",
        )
