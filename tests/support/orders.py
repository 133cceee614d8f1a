"""Orders of an epoch, and a checker that counts each (view, row)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from logitstore.storage.format.grid import Grid
from logitstore.storage.stream.order import Order

Item = tuple[int, int]
"""(view, row)"""


def flaws(found: Iterable[Item], views: Sequence[int], rows: Iterable[int]) -> dict[Item, int]:
    """Return the surplus of each (view, row), negative if it is missing."""
    wanted = Counter((view, int(row)) for row in rows for view in views)
    have = Counter(found)
    return {item: have[item] - wanted[item] for item in have | wanted if have[item] != wanted[item]}


def order_of(case: dict[str, Any], /, **other: Any) -> Order:
    """Return the order of a case, which names `num_rows`, `block_rows` and arguments of `Order`."""
    arguments = {"shuffle": True, "seed": 0, "epoch": 0} | case | other
    grid = Grid(arguments.pop("num_rows"), arguments.pop("block_rows"))
    if arguments["rows"] is not None:
        arguments["rows"] = np.array(arguments["rows"], dtype=np.int64)
    return Order(grid, **arguments)
