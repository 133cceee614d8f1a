"""Which encoding of a kind fits a capture that is there: how wide are its codes, how many classes must be kept?

1. `scan` goes over every row once: how far does a logit lie below its row's maximum, which rows say nothing?
2. `fit_budget` then knows how far the logits were rounded already, and whether every code fits into one byte. Where two
   are needed, it tries which multiple of the codes the codec packs best, on a sample.
3. `fit_top_k` looks for the smallest k that keeps a KL: by bisection on a sample, and then on all rows.

All of it follows from the capture alone, so that whoever asks twice gets the same answer.
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
from ...storage.encodings.half import rounding_error
from ...storage.encodings.top_k import TopK, largest, tail_figures, top_k_divergence
from ...storage.errors import BadLogitsError, ConfigError
from ...storage.format.codec import BLOSC, compress
from ...storage.format.grid import plan_chunk_rows
from ...storage.parts.fidelity import percentile
from ...storage.parts.reader import CaptureReader
from ...storage.progress import Progress, silent
from ..runtime.dask_tasks import Block, every_block, over_blocks

STATISTICS: Final = ("mean", "max", "p99.9")
"""Of the KL of all rows and views, what may be kept."""


_SAMPLE_CHUNKS: Final = 4
"""Chunks that the codec is tried on."""


_SAMPLE_LOGITS: Final = 1 << 22
"""Logits of the rows on which k is looked for first."""


_SAMPLE_PLACES: Final = 32
"""Places of the store that they come from."""


_SORTED: Final = 1 << 18
"""Logits that are sorted at a time."""


_FLOAT16_MAX: Final = 65504.0


_GUESSES: Final = 3
"""Passes over all rows that go by the sample; after them, by halves alone."""


@dataclass(frozen=True)
class Scan:
    """What one look at every row tells."""

    spread: float
    """The largest distance of a logit below its row's maximum, natural-log units."""
    constant_rows: int
    """Rows of which all logits are equal: what a dead teacher gives."""
    first_constant: tuple[int, int] | None
    """(view, row) of the first of them."""


def scan(capture: CaptureReader, encoding: Encoding | None = None, *, progress: Progress = silent) -> Scan:
    """Look at every row of a sealed capture, on all cores.

    encoding: where it cannot hold what is in a row (only k logits out of float16's range), BadLogitsError says so.
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


# Error budget


def fit_budget(
    max_kl: float,
    min_temperature: float = 1.0,
    *,
    spread: float,
    source_error: float = 0.0,
    samples: Iterable[Float32[np.ndarray, "rows classes"]] = (),
    where: str = "encoding",
) -> ErrorBudget:
    """The error budget of one byte a code where every code fits, else of two, in the multiple that packs best.

    spread: the largest distance of any logit below its row's maximum. source_error: of the logits that will be encoded.
    samples: logits of some inner chunks, each as long as the new capture's (`sample_chunks`), for the codec.
    where: what the logits are, for messages.
    Raises ConfigError where the budget is none, or where two bytes do not reach as far as `spread`: it then names the
    smallest that do.
    """
    request = ErrorBudget(max_kl, min_temperature)  # what is no budget at all says so in its own words
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
    """The code of a logit so far below its row's maximum; None where it does not fit."""
    try:
        coded = encoding.encode(np.array([[0.0, -spread]], np.float32), 0, "")
    except BadLogitsError:
        return None
    return int(coded["logits"][0, 1])


def _too_small(request: ErrorBudget, spread: float, source_error: float, where: str) -> ConfigError:
    """The error of a budget that two bytes cannot keep, with the smallest that they can."""
    temperature = request.min_temperature
    # What a budget can be does not depend on the one that is asked; this one leaves something of ε.
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


def fit_budget_to(
    capture: CaptureReader, max_kl: float, min_temperature: float, found: Scan, *, where: str
) -> ErrorBudget:
    """The error budget of a capture that was scanned: see `fit_budget`."""
    return fit_budget(
        max_kl,
        min_temperature,
        spread=found.spread,
        source_error=rounding_error(capture.encoding.kind, found.spread),
        samples=(capture.read(rows, view) for view, rows in sample_chunks(capture)),
        where=where,
    )


def sample_chunks(capture: CaptureReader, item_bytes: int = 2) -> list[Block]:
    """(view, rows) of some inner chunks of what `capture` will be encoded to, spread over its blocks.

    item_bytes: of a code.
    """
    grid = capture.reader.grid
    blocks = every_block(grid, capture.num_views)
    chunk_rows = plan_chunk_rows(grid.block_rows, item_bytes * capture.shape[2])
    return [(view, rows[:chunk_rows]) for view, rows in _spread_over(blocks, _SAMPLE_CHUNKS)]


