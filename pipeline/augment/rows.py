"""Augmentation of the rows of a batch, each independent of the others.

1. `Augmentation`: a pure function of one input and its generator.
2. `BlockAugmentation`: augments many rows at once from the first words of their generators.
3. `PairAugmentation`: chooses a partner for each row, and mixes the two.
4. The dtype stays, and all views have one shape, which may be another than the input's. Some rows are augmented a second
   time, alone, which finds impure functions early.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray

from ...storage.errors import ConfigError, FactoryError, LogitStoreError, described
from ...storage.random import raw_words, row_generator
from .transforms import library_of

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(input, generator) -> view: same dtype, one shape for all rows, and a pure function of both arguments."""
SEEDED: Final = "seeded(…) of it, from logitstore.pipeline.augment"
"""Remedy for a transform of another library that is given as an augmentation."""
_FEW: Final = 16
"""Rows of the largest batch of which every row is augmented twice, as in the trial of an augmentation."""


@runtime_checkable
class BlockAugmentation(Protocol):
    """An augmentation that makes the views of many rows at once."""

    @property
    def num_words(self) -> int:
        """Number of words of each row's generator."""

    def of_block(self, inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Make one view of each row.

        inputs: (rows, …), read-only. words: (rows, num_words) uint64, the first raw words of each row's generator.
        Returns (rows, …) of the same dtype; each row a function of its own input and its own words alone.
        """

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the view of one input, drawn from its generator."""


@runtime_checkable
class PairAugmentation(Protocol):
    """An augmentation that makes a view from two rows: the row itself and a partner."""

    @property
    def num_words(self) -> int:
        """Number of words of each row's generator."""

    def partners(
        self, rows: NDArray[np.int64], words: NDArray[np.uint64], num_rows: int
    ) -> NDArray[np.int64]:
        """Return the row of the store that each of `rows` is mixed with: (rows,) int64, 0 … num_rows - 1."""

    def of_pairs(
        self, inputs: NDArray[Any], partners: NDArray[Any], words: NDArray[np.uint64]
    ) -> NDArray[Any]:
        """Return one view of each row from the two inputs, both (rows, …), read-only and not augmented."""


@runtime_checkable
class OtherRows(Protocol):
    """The inputs of any rows of a store, for mixing; see `views.rows_of_store`."""

    def __len__(self) -> int:
        """Return the number of rows of the store."""

    def inputs_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the inputs (rows, …) of ascending, distinct rows, from the transfer set."""


def augment_rows(
    inputs: Shaped[np.ndarray, "rows ..."],
    augmentation: Augmentation | PairAugmentation,
    seed: int,
    view: int,
    rows: Int64[np.ndarray, " rows"],
    first_view: int = 1,
    *,
    others: OtherRows | None = None,
    made_twice: bool = False,
) -> Shaped[np.ndarray, "rows ..."]:
    """Make one view of some rows.

    inputs: (rows, …), any dtype, from the transfer set; never changed. seed: of the augmentation.
    view: number of the view; below `first_view` the inputs are returned unchanged and uncopied.
    rows: (rows,) int64, each input's row *in the store*.
    others: the inputs of the other rows, for an augmentation that mixes rows.
    made_twice: whether to augment the first row again, alone, and compare; every row of 16 or fewer.
    Returns (rows, …) of the same dtype; a view may have another shape than its input. Raises FactoryError if the
    augmentation fails, returns another dtype, views of different shapes, or other bytes the second time; ConfigError if a
    number is out of range or `others` is missing.
    """
    if view < first_view:
        return inputs
    views = _made(inputs, augmentation, seed, view, rows, others)
    if made_twice and len(rows):
        # From the last to the first, so that an augmentation with a memory is in another state.
        for position in reversed(range(len(rows) if len(rows) <= _FEW else 1)):
            one = slice(position, position + 1)
            again = _made(inputs[one], augmentation, seed, view, rows[one], others)
            if again.tobytes() != views[one].tobytes():
                raise FactoryError(
                    f"augmentation of row {int(rows[position])}, view {view}",
                    expected="the same bytes from the same generator",
                    found="other bytes at the second call",
                    remedy="draw random numbers only from the generator that is passed, and keep no state between calls",
                )
    return views


def _made(
    inputs: NDArray[Any],
    augmentation: Augmentation | PairAugmentation,
    seed: int,
    view: int,
    rows: NDArray[np.int64],
    others: OtherRows | None,
) -> NDArray[Any]:
    if not len(rows):
        return inputs.copy()
    if not isinstance(augmentation, PairAugmentation | BlockAugmentation):
        views: NDArray[Any] | None = None
        dtype = getattr(augmentation, "view_dtype", None) or inputs.dtype
        for position, row in enumerate(rows.tolist()):
            # A copy, so that an augmentation in place does not change the data set.
            one, generator = inputs[position].copy(), row_generator(seed, view, row)
            where = f"augmentation of row {row}, view {view}"
            shown = _checked(partial(augmentation, one, generator), dtype, where, library_of(augmentation))
            if views is None:
                views = np.empty((len(rows), *shown.shape), shown.dtype)
            elif shown.shape != views.shape[1:]:
                raise FactoryError(
                    where,
                    expected=f"a view of shape {views.shape[1:]}, like that of row {int(rows[0])}",
                    found=f"one of shape {shown.shape}",
                    remedy="return views of one shape, whatever is drawn",
                )
            views[position] = shown
        assert views is not None  # there are rows
        return views
    words, shown = raw_words(seed, view, rows, augmentation.num_words), _read_only(inputs)
    which = f"row {int(rows[0])}" if len(rows) == 1 else f"{len(rows)} rows from {int(rows[0])}"
    made = _checked(
        lambda: (
            _mixed(shown, augmentation, rows, words, others)
            if isinstance(augmentation, PairAugmentation)
            else augmentation.of_block(shown, words)
        ),
        inputs.dtype,
        where := f"augmentation of {which}, view {view}",
    )
    if made.shape[:1] != (len(rows),):
        raise FactoryError(
            where,
            expected=f"{len(rows)} views, one of each row",
            found=f"an array of shape {made.shape}",
            remedy="return (rows, …)",
        )
    # A result that shares memory with the inputs is read-only.
    is_own = made.flags.writeable and made.flags.c_contiguous
    return made if is_own else made.copy(order="C")


def _mixed(
    inputs: NDArray[Any],
    augmentation: PairAugmentation,
    rows: NDArray[np.int64],
    words: NDArray[np.uint64],
    others: OtherRows | None,
) -> NDArray[Any]:
    if others is None:
        raise ConfigError(
            f"augmentation {type(augmentation).__name__}",
            expected="others=rows_of_store(store)",
            found="others=None",
            remedy="pass replay(…, others=rows_of_store(store)); mixtures have no label to train from",
        )
    numbers = augmentation.partners(rows, words, len(others))
    return augmentation.of_pairs(inputs, _inputs_of(numbers, inputs, rows, others), words)


def _inputs_of(
    numbers: NDArray[np.int64], inputs: NDArray[Any], rows: NDArray[np.int64], others: OtherRows
) -> NDArray[Any]:
    """Return the inputs of rows `numbers`, in this order, from `inputs` or else from `others`."""
    order = np.argsort(rows, kind="stable")
    place = order[np.minimum(np.searchsorted(rows, numbers, sorter=order), len(rows) - 1)]
    partners = inputs[place]
    elsewhere = rows[place] != numbers
    if elsewhere.any():
        wanted, position = np.unique(numbers[elsewhere], return_inverse=True)
        fetched = others.inputs_of(wanted)
        if fetched.shape[1:] != inputs.shape[1:] or fetched.dtype != inputs.dtype:
            raise FactoryError(
                f"row {int(wanted[0])}, a partner of others",
                expected=f"{inputs.dtype} of shape {inputs.shape[1:]}, like the other rows",
                found=f"{fetched.dtype} of shape {fetched.shape[1:]}",
                remedy="pass the transfer set that the store was made from",
            )
        partners[elsewhere] = fetched[position]
    return _read_only(partners)


def of_one(
    augmentation: BlockAugmentation, example: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Return the view of one input, as that of a block of one."""
    words = np.asarray(generator.bit_generator.random_raw(augmentation.num_words), dtype=np.uint64)
    made: np.ndarray = augmentation.of_block(example[None], words[None])[0]
    return made


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    shown = array.view()
    shown.flags.writeable = False
    return shown


def _checked(
    make: Callable[[], Any], dtype: np.dtype[Any], where: str, library: str | None = None
) -> NDArray[Any]:
    """Return a made view. library: that of a transform which is called as an augmentation. Raises FactoryError."""
    try:
        made = np.asarray(make())
    except LogitStoreError:
        raise
    except Exception as error:
        raise FactoryError(
            where,
            expected="an augmented input",
            found=f"an error, {described(error)}",
            remedy="correct the augmentation" if library is None else f"use {SEEDED}",
        ) from error
    if made.dtype != dtype:
        raise FactoryError(
            where,
            expected=f"{dtype}, like the input",
            found=f"{made.dtype} of shape {made.shape}",
            remedy="return the dtype of the input",
        )
    return made
