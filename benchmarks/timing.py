"""Comparison of two functions by time, on a machine that runs other work as well.

Both run in turn, several times. The figure is the median of the ratios of neighbours, so that a slow moment
of the machine slows both.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROUNDS = 7


@dataclass(frozen=True)
class Comparison:
    """Two functions, timed in turn."""

    ours: float
    """Median seconds of the first."""
    theirs: float
    """Median seconds of the second."""
    ratio: float
    """Median over the rounds of first / second."""
    low: float
    """Smallest ratio of a round."""
    high: float
    """Largest ratio of a round."""


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the time of one call, by the wall unless another clock is given."""
    start = clock()
    function()
    return clock() - start


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int = ROUNDS,
    before: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time both in turn, after one call of each that is not counted.

    before: called before each round, untimed. clock: `time.process_time` compares CPU time, beside other work.
    """
    ours(), theirs()
    pairs = []
    for number in range(rounds):
        before()
        # Every other round the second goes first, so that neither always finds the caches of the other.
        if number % 2:
            second = seconds(theirs, clock)
            pairs.append((seconds(ours, clock), second))
        else:
            first = seconds(ours, clock)
            pairs.append((first, seconds(theirs, clock)))
    ratios = [a / b for a, b in pairs]
    return Comparison(
        median(a for a, _ in pairs), median(b for _, b in pairs), median(ratios), min(ratios), max(ratios)
    )


def line(what: str, figure: str, comparison: Comparison) -> str:
    """Format one line of a benchmark's table."""
    spread = f"{comparison.low:.2f} … {comparison.high:.2f}"
    return f"  {what:58s} {figure:>10s}   ({spread}; {comparison.ours:.3f} s and {comparison.theirs:.3f} s)"


def peak_mib() -> int:
    """Return the peak memory of this process so far (VmHWM, Linux), MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) // 1024
