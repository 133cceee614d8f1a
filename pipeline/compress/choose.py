"""The encoding of a kind that fits a sealed capture: the width of its codes, or the number of classes to keep.

1. `scan` looks at every row once: the largest distance of a logit below its row's maximum, and constant rows.
2. `fit_budget` takes one byte a code where every code fits. For two bytes it tries on a sample which multiple of the codes
   the codec packs best.
3. `fit_top_k` finds the smallest k that keeps a KL: by bisection on a sample, then on all rows.

The same capture gives the same encoding.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from ...storage.encodings.divergence import float16_up
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget, two_digits_up
from ...storage.encodings.top_k import TopK, largest, tail_figures, top_k_divergence
from ...storage.errors import BadLogitsError, ConfigError
from ...storage.format.codec import BLOSC, compress
from ...storage.format.grid import plan_chunk_rows
from ...storage.parts.fidelity import percentile
from ...storage.parts.reader import CaptureReader
from ...storage.progress import Progress, silent
from ..runtime.dask_tasks import Block, every_block, over_blocks

STATISTICS: Final = ("mean", "max", "p99.9")
"""Statistics of the KL of all rows and views."""
_SAMPLE_CHUNKS: Final = 4
"""Number of chunks that the codec is tried on."""
_SAMPLE_LOGITS: Final = 1 << 22
"""Number of logits in the sample for k."""
_SAMPLE_PLACES: Final = 32
"""Number of places of the store that they come from."""
_SORTED: Final = 1 << 18
"""Number of logits that are sorted at a time."""
_FLOAT16_MAX: Final = 65504.0


@dataclass(frozen=True)
class Scan:
    """Findings of one look at every row."""

    spread: float
    """The largest distance of a logit below its row's maximum, nats."""
    constant_rows: int
    """Number of rows whose logits are all equal, as a dead teacher's are."""
    first_constant: tuple[int, int] | None
    """(view, row) of the first of them."""


def scan(capture: CaptureReader, encoding: Encoding | None = None, *, progress: Progress = silent) -> Scan:
    """Look at every row of a sealed capture, on all cores.

    Raises BadLogitsError where `encoding` cannot hold a row: k logits beyond the range of float16.
    """

    def look(view: int, rows: range) -> Scan:
        logits = capture.read(rows, view)
        least = logits.min(axis=1)
        spread = -float(least.min())
        if encoding is not None and spread > _FLOAT16_MAX:
            encoding.encode(logits, rows.start, f"teacher {capture.name!r}, view {view}")
        constant = np.flatnonzero(least == 0)
        first = (view, rows.start + int(constant[0])) if len(constant) else None
        return Scan(spread, len(constant), first)

    blocks = every_block(capture.reader.grid, capture.num_views)
    found = over_blocks(f"scan {capture.name}", blocks, look, progress=progress)
    firsts = (one.first_constant for one in found if one.first_constant is not None)
    return Scan(
        max(one.spread for one in found), sum(one.constant_rows for one in found), next(iter(firsts), None)
    )


def fit_budget(
    max_kl: float,
    min_temperature: float = 1.0,
    *,
    spread: float,
    source_error: float = 0.0,
    samples: Iterable[Float32[np.ndarray, "rows classes"]] = (),
    where: str = "encoding",
) -> ErrorBudget:
    """Return the error budget of one byte a code where every code fits, else of two, in the multiple that packs best.

    spread: the largest distance of any logit below its row's maximum, nats. source_error: error of the logits that will be
    encoded. samples: logits of some inner chunks of the new capture (`sample_chunks`), for the codec.
    where: the logits in words, for messages.
    Raises ConfigError for a budget out of range, or one that two bytes cannot keep over `spread`, naming the smallest that
    they can.
    """
    request = ErrorBudget(max_kl, min_temperature)  # raises for numbers that are no budget
    try:
        narrow = ErrorBudget(max_kl, min_temperature, source_error, "uint8")
    except ConfigError:
        raise _too_small(request, spread, source_error, where) from None
    if _largest_code(narrow, spread) is not None:
        return narrow
    wide = ErrorBudget(max_kl, min_temperature, source_error, "uint16")
    largest_code = _largest_code(wide, spread)
    if largest_code is None:
        raise _too_small(request, spread, source_error, where)
    codes = [wide.encode(logits, 0, where)["logits"] for logits in samples]
    shifts = range(max(1, 16 - largest_code.bit_length()))
    shift = min(
        shifts, key=lambda s: sum(len(compress(BLOSC, np.left_shift(c, np.uint16(s)))) for c in codes)
    )
    return ErrorBudget(max_kl, min_temperature, source_error, "uint16", shift)


