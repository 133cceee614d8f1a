"""Memory of matrices of classes by classes, and of the projections in their place.

`choose_dimensions` compares `MATRICES` of them, the maximum that a single thread holds, with the given memory: whether
columns are projected follows from the number of classes and that memory, not from the machine. `threads_within` is the number
of threads that may then work at the same time.
"""

import math
from typing import Final

from ...storage.errors import ConfigError

LANES: Final = 16
"""Number of chains of blocks that may run at the same time."""
FAN_IN: Final = 4
"""Number of moments that one task of the tree joins."""
MATRICES: Final = 9
"""Maximum number of float64 matrices that a single thread holds: FAN_IN - 1 for each of the two levels of the tree, the
moments before a block, those after it, and the float32 product beside them."""
THREAD_MATRICES: Final = 3
"""Matrices of each further thread."""
LEAST_DIMENSIONS: Final = 64
"""Minimum dimensions of a projection: below, a squared distance is uncertain by more than a fifth."""
MOST_DIMENSIONS: Final = 4096
SAMPLE: Final = 64
"""Number of classes whose columns are kept whole beside a projection."""
GIB: Final = 1 << 30


def gib(size: int) -> str:
    """Format bytes in GiB, to three digits, rounded up.

    >>> gib(4 * GIB), gib(4 * GIB + 1), gib(6_480_000)
    ('4', '4.01', '0.00604')
    """
    step = 10.0 ** (math.floor(math.log10(size / GIB)) - 2)
    return f"{math.ceil(size / GIB / step - 1e-12) * step:.3g}"


def fits(classes: int, memory: int) -> bool:
    """Return whether a matrix of classes by classes fits, with the others of its computation.

    >>> fits(7000, 4 * GIB), fits(8000, 4 * GIB)
    (True, False)
    """
    return MATRICES * 8 * classes**2 <= memory


def choose_dimensions(classes: int, memory: int) -> int | None:
    """Return the dimensions of a projection; None where the whole matrix fits into `memory` bytes.

    They are a power of two, so that a little more or less memory changes nothing. Raises ConfigError where
    `LEAST_DIMENSIONS` do not fit.

    >>> choose_dimensions(1000, 4 * GIB), choose_dimensions(100_000, 4 * GIB)
    (None, 512)
    """
    if fits(classes, memory):
        return None
    most = memory // (MATRICES * 8 * classes) - SAMPLE
    if most < LEAST_DIMENSIONS:
        least = MATRICES * 8 * classes * min(classes, LEAST_DIMENSIONS + SAMPLE)
        raise ConfigError(
            "memory",
            expected=f"at least {gib(least)} GiB for {classes:,} classes",
            found=f"{memory / GIB:.3g} GiB",
            remedy="raise memory",
        )
    return min(MOST_DIMENSIONS, 1 << (int(most).bit_length() - 1))


def threads_within(memory: int | None, matrix_bytes: int, cores: int) -> int:
    """Return the number of threads whose matrices fit into `memory` bytes (None: any), at least one.

    >>> [threads_within(memory, 8 << 20, cores=16) for memory in (None, 1 << 30, 90 << 20, 0)]
    [16, 16, 1, 1]
    """
    most = min(cores, LANES)
    if memory is None:
        return most
    return max(1, min(most, 1 + (memory // matrix_bytes - MATRICES) // THREAD_MATRICES))
