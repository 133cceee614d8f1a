"""Which arguments of a stream are refused, and in what words?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import rows_by_share
from ..errors import ConfigError
from ..parts.part_reader import check_rows


def check_view(views: Any, num_views: int) -> "str | int":
    """ "all", "cycle" or one view. Raises ConfigError."""
    if isinstance(views, str) and views in ("all", "cycle"):
        return views
    is_number = isinstance(views, int | np.integer) and not isinstance(views, bool)
    if is_number and 0 <= views < num_views:
        return int(views)
    raise ConfigError(
        "views",
        expected=f'"all", "cycle" or a view from 0 to {num_views - 1}',
        found=repr(views)[:80],
        remedy="choose one that every teacher of this stream was captured with",
    )


def selected_rows(rows: Any, num_rows: int, name: str = "rows") -> NDArray[np.int64]:
    """The rows of a selection. Raises ConfigError about `name`."""
    return np.asarray(check_rows(rows, num_rows, name), dtype=np.int64)


def check_strata(
    strata: Any, shares: Any, rows: Any, num_rows: int, batch_size: int
) -> tuple[list[NDArray[np.int64]], list[float]]:
    """The rows of each stratum and its share; none where there are no strata. Raises ConfigError."""
    if strata is None:
        if shares is not None:
            raise ConfigError(
                "shares", expected="strata to share out", found="none", remedy="pass strata=[…], too"
            )
        return [], []
    if rows is not None:
        raise ConfigError("rows", expected="either rows or strata", found="both", remedy="leave the rows out")
    if isinstance(strata, str | Mapping) or not isinstance(strata, Sequence) or len(strata) < 2:
        raise ConfigError(
            "strata",
            expected="a list of two or more selections of rows",
            found=repr(strata)[:80],
            remedy="use rows=…",
        )
    checked = [selected_rows(each, num_rows, f"strata[{number}]") for number, each in enumerate(strata)]
    for number, each in enumerate(checked):
        if not len(each):
            raise ConfigError(
                f"strata[{number}]", expected="rows", found="none", remedy="leave the stratum out"
            )
    weights = [1.0] * len(checked) if shares is None else _weights(shares, len(checked))
    rows_by_share(batch_size, weights)
    return checked, weights


def _weights(shares: Any, count: int) -> list[float]:
    """Shares as numbers. Raises ConfigError."""
    listed = [] if isinstance(shares, str) or not isinstance(shares, Sequence | np.ndarray) else list(shares)
    numbers = [
        float(share)
        for share in listed
        if isinstance(share, int | float | np.number) and not isinstance(share, bool)
    ]
    sound = len(numbers) == len(listed) == count and all(number > 0 for number in numbers)
    if not sound or not math.isfinite(sum(numbers)):
        raise ConfigError(
            "shares",
            expected=f"{count} positive numbers, one a stratum",
            found=repr(shares)[:80],
            remedy="pass one for each stratum, such as [0.5, 0.5]",
        )
    return numbers