def _largest_code(encoding: ErrorBudget, spread: float) -> int | None:
    """Return the code of a logit so far below its row's maximum; None where it does not fit."""
    try:
        coded = encoding.encode(np.array([[0.0, -spread]], np.float32), 0, "")
    except BadLogitsError:
        return None
    return int(coded["logits"][0, 1])


def _too_small(request: ErrorBudget, spread: float, source_error: float, where: str) -> ConfigError:
    """Return the error of a budget that two bytes cannot keep, with the smallest that they can."""
    temperature = request.min_temperature
    # The smallest budget does not depend on the requested one; this one leaves a part of ε.
    ample = max(request.max_kl, 2 * (source_error / temperature) ** 2)
    smallest = ErrorBudget(ample, temperature, source_error).budget_of(spread)
    rounded = f", already rounded by as much as {source_error:.3g}" if source_error else ""
    return ConfigError(
        f"{where}: max_kl",
        expected=f"at least {two_digits_up(smallest):g} at min_temperature {temperature:g}: logits lie up to "
        f"{spread:.6g} below their row's maximum{rounded}",
        found=f"{request.max_kl:g}",
        remedy="allow that much, or a larger min_temperature"
        + (", or capture the teacher in float32" if source_error else ""),
    )


def sample_chunks(capture: CaptureReader, item_bytes: int = 2) -> list[Block]:
    """Return (view, rows) of some inner chunks of the new capture, spread over its blocks. item_bytes: size of a code."""
    grid = capture.reader.grid
    blocks = every_block(grid, capture.num_views)
    chunk_rows = plan_chunk_rows(grid.block_rows, item_bytes * capture.shape[2])
    return [(view, rows[:chunk_rows]) for view, rows in _spread_over(blocks, _SAMPLE_CHUNKS)]


