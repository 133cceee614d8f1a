"""Do matrices of classes by classes fit into the memory that is given, and if not, what does?

`choose_dimensions` compares `MATRICES` of them, which is what a single thread holds at most, with the memory: whether columns
are projected follows from the number of classes and the memory that is stated, not from the machine.
`threads_within` says how many threads may then work at the same time.
"""

import math
from typing import Final

from ...storage.errors import ConfigError

LANES: Final = 16
"""Chains of blocks that may be worked on at the same time."""


FAN_IN: Final = 4
"""Second moments that one task of the tree over them joins."""


MATRICES: Final = 9
"""Float64 matrices that a single thread holds at most: FAN_IN - 1 for each of the two levels of the tree, what a
block is added to, the sum, and the float32 product beside it."""


THREAD_MATRICES: Final = 3
"""Those of one more thread."""


LEAST_DIMENSIONS: Final = 64
"""Dimensions below which a projection would say little: a squared distance then is uncertain by a fifth."""


MOST_DIMENSIONS: Final = 4096


SAMPLE: Final = 64
"""Classes whose columns are kept whole beside a projection."""


GIB: Final = 1 << 30


def gib(size: int) -> str:
    """Bytes in GiB, to three digits, rounded up: as much is enough.

    >>> gib(4 * GIB), gib(4 * GIB + 1), gib(6_480_000)
    ('4', '4.01', '0.00604')
    """
    step = 10.0 ** (math.floor(math.log10(size / GIB)) - 2)
    return f"{math.ceil(size / GIB / step - 1e-12) * step:.3g}"


def fits(classes: int, memory: int) -> bool:
    """Whether a matrix of all classes by all classes fits, with what its computation holds beside it.

    >>> fits(7000, 4 * GIB), fits(8000, 4 * GIB)
    (True, False)
    """
    return MATRICES * 8 * classes**2 <= memory


def choose_dimensions(classes: int, memory: int) -> int | None:
    """Dimensions that columns are projected into; None where the whole matrix fits into `memory` bytes.

    A power of two, so that a little more or less memory changes nothing. Raises ConfigError where not even
    `LEAST_DIMENSIONS` fit.

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
            found=f"{memory / GIB:.3g}",
            remedy="raise it",
        )
    return min(MOST_DIMENSIONS, 1 << (int(most).bit_length() - 1))


def threads_within(memory: int | None, matrix_bytes: int, cores: int) -> int:
    """Threads whose matrices fit into `memory` bytes, at least one; None for any.

    >>> [threads_within(memory, 8 << 20, cores=16) for memory in (None, 1 << 30, 90 << 20, 0)]
    [16, 16, 1, 1]
    """
    most = min(cores, LANES)
    if memory is None:
        return most
    return max(1, min(most, 1 + (memory // matrix_bytes - MATRICES) // THREAD_MATRICES))
