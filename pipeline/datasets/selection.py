"""Subsets of a data set: without some classes, a fraction, a slice.

Every set takes the same four arguments, applied in this order:

1. `omit_classes` removes the examples of some classes, by name or by number; the classes keep their numbers.
2. `fraction` keeps a random share of the remaining examples, the same one for the same `seed`.
3. `subset` is a Python slice of the remaining examples: "0:1500", "::2", "-500:".

The examples stay in the order of the set.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ...storage.errors import ConfigError, some_of
from ...storage.random import philox_permutation

_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(\d+)?)?", re.ASCII)


def parse_slice(text: str) -> slice:
    """Turn "start:stop:step" into a slice; any of the three may be left out, the step is at least 1.

    >>> parse_slice("0:1500"), parse_slice("::2")
    (slice(0, 1500, None), slice(None, None, 2))

    Raises ConfigError for any other text.
    """
    match = _SLICE.fullmatch(text.replace(" ", ""))
    if match is None or (match[3] is not None and int(match[3]) == 0):
        raise ConfigError(
            "subset",
            expected='a slice "start:stop" or "start:stop:step" with a step of 1 or more',
            found=repr(text),
            remedy='write for example "0:1500" or "::2"',
        )
    start, stop, step = (None if part is None else int(part) for part in match.groups())
    return slice(start, stop, step)


def random_order(num_rows: int, seed: int) -> Int64[np.ndarray, "rows"]:
    """Return the permutation of 0 … num_rows - 1 of a seed, 0 ≤ seed < 2⁶⁴; else raises ConfigError."""
    if not 0 <= seed < 2**64:
        raise ConfigError(
            "seed", expected="an integer from 0 to 2**64 - 1", found=str(seed), remedy="correct seed"
        )
    return philox_permutation(num_rows, seed, stream=0, counter=0)


def select(
    num_rows: int,
    labels: Int64[np.ndarray, "rows"] | None,
    class_names: Sequence[str],
    *,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
    subset: str | None = None,
) -> Int64[np.ndarray, "kept"]:
    """Return the ascending indices of the selected examples.

    num_rows: examples in the whole set. labels: (rows,) int64 or None. class_names: one a class.
    omit_classes: numbers or names. fraction: share to keep, 0 < fraction ≤ 1, drawn with `seed`.
    subset: a slice, see `parse_slice`. Raises ConfigError if an argument is wrong or no example remains.

    >>> select(6, None, (), subset="1::2").tolist()
    [1, 3, 5]
    """
    kept = np.arange(num_rows, dtype=np.int64)
    if omit_classes:
        if labels is None:
            raise ConfigError(
                "omit_classes",
                expected="a transfer set with labels",
                found="a transfer set without labels",
                remedy="remove omit_classes, or add labels",
            )
        kept = kept[~np.isin(labels, omitted_numbers(omit_classes, class_names))]
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(
            "fraction",
            expected="a number above 0, at most 1",
            found=str(fraction),
            remedy="correct fraction",
        )
    if fraction < 1.0:
        kept = np.sort(kept[random_order(len(kept), seed)[: round(fraction * len(kept))]])
    if subset is not None:
        kept = kept[parse_slice(subset)]
    if not len(kept):
        raise ConfigError(
            "transfer set",
            expected=f"1 to {num_rows} selected examples",
            found=f"0 (omit_classes={list(omit_classes)}, fraction={fraction}, subset={subset!r})",
            remedy="widen omit_classes, fraction or subset",
        )
    return kept


def omitted_numbers(omit_classes: Sequence[int | str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of omitted classes. Raises ConfigError for a class that is none."""
    return tuple(_class_number(entry, class_names) for entry in omit_classes)


def _class_number(entry: int | str, class_names: Sequence[str]) -> int:
    if isinstance(entry, str) and entry in class_names:
        return list(class_names).index(entry)
    if isinstance(entry, int) and 0 <= entry < len(class_names):
        return entry
    raise ConfigError(
        "omit_classes",
        expected=f"names or numbers of the {len(class_names)} classes ({some_of(class_names, 12)})",
        found=repr(entry),
        remedy="correct omit_classes",
    )