def _spread_over(blocks: Sequence[Block], number: int) -> list[Block]:
    """So many of the blocks, at equal distances; all where there are no more.

    >>> _spread_over([(0, range(i, i + 1)) for i in range(10)], 3)
    [(0, range(1, 2)), (0, range(5, 6)), (0, range(8, 9))]
    """
    number = min(number, len(blocks))
    return [blocks[(2 * i + 1) * len(blocks) // (2 * number)] for i in range(number)]


# Top k


@dataclass(frozen=True)
class SmallestTopK:
    """A wish: the smallest k whose KL, as measured over all rows, is kept at one temperature."""

    max_kl: float
    """The most that `statistic` may be, in nats."""
    temperature: float
    """At which it is measured."""
    statistic: str = "max"
    """What is measured of the KL of all rows: one of `STATISTICS`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured. Raises ConfigError."""
        for name, value in (("max_kl", self.max_kl), ("temperature", self.temperature)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"encoding: the smallest k: {name}",
                    expected="a positive number" + (" of nats" if name == "max_kl" else ""),
                    found=repr(value),
                    remedy="choose one",
                )
        if self.statistic not in STATISTICS:
            raise ConfigError(
                "encoding: the smallest k: statistic",
                expected=f"one of {', '.join(STATISTICS)}",
                found=repr(self.statistic)[:40],
                remedy="choose one of these",
            )

    def describe(self) -> dict[str, Any]:
        """The wish as JSON."""
        return {"max_kl": self.max_kl, "temperature": self.temperature, "statistic": self.statistic}

    def measure(self, kl: Float64[np.ndarray, " rows"]) -> float:
        """The statistic of the KL of some rows."""
        if self.statistic == "p99.9":
            return percentile(kl)
        return float(kl.max() if self.statistic == "max" else kl.mean())


def fit_top_k(capture: CaptureReader, wish: SmallestTopK, *, progress: Progress = silent) -> TopK:
    """The k that keeps what is wished for over all rows and views, where k - 1 does not.

    Raises ConfigError where not even all classes do: their logits are stored as float16.
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
    """The k with on_all([k]) ≤ limit < on_all([k - 1]), in few calls of `on_all`.

    A call measures a guess and the k below it. The sample guesses; where it was wrong, it is asked again for what it
    has where all rows have the limit.
    """
    below, above = 0, num_classes + 1  # the largest known to fail, the smallest known to do
    guess = _bisect(on_sample, limit, below, num_classes)
    calls = 0
    while above - below > 1:
        ks = [k for k in (guess - 1, guess) if below < k < above]
        measured = dict(zip(ks, on_all(ks), strict=True))
        calls += 1
        for k, value in measured.items():
            if value <= limit:
                above = min(above, k)
            elif k < above:
                below = max(below, k)
        if below >= num_classes:
            raise ConfigError(
                "encoding: the smallest k",
                expected=f"a KL of at least {two_digits_up(measured[num_classes]):g}, which all {num_classes} "
                "classes have: their logits are stored in float16",
                found=f"{limit:g}",
                remedy="allow more, or take an error budget",
            )
        if calls < _GUESSES:
            ratio = on_sample(guess) / measured[guess] if measured.get(guess) else 1.0
            guess = _bisect(on_sample, limit * ratio, below, above - 1)
        else:
            guess = (below + above + 1) // 2
        guess = min(max(guess, below + 1), above - 1, num_classes)
    return above


def _bisect(measure: Callable[[int], float], limit: float, below: int, above: int) -> int:
    """The smallest k of below + 1 … above that keeps the limit, taken that `above` does and that more is better."""
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if measure(middle) <= limit else (middle, above)
    return above


def _sample(capture: CaptureReader) -> Float32[np.ndarray, "rows classes"]:
    """Rows from places all over the capture."""
    blocks = _spread_over(every_block(capture.reader.grid, capture.num_views), _SAMPLE_PLACES)
    num_rows = max(1, _SAMPLE_LOGITS // capture.shape[2] // len(blocks))
    return np.concatenate([capture.read(rows[:num_rows], view) for view, rows in blocks])


def _pieces(logits: Float32[np.ndarray, "rows classes"]) -> list[Float32[np.ndarray, "some classes"]]:
    step = max(1, _SORTED // logits.shape[1])
    return [logits[start : start + step] for start in range(0, len(logits), step)]


def _block_kl(
    logits: Float32[np.ndarray, "rows classes"], ks: list[int], temperature: float
) -> list[Float64[np.ndarray, " rows"]]:
    """KL of each row for each k."""
    parts = []
    for piece in _pieces(logits):
        order = largest(piece, max(ks))
        parts.append([_top_k_kl(piece, order, k, temperature) for k in ks])
    return [np.concatenate(kl) for kl in zip(*parts, strict=True)]


def _top_k_kl(
    logits: Float32[np.ndarray, "rows classes"], order: NDArray[np.int64], k: int, temperature: float
) -> Float64[np.ndarray, " rows"]:
    """KL of each row that keeps its first k classes of `order`, as the records of a capture will state it."""
    index = order[:, :k]
    kept = np.take_along_axis(logits, index, axis=1)
    with np.errstate(over="ignore"):  # out of range: no k that keeps such a logit is any good
        stored: dict[str, NDArray[Any]] = {
            "index": index,
            "logits": kept.astype(np.float16),
            "tail": tail_figures(logits, index),
        }
        (kl,) = top_k_divergence(logits, stored, [temperature])
    recorded = float16_up(temperature * np.sqrt(2 * kl)).astype(np.float64)
    recorded[kept[:, -1] < -_FLOAT16_MAX] = np.inf
    return np.asarray(recorded**2 / (2 * temperature**2))
