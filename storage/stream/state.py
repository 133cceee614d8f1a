"""The state of a stream between two batches, checked where it is loaded."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from ..errors import ConfigError
from .intervals import Interval

Remaining = tuple[tuple[tuple[Interval, ...], int], ...]
"""Of each order (one, or one a stratum) the rows that remain, and the positions that belong to the epoch so far."""


def remaining_of(
    state: Any, order_state: Mapping[str, Any], strata: int, epoch_rows: Callable[[int], int]
) -> tuple[int, Remaining]:
    """Return the epoch of a state and the intervals that remain of it. Raises ConfigError for a state of another order.

    order_state: all that determines the order of this stream. strata: 0 for one order. epoch_rows: rows of an epoch of one
    order.
    """
    if not isinstance(state, Mapping):
        raise _bad_state("state", "a result of state_dict()", repr(state)[:80])
    for key, value in order_state.items():
        if key not in state or state[key] != value:
            given = repr(state[key])[:80] if key in state else "nothing"
            raise _bad_state(key, repr(value)[:80], given)
    epoch = state.get("epoch")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 1 << 63:
        raise _bad_state("epoch", "an integer from 0 to 2**63 - 1", repr(epoch)[:80])
    try:
        left = [[Interval(*map(int, interval)) for interval in intervals] for intervals in state["left"]]
        reached = [int(position) for position in state["reached"]]
    except (KeyError, TypeError, ValueError):
        raise _bad_state("left", "lists of [start, stop, first draw]", repr(state.get("left"))[:80]) from None
    count = strata or 1
    if not len(left) == len(reached) == count:
        raise _bad_state("left", f"intervals of {count} orders", f"{len(left)}")
    for intervals, end in zip(left, reached, strict=True):
        borders = [0, *(border for i in intervals for border in (i.start, i.stop)), end]
        ascending = all(a <= b for a, b in pairwise(borders))
        if not ascending or any(i.start == i.stop or i.first_draw < 0 for i in intervals):
            raise _bad_state("left", f"ascending intervals up to {end}", repr(borders)[:80])
    if not strata:
        rows = epoch_rows(epoch)
        if reached[0] != rows:
            raise _bad_state("reached", str(rows), str(reached[0]))
    return epoch, tuple((tuple(intervals), end) for intervals, end in zip(left, reached, strict=True))


def _bad_state(key: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"state: {key}",
        expected=expected,
        found=found,
        remedy="make the stream with the store and the arguments of the state",
    )
