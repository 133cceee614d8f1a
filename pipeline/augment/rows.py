"""Augmentation of the rows of a batch, each as if it were made alone.

1. An augmentation is a pure function of one input and its generator: `Augmentation`.
2. Those that can do many rows at once get the first words of all their generators: `BlockAugmentation`.
3. Those that mix a row with another one say which, and get it: `PairAugmentation`.
4. Shape and dtype stay. Some rows are made again, alone: what is no pure function is found before a student is.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray

from ...storage.errors import ConfigError, FactoryError, LogitStoreError
from ...storage.random import raw_words, row_generator

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(input, generator) -> input: same shape, same dtype, and a pure function of both arguments."""
_FEW: Final = 16
"""Rows of a batch so small that each of them is made twice: those that an augmentation is tried on."""


@runtime_checkable
class BlockAugmentation(Protocol):
    """An augmentation that makes the views of many rows at once."""

    @property
    def num_words(self) -> int:
        """Words of each row's generator that it needs."""

    def of_block(self, inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Make one view of each row.

        inputs: (rows, …), read-only. words: (rows, num_words) uint64, the first raw words of each row's generator.
        Returns the same shape and dtype; each row a function of its own input and its own words alone.
        """

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the view of one input, drawn from its generator."""


@runtime_checkable
class PairAugmentation(Protocol):
    """An augmentation that makes a view of a row from two rows: its own, and a partner."""

    @property
    def num_words(self) -> int:
        """Words of each row's generator that it needs."""

    def partners(
        self, rows: NDArray[np.int64], words: NDArray[np.uint64], num_rows: int
    ) -> NDArray[np.int64]:
        """Return the row of the store that each of `rows` is mixed with: (rows,) int64, 0 … num_rows - 1."""

    def of_pairs(
        self, inputs: NDArray[Any], partners: NDArray[Any], words: NDArray[np.uint64]
    ) -> NDArray[Any]:
        """Return one view of each row from its input and its partner's: both (rows, …), read-only, not augmented."""


@runtime_checkable
class OtherRows(Protocol):
    """The inputs of any rows of a store, for what mixes them; see `views.rows_of_store`."""

    def __len__(self) -> int:
        """Return the number of rows of the store."""

    def inputs_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the inputs (rows, …) of ascending, distinct rows, as the transfer set gives them."""


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

    inputs: (rows, …), any dtype, as the transfer set gives them; never changed.
    seed: of the augmentation.
    view: which view; below `first_view` the inputs are returned as they are, uncopied.
    rows: (rows,) int64, each input's row *in the store*.
    others: the inputs of the other rows, for an augmentation that mixes them.
    made_twice: whether to make the first row again, alone, or all of 16 and fewer, and compare.
    Returns (rows, …) of the same dtype. Raises FactoryError if the augmentation fails, gives another
    shape or dtype, or another input the second time, ConfigError if a number is out of range or others are needed
    and not there.
    """
    if view < first_view:
        return inputs
    views = _made(inputs, augmentation, seed, view, rows, others)
    if made_twice and len(rows):
        # From the last to the first: what has a memory is then as far as it can be from where it was.
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
    if isinstance(augmentation, PairAugmentation):
        words = raw_words(seed, view, rows, augmentation.num_words)
        return _guarded(lambda: _mixed(inputs, augmentation, rows, words, others), inputs, view, rows)
    if isinstance(augmentation, BlockAugmentation):
        words = raw_words(seed, view, rows, augmentation.num_words)
        return _guarded(lambda: augmentation.of_block(_read_only(inputs), words), inputs, view, rows)
    views = np.empty_like(inputs)
    for position, row in enumerate(rows.tolist()):
        generator = row_generator(seed, view, row)
        # A copy, so that an augmentation that works in place spoils nobody's data set.
        views[position] = _augmented(inputs[position].copy(), augmentation, generator, view, row)
    return views


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
            expected="others: the rows to mix with",
            found="others=None",
            remedy="pass replay(…, others=rows_of_store(store)); mixtures have no label to train from",
        )
    numbers = augmentation.partners(rows, words, len(others))
    return augmentation.of_pairs(_read_only(inputs), _inputs_of(numbers, inputs, rows, others), words)


def _inputs_of(
    numbers: NDArray[np.int64], inputs: NDArray[Any], rows: NDArray[np.int64], others: OtherRows
) -> NDArray[Any]:
    """Return the inputs of rows `numbers` in this order, from those at hand and otherwise from `others`."""
    order = np.argsort(rows, kind="stable")
    place = order[np.minimum(np.searchsorted(rows, numbers, sorter=order), len(rows) - 1)]
    found = inputs[place]
    elsewhere = rows[place] != numbers
    if elsewhere.any():
        wanted, where = np.unique(numbers[elsewhere], return_inverse=True)
        fetched = others.inputs_of(wanted)
        if fetched.shape[1:] != inputs.shape[1:] or fetched.dtype != inputs.dtype:
            raise FactoryError(
                f"row {int(wanted[0])}, to be mixed with others",
                expected=f"{inputs.dtype} of shape {inputs.shape[1:]}, like the others",
                found=f"{fetched.dtype} of shape {fetched.shape[1:]}",
                remedy="pass the transfer set that the store was made from",
            )
        found[elsewhere] = fetched[where]
    return _read_only(found)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    shown = array.view()
    shown.flags.writeable = False
    return shown


def _guarded(
    make: Callable[[], NDArray[Any]], inputs: NDArray[Any], view: int, rows: NDArray[np.int64]
) -> NDArray[Any]:
    """Return a checked copy of the array that `make` returns for a whole block."""
    if not len(rows):
        return inputs.copy()
    which = f"row {int(rows[0])}" if len(rows) == 1 else f"{len(rows)} rows from {int(rows[0])}"
    made = _checked(make, inputs, f"augmentation of {which}, view {view}")
    # What shares memory with the inputs is read-only.
    owned = made.flags.writeable and made.flags.c_contiguous
    return made if owned else made.copy(order="C")


def _augmented(
    example: np.ndarray,
    augmentation: Augmentation,
    generator: np.random.Generator,
    view: int,
    row: int,
) -> np.ndarray:
    where = f"augmentation of row {row}, view {view}"
    return _checked(lambda: np.asarray(augmentation(example, generator)), example, where)


def _checked(make: Callable[[], NDArray[Any]], given: NDArray[Any], where: str) -> NDArray[Any]:
    shape, dtype = given.shape, given.dtype
    try:
        made = make()
    except LogitStoreError:
        raise
    except Exception as error:
        raise FactoryError(
            where,
            expected="an augmented input",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy="correct the augmentation",
        ) from error
    if made.shape != shape or made.dtype != dtype:
        raise FactoryError(
            where,
            expected=f"{dtype} of shape {shape}, like the input",
            found=f"{made.dtype} of shape {made.shape}",
            remedy="return the shape and the dtype that came in",
        )
    return made