def _spread_over(blocks: Sequence[Block], number: int) -> list[Block]:
    """Return `number` of the blocks at equal distances; all where there are fewer.

    >>> _spread_over([(0, range(i, i + 1)) for i in range(10)], 3)
    [(0, range(1, 2)), (0, range(5, 6)), (0, range(8, 9))]
    """
    number = min(number, len(blocks))
    return [blocks[(2 * i + 1) * len(blocks) // (2 * number)] for i in range(number)]


@dataclass(frozen=True)
class SmallestTopK:
    """A request for the smallest k whose KL, measured over all rows at one temperature, stays within a limit."""

    max_kl: float
    """Maximum of `statistic`, in nats."""
    temperature: float
    """Temperature at which it is measured."""
    statistic: str = "max"
    """Statistic of the KL of all rows: one of `STATISTICS`."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be measured. Raises ConfigError."""
        positive_number("top_k_kl", self.max_kl)
        positive_number("temperature", self.temperature)
        if self.statistic not in STATISTICS:
            raise ConfigError(
                "encoding: statistic",
                expected=f"one of {', '.join(STATISTICS)}",
                found=repr(self.statistic)[:40],
                remedy=f"leave it out for {STATISTICS[1]}",
            )

    def describe(self) -> dict[str, Any]:
        """Return the request as JSON."""
        return {"max_kl": self.max_kl, "temperature": self.temperature, "statistic": self.statistic}

    def measure(self, kl: Float64[np.ndarray, " rows"]) -> float:
        """Return the statistic of the KL of some rows."""
        if self.statistic == "p99.9":
            return percentile(kl)
        return float(kl.max() if self.statistic == "max" else kl.mean())


def positive_number(name: str, value: Any) -> float:
    """Return a value as a float. Raises ConfigError unless it is a positive, finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > 0):
        raise ConfigError(
            f"encoding: {name}",
            expected="a positive number" + (" of nats" if name == "top_k_kl" else ""),
            found="no such key" if value is None else repr(value)[:40],
            remedy=f"set {name}",
        )
    return float(value)


def fit_top_k(capture: CaptureReader, wish: SmallestTopK, *, progress: Progress = silent) -> TopK:
    """Return the k that keeps the limit over all rows and views, where k - 1 does not.

    Raises ConfigError where all classes do not keep it: their logits are stored as float16.
    """
    num_classes = capture.shape[2]
    sample = _sample(capture)
    order = np.concatenate([largest(piece, num_classes) for piece in _pieces(sample)])

    def on_sample(k: int) -> float:
        return wish.measure(_top_k_kl(sample, order, k, wish.temperature))

    def on_all(ks: list[int]) -> list[float]:
        def measure(view: int, rows: range) -> list[NDArray[np.float64]]:
            return _block_kl(capture.read(rows, view), ks, wish.temperature)

        blocks = every_block(capture.reader.grid, capture.num_views)
        parts = over_blocks(f"measure top {ks[-1]}", blocks, measure, progress=progress)
        return [wish.measure(np.concatenate(kl)) for kl in zip(*parts, strict=True)]

    return TopK(_smallest(num_classes, wish.max_kl, on_sample, on_all))


def _smallest(
    num_classes: int,
    limit: float,
    on_sample: Callable[[int], float],
    on_all: Callable[[list[int]], list[float]],
) -> int:
    """Return the k with on_all([k]) ≤ limit < on_all([k - 1]): as a sample has it, or by halves where that is wrong."""
    below, above = 0, num_classes + 1  # the largest known to exceed the limit, the smallest known to keep it
    guess = _bisect(on_sample, limit, below, num_classes)
    while above - below > 1:
        pair = [k for k in (guess - 1, guess) if k > below]
        for k, value in zip(pair, on_all(pair), strict=True):
            if value <= limit:
                above = min(above, k)
            elif k == num_classes:
                raise ConfigError(
                    "encoding: the smallest k",
                    expected=f"a KL of at least {two_digits_up(value):g}, which all {num_classes} "
                    "classes have: their logits are stored in float16",
                    found=f"{limit:g}",
                    remedy="allow more, or take an error budget",
                )
            elif k < above:
                below = k
        guess = min((below + above + 1) // 2, num_classes)
    return above


def _bisect(measure: Callable[[int], float], limit: float, below: int, above: int) -> int:
    """Return the smallest k of below + 1 … above that keeps the limit, if `above` does and KL falls with k."""
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if measure(middle) <= limit else (middle, above)
    return above


def _sample(capture: CaptureReader) -> Float32[np.ndarray, "rows classes"]:
    """Read rows from places all over the capture."""
    blocks = _spread_over(every_block(capture.reader.grid, capture.num_views), _SAMPLE_PLACES)
    num_rows = max(1, _SAMPLE_LOGITS // capture.shape[2] // len(blocks))
    return np.concatenate([capture.read(rows[:num_rows], view) for view, rows in blocks])


def _pieces(logits: Float32[np.ndarray, "rows classes"]) -> list[Float32[np.ndarray, "some classes"]]:
    step = max(1, _SORTED // logits.shape[1])
    return [logits[start : start + step] for start in range(0, len(logits), step)]


def _block_kl(
    logits: Float32[np.ndarray, "rows classes"], ks: list[int], temperature: float
) -> list[Float64[np.ndarray, " rows"]]:
    """Return the KL of each row for each k."""
    parts = []
    for piece in _pieces(logits):
        order = largest(piece, max(ks))
        parts.append([_top_k_kl(piece, order, k, temperature) for k in ks])
    return [np.concatenate(kl) for kl in zip(*parts, strict=True)]


def _top_k_kl(
    logits: Float32[np.ndarray, "rows classes"], order: NDArray[np.int64], k: int, temperature: float
) -> Float64[np.ndarray, " rows"]:
    """Return the KL of each row that keeps its first k classes of `order`, rounded as a capture records it."""
    index = order[:, :k]
    kept = np.take_along_axis(logits, index, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # set to infinity below
        stored: dict[str, NDArray[Any]] = {
            "index": index,
            "logits": kept.astype(np.float16),
            "tail": tail_figures(logits, index),
        }
        (kl,) = top_k_divergence(logits, stored, [temperature])
    recorded = float16_up(temperature * np.sqrt(2 * kl)).astype(np.float64)
    recorded[kept[:, -1] < -_FLOAT16_MAX] = np.inf
    return np.asarray(recorded**2 / (2 * temperature**2))
