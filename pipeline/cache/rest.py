"""The rows of a view of a block that no earlier store holds; and those that one holds, read from there.

    piece of a block ─┬─ held     read from the old captures when the block is written (`Rest.copied`)
                      └─ others   wait until there are enough for whole batches, or the block is over (`Rest.take`)

The teacher is run on some held rows all the same (`Rest.check`): an identity cannot state all that logits follow from, such
as the code of an installed package.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, Integer, Shaped
from numpy.typing import NDArray

from ...storage.encodings.divergence import divergence
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget
from ...storage.encodings.feature_logits import dense
from ...storage.encodings.transform import Transform
from ...storage.errors import BadLogitsError
from ...storage.parts.copied import CopiedRows
from ..runtime.inference import Precision, Runner
from .reuse import OldCapture
from .schedule import Shown

_CHECKED_ROWS: Final = 16
"""Held rows on which a teacher is run."""
_UNLIKE: Final[dict[Precision, float]] = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 5e-2}
"""Median KL between the logits of two runs, in nats at T = 1, from which they are not of one teacher."""


class Rest:
    """The rows of a view of a block that no old capture holds, in whole batches; and those that one holds."""

    def __init__(self, old: Sequence[OldCapture], view: int, rows: range, batch_size: int) -> None:
        self._old, self._view, self._rows, self._batch = tuple(old), view, rows, batch_size
        self._capture = np.full(len(rows), -1, np.int64)
        self._row = np.full(len(rows), -1, np.int64)
        self._held: list[NDArray[Any]] = []

    def take(self, shown: Shown) -> Shown:
        """Look the rows of a piece up; return it with the inputs that the teacher is to be run on next.

        Inputs wait until there are enough for whole batches, or the block is over: batches thus depend on no piece.
        """
        rows = shown.prepared.rows
        part = slice(rows.start - self._rows.start, rows.stop - self._rows.start)
        numbers = np.arange(rows.start, rows.stop, dtype=np.int64)
        for place, old in enumerate(self._old):
            left = np.flatnonzero(self._row[part] < 0)
            found = old.find(self._view, numbers[left], shown.prepared.digests[left], shown.seen[left])
            self._row[part][left] = found
            self._capture[part][left[found >= 0]] = place
        self._held.append(shown.inputs[self._row[part] < 0])
        inputs = np.concatenate(self._held)
        ready = len(inputs) if shown.is_last else len(inputs) - len(inputs) % self._batch
        self._held = [inputs[ready:].copy()]
        return replace(shown, inputs=inputs[:ready])

    def num_found(self, rows: range) -> int:
        """Return how many of some rows are held."""
        return int((self._row[rows.start - self._rows.start : rows.stop - self._rows.start] >= 0).sum())

    @property
    def is_run(self) -> NDArray[np.bool_]:
        """Whether the teacher was run on each row of the block."""
        return self._row < 0

    def spread(self, values: Shaped[np.ndarray, "some ..."]) -> Shaped[np.ndarray, "rows ..."]:
        """Put what the teacher gave in the places of its rows, with zeros for the others."""
        whole = np.zeros((len(self._rows), *values.shape[1:]), values.dtype)
        run = np.flatnonzero(self.is_run)
        whole[run] = values[: len(run)]
        return whole

    def copied(self, encoding: Encoding) -> CopiedRows | None:
        """Read the rows that are held; None if there are none. Raises as `OldCapture.arrays`."""
        positions = np.flatnonzero(~self.is_run)
        arrays: dict[str, NDArray[Any]] = {}
        for place, old in enumerate(self._old):
            mine = np.flatnonzero(self._capture[positions] == place)
            if len(mine):
                read = old.arrays(self._view, self._row[positions[mine]], encoding)
                for name, values in read.items():
                    if name not in arrays:
                        arrays[name] = np.empty((len(positions), *values.shape[1:]), values.dtype)
                    arrays[name][mine] = values
        return CopiedRows(positions, arrays) if arrays else None

    def check(self, shown: Shown, runner: Runner, precision: Precision) -> None:
        """Run the teacher on the first held rows of a piece, and compare. Raises BadLogitsError for another teacher's logits.

        shown: the whole piece. The median counts: few rows of one teacher may differ, as do those near a tie.
        """
        first = shown.prepared.rows.start - self._rows.start
        held = np.flatnonzero(self._row[first : first + len(shown.inputs)] >= 0)
        capture = self._capture[first + held]
        held = held[capture == capture[0]][:_CHECKED_ROWS]
        old = self._old[int(capture[0])]
        held = held[np.argsort(self._row[first + held], kind="stable")]
        now = dense(runner.rows(runner.logits(shown.inputs[held])))
        temperature, most = _expected(old.capture.encoding, precision)
        there = old.capture.read(self._row[first + held], self._view, temperature)
        if old.capture.encoding.is_dense:
            kl = divergence(now, there, temperature)
        else:
            index = old.capture.read_stored(self._row[first + held], self._view)["index"]
            kl = _kept_divergence(now, there, index)
        if not (middle := float(np.median(kl))) <= most:
            raise BadLogitsError(
                f"{runner.where}, view {self._view}, row {self._rows.start + first + int(held[0])}",
                expected=f"the logits that {old.where} has of the same input, within a KL of {most:.2g} nats at T = {temperature:g}",
                found=f"{kl[0]:.3g} nats, and {middle:.3g} in the median of {len(held)} rows",
                remedy="remove --reuse: code or versions of the teacher have changed since, or its logits depend on the other "
                "rows of a batch",
            )


def _expected(encoding: Encoding, precision: Precision) -> tuple[float, float]:
    """Return a temperature, and the KL at it up to which rows in an encoding may be those of a second run of their teacher."""
    temperature, bound, least = 1.0, 0.0, _UNLIKE[precision]
    if isinstance(encoding, Transform):
        temperature, bound = encoding.temperatures[0], encoding.max_kl
    elif isinstance(encoding, ErrorBudget):
        temperature, bound = encoding.min_temperature, encoding.max_kl
    # Errors add up, and a KL grows as their square.
    return temperature, (math.sqrt(least) / temperature + math.sqrt(bound)) ** 2


def _kept_divergence(
    now: Float32[np.ndarray, "rows classes"],
    there: Float32[np.ndarray, "rows classes"],
    index: Integer[np.ndarray, "rows kept"],
) -> Float64[np.ndarray, " rows"]:
    """Compute the KL of top-k rows, nats at T = 1, in which the classes that were left out count as one.

    >>> row = np.array([[2.0, 1.0, 0.0, -5.0]], np.float32)
    >>> bool(abs(_kept_divergence(row, row[:, [0, 1, 3, 2]], np.array([[0, 1]]))) < 1e-12)
    True
    """
    shares = []
    for logits in (now, there):
        exact = logits.astype(np.float64)
        below = np.exp(exact - exact.max(axis=1, keepdims=True))
        probabilities = below / below.sum(axis=1, keepdims=True)
        kept = np.take_along_axis(probabilities, index.astype(np.int64), axis=1)
        others = np.clip(1 - kept.sum(axis=1, keepdims=True), 1e-12, None)
        shares.append(np.clip(np.concatenate([kept, others], axis=1), 1e-300, None))
    p, q = shares
    kl: NDArray[np.float64] = (p * np.log(p / q)).sum(axis=1)
    return kl
