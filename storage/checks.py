"""Checks of arguments and of logits that several modules share, and their messages."""

import logging
import math
from collections.abc import Sequence, Sized
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from .errors import BadLogitsError, ConfigError

log = logging.getLogger(__name__)
_REMEDY: Final = "correct the teacher (or its precision) and run it again"


def _wrong(name: str, value: Any, expected: str, remedy: str) -> ConfigError:
    return ConfigError(name, expected=expected, found=repr(value)[:80], remedy=remedy)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int, below: int = 1 << 63) -> int:
    """Return `value` if it is an integer, of Python or NumPy, in a range. Raises ConfigError.

    >>> whole_number("batch_size", np.int64(64), 1)
    64
    """
    if not _is_integer(value) or not least <= value < below:
        is_large = isinstance(value, int) and value >= below
        limit = f"less than 2**{below.bit_length() - 1}" if is_large else f"an integer of at least {least}"
        raise _wrong(name, value, limit, f"pass another {name}")
    return int(value)


def check_view(view: Any, num_views: int, where: str, remedy: str) -> int:
    """Return the number of a view. where: the part in messages. Raises ConfigError for what is no integer in range."""
    if not _is_integer(view) or not 0 <= view < num_views:
        raise ConfigError(
            f"{where}: view", expected=f"0 to {num_views - 1}", found=repr(view)[:80], remedy=remedy
        )
    return int(view)


