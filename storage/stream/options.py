"""The options of a stream, checked once."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_flags, check_ranks, check_temperature, rows_by_share, whole_number
from ..digest import digest_rows
from ..errors import ConfigError
from ..parts.part_reader import check_rows


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamOptions:
    """The options of `Store.stream`, which describes them. Raises ConfigError for one that is out of range."""

    num_rows: int
    """Rows of the store."""
    num_views: int
    """Views that all teachers of the stream have."""
    batch_size: int = 256
    views: "str | int" = "cycle"
    rows: Any = None
    """int64 (row,), ascending; None for all."""
    strata: Any = None
    """Rows of each stratum, int64 (row,), ascending; empty without strata."""
    shares: Any = None
    """Share of each stratum; empty without strata."""
    shuffle: bool = True
    seed: int = 0
    rank: Any = None
    """Rank of this process, an integer once checked."""
    world_size: Any = None
    """Processes that divide an epoch, an integer once checked; None, as of `rank`, if this one reads all of it."""
    reads_every_row: bool = field(init=False)
    """Whether neither ranks nor rows were given, so that each of several processes would read every row."""
    drop_last: bool = False
    window: int | None = None
    decode: bool = True
    temperature: float | None = None
    inputs: bool = True
    transfer_set: Any = None
    augment: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_flags(shuffle=self.shuffle, drop_last=self.drop_last, decode=self.decode, inputs=self.inputs)
        batch_size = whole_number("batch_size", self.batch_size, 1)
        reads_every_row = self.rank is None and self.world_size is None
        rank, world_size = check_ranks(self.rank, self.world_size)
        strata, shares = self._checked_strata(batch_size)
        _check_augment(self.augment)
        vars(self).update(
            batch_size=batch_size,
            world_size=world_size,
            strata=strata,
            shares=shares,
            rank=rank,
            reads_every_row=reads_every_row and self.rows is None and self.strata is None,
            seed=whole_number("seed", self.seed, 0, below=1 << 64),
            window=None if self.window is None else whole_number("window", self.window, 1),
            temperature=None if self.temperature is None else check_temperature(self.temperature),
            rows=None if self.rows is None else _selection(self.rows, self.num_rows, "rows"),
            views=self._checked_views(),
        )

    def _checked_views(self) -> "str | int":
        views = self.views
        if isinstance(views, str) and views in ("all", "cycle"):
            return views
        is_number = isinstance(views, int | np.integer) and not isinstance(views, bool)
        if is_number and 0 <= int(views) < self.num_views:
            return int(views)
        raise ConfigError(
            "views",
            expected=f'"all", "cycle" or a view from 0 to {self.num_views - 1}',
            found=repr(views)[:80],
            remedy="choose a view that every teacher of this stream has",
        )

    def _checked_strata(self, batch_size: int) -> tuple[list[NDArray[np.int64]], list[float]]:
        strata, shares = self.strata, self.shares
        if strata is None:
            if shares is not None:
                raise ConfigError("shares", expected="strata", found="None", remedy="pass strata=[…], too")
            return [], []
        if self.rows is not None:
            raise ConfigError("rows", expected="rows or strata", found="both", remedy="leave out rows=…")
        if isinstance(strata, str | Mapping) or not isinstance(strata, Sequence) or len(strata) < 2:
            raise ConfigError(
                "strata",
                expected="a list of two or more selections of rows",
                found=repr(strata)[:80],
                remedy="use rows=…",
            )
        selections = [_selection(rows, self.num_rows, f"strata[{n}]") for n, rows in enumerate(strata)]
        for number, rows in enumerate(selections):
            if not len(rows):
                raise ConfigError(
                    f"strata[{number}]", expected="1 row or more", found="0", remedy="leave out the stratum"
                )
        weights = [1.0] * len(selections) if shares is None else _weights(shares, len(selections))
        rows_by_share(batch_size, weights)
        return selections, weights

    def epoch_views(self, epoch: int) -> tuple[int, ...]:
        """Return the views that an epoch passes over."""
        if self.views == "all":
            return tuple(range(self.num_views))
        return (epoch % self.num_views,) if self.views == "cycle" else (int(self.views),)

    @property
    def streamed_views(self) -> tuple[int, ...]:
        """Views of any epoch."""
        return self.epoch_views(0) if isinstance(self.views, int) else tuple(range(self.num_views))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The options that determine the order of every epoch; selections of rows by digest."""
        rows = None if self.rows is None else _digest(self.rows)
        plain = {name: getattr(self, name) for name in ("seed", "shuffle", "views", "num_views", "window")}
        return {**plain, "rows": rows, "strata": list(map(_digest, self.strata)), "shares": list(self.shares)}


def _check_augment(augment: Any) -> None:
    """Refuse what is no function of inputs, view and rows, such as an augmentation of single inputs. Raises ConfigError."""
    if augment is None:
        return
    if not callable(augment):
        raise ConfigError(
            "augment",
            expected="a function",
            found=repr(augment)[:80],
            remedy="pass replay(…), or None",
        )
    try:
        signature = inspect.signature(augment)
    except (TypeError, ValueError):  # of an extension module
        return
    try:
        signature.bind(None, 0, None)
    except TypeError as error:
        name = getattr(augment, "__name__", type(augment).__name__)
        raise ConfigError(
            "augment",
            expected="a function (inputs, view, rows) of many rows",
            found=f"{name}({', '.join(signature.parameters)})"[:120],
            remedy="pass replay(…) of an augmentation, from logitstore.pipeline, with the seed and first_view of the capture",
        ) from error


def _selection(rows: Any, num_rows: int, name: str) -> NDArray[np.int64]:
    return np.asarray(check_rows(rows, num_rows, name), dtype=np.int64)


def _digest(rows: NDArray[np.int64]) -> str:
    return f"{int(digest_rows([rows])[0]):016x}"


def _weights(shares: Any, count: int) -> list[float]:
    """Return shares as numbers. Raises ConfigError."""
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