def check_flags(**flags: Any) -> None:
    """Refuse flags other than True and False, which Python would take for one of them. Raises ConfigError."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise _wrong(name, value, "True or False", f"pass another {name}")


def check_temperature(temperature: Any) -> float:
    """Return a temperature of a softmax as a float. Raises ConfigError unless it is finite and above 0."""
    is_number = isinstance(temperature, int | float | np.number) and not isinstance(temperature, bool)
    if not is_number or not 0 < temperature < math.inf:
        raise _wrong("temperature", temperature, "a finite number above 0", "correct temperature")
    return float(temperature)


def check_ranks(rank: Any, world_size: Any) -> tuple[int, int]:
    """Return rank and world size of a process; rank 0 of 1 where both are None. Raises ConfigError for one without the other.

    A default for either would give every process the same rows.

    >>> check_ranks(None, None), check_ranks(1, 2)
    ((0, 1), (1, 2))
    """
    if rank is None and world_size is None:
        return 0, 1
    for absent, value, given, other in (
        ("rank", rank, "world_size", world_size),
        ("world_size", world_size, "rank", rank),
    ):
        if value is None:
            raise ConfigError(
                absent,
                expected=f"an integer, as {given}={other!r} is given"[:100],
                found="None",
                remedy=f"pass {absent}=…, too, or leave out {given}",
            )
    world_size = whole_number("world_size", world_size, 1)
    if not _is_integer(rank) or not 0 <= rank < world_size:
        limit = f"0 to {world_size - 1} (world_size {world_size})"
        raise _wrong("rank", rank, limit, "pass the rank of this process")
    return int(rank), world_size


def rows_by_share(batch_size: int, shares: Sequence[float]) -> list[int]:
    """Return the rows of each stratum in a batch: its share, rounded so that they add up.

    Raises ConfigError if a stratum gets none.

    >>> rows_by_share(256, [0.5, 0.5]), rows_by_share(10, [1.0, 1.0, 1.0])
    ([128, 128], [4, 3, 3])
    """
    exact = [batch_size * share / sum(shares) for share in shares]
    rows = [int(part) for part in exact]
    by_remainder = sorted(range(len(rows)), key=lambda number: rows[number] - exact[number])
    for number in by_remainder[: batch_size - sum(rows)]:
        rows[number] += 1
    if 0 in rows:
        raise ConfigError(
            "batch_size",
            expected=f"a row of each of {len(shares)} strata in every batch",
            found=f"{batch_size}, of which stratum {rows.index(0)} has {exact[rows.index(0)]:.3g}",
            remedy="choose a larger batch_size, or another share",
        )
    return rows


def hidden_by_mask(values: Any) -> str | None:
    """Return in words how many values a mask hides, None if none: `np.asarray` returns what lies behind the mask.

    >>> hidden_by_mask(np.ma.masked_equal([1, 2, 3], 2))
    'a masked array that hides 1 of 3 values'
    """
    number = int(np.ma.getmaskarray(values).sum()) if isinstance(values, np.ma.MaskedArray) else 0
    return f"a masked array that hides {number} of {values.size} values" if number else None


def as_logits(
    logits: Any, expected: tuple[int, int], where: str
) -> tuple[Float32[np.ndarray, "rows classes"], Float32[np.ndarray, " rows"] | None]:
    """Return logits as float32; of wider ones, also the constant that was subtracted from each row.

    float32 has no room for the digits of a row beside a large constant, so wider logits are centred before the cast.
    logits: floating, a NumPy array or a torch tensor. expected: (rows, classes).
    Raises BadLogitsError for another shape or dtype, and for values that a mask hides.
    """
    if hasattr(logits, "detach"):  # a torch tensor, by duck typing: storage imports no torch
        tensor = logits.detach()
        # NumPy has no bfloat16.
        logits = (tensor if tensor.element_size() > 4 else tensor.float()).cpu()
    if found := hidden_by_mask(logits):
        raise BadLogitsError(
            where,
            expected="a logit of each class",
            found=found,
            remedy="pass every logit; a capture of fewer classes is begun with classes=[…]",
        )
    values = np.asarray(logits)
    if values.shape != expected or values.dtype.kind != "f":
        raise BadLogitsError(
            where,
            expected=f"floating logits of shape {expected} (rows, classes)",
            found=f"{values.dtype} of shape {values.shape}",
            remedy="use a teacher with the classes of this store, and write whole blocks",
        )
    if values.dtype.itemsize <= 4:
        return values.astype(np.float32, copy=False), None
    peak = values.max(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the encoding
        constant, centred = peak.astype(np.float32), (values - peak[:, None]).astype(np.float32)
        lost = ~np.isfinite(constant)
        centred[lost] = values[lost].astype(np.float32)
    return centred, constant


def warn_of_probabilities(logits: Float32[np.ndarray, "rows classes"], where: str, error: float) -> None:
    """Warn if every row looks like probabilities, from which no softmax at another temperature follows.

    error: the largest distance of a row's sum from 1.
    """
    sums = logits.sum(axis=1)
    if logits.min() < 0 or logits.max() > 1 or abs(sums - 1).max() > error:
        return
    log.warning(
        "%s: all %d rows tried lie in 0…1 (from %.3g to %.3g) and sum to 1 (from %.6f to %.6f): these look like "
        "probabilities; let it return its logits, what goes into the softmax",
        where,
        len(logits),
        logits.min(),
        logits.max(),
        sums.min(),
        sums.max(),
    )


def check_finite(
    logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str
) -> tuple[Float32[np.ndarray, " rows"], Float32[np.ndarray, " rows"]]:
    """Return the largest and the smallest logit of each row. Raises BadLogitsError for a NaN or an infinity."""
    peak, least = logits.max(axis=1), logits.min(axis=1)
    # The maximum of a row with a NaN is NaN.
    if not (np.isfinite(peak).all() and np.isfinite(least).all()):
        bad = ~np.isfinite(logits)
        remedy = _REMEDY
        if logits[tuple(np.argwhere(bad)[0])] == -np.inf:
            remedy += ", or mask a class by a finite logit such as -1e3"
        raise bad_logits(bad, logits, first_row, where, expected="finite logits", remedy=remedy)
    return peak, least


def bad_logits(
    bad: NDArray[np.bool_],
    values: Float32[np.ndarray, "rows columns"],
    first_row: int,
    where: str,
    *,
    expected: str,
    remedy: str = _REMEDY,
    kind: str = "class",
) -> BadLogitsError:
    """Make the error of logits that an encoding cannot store; it names the first one.

    bad: (rows, columns), at least one of them true. values: the numbers to show. kind: what a column is.
    """
    row, column = (int(i) for i in np.argwhere(bad)[0])
    return BadLogitsError(
        f"{where}, row {first_row + row}, {kind} {column}",
        expected=expected,
        found=f"{values[row, column]} ({int(bad.any(axis=1).sum())} of {len(bad)} rows)",
        remedy=f"{remedy}; nothing of this block was kept",
    )


def as_labels(labels: Sequence[int] | NDArray[Any]) -> Int64[np.ndarray, " rows"]:
    """Return labels as int64. Raises ConfigError unless they are one integer a row that int64 holds."""
    if found := hidden_by_mask(labels):
        raise _no_labels(found)
    try:
        values = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"{type(labels).__name__} ({' '.join(str(error).split())[:80]})"
        raise _no_labels(found) from error
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
        raise _no_labels(f"{values.dtype} of shape {values.shape}")
    if values.dtype.kind == "u" and len(values) and int(values.max()) >= 1 << 63:
        raise _no_labels(str(int(values.max())))  # int64 would make -1 of 2⁶⁴ - 1
    return values.astype(np.int64)


def _no_labels(found: str) -> ConfigError:
    return ConfigError(
        "labels",
        expected="one integer a row",
        found=found,
        remedy="pass the number of each row's class, -1 where it is unknown",
    )


def check_labels(labels: Int64[np.ndarray, " rows"], num_classes: int) -> None:
    """Refuse labels that are no class. Raises ConfigError with the first."""
    bad = np.flatnonzero((labels < -1) | (labels >= num_classes))
    if len(bad):
        raise ConfigError(
            f"labels[{int(bad[0])}]",
            expected=f"a class from 0 to {num_classes - 1}, or -1 for unknown",
            found=str(int(labels[bad[0]])),
            remedy="correct the labels (they count from 0) or the number of classes",
        )


def common_length(stated: int | None, **arrays: Sized | None) -> int:
    """Return the length of arrays of one length; 0 without any. stated: compared with them, and taken in their place.

    Raises ConfigError with the name of the first array of another length.
    """
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    rows = stated if stated is not None else next(iter(lengths.values()), 0)
    for name, length in lengths.items():
        if length != rows:
            raise ConfigError(
                name, expected=f"{rows} rows", found=str(length), remedy="pass arrays of one length"
            )
    return rows
