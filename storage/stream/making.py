"""Inputs that are made: fetched from a transfer set, augmented, and checked against the digests of the store.

Wanted        some rows of one view, and what their inputs are checked against
InputMaker    makes them, in this process or in another one
Makers        processes that each have an `InputMaker`, and are handed the rows of the next batches
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray

from ..digest import digest_rows
from ..errors import ConfigError, RowMismatch
from .items import UNKNOWN, Item, class_number, fetch_items, read_inputs, split_item
from .window import Arrays

Augment = Callable[[NDArray[Any], int, NDArray[np.int64]], NDArray[Any]]
"""(inputs (rows, …), view, rows) -> the inputs of that view, as the capture showed them to its teacher."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """Rows of one view whose inputs are to be made. All arrays are by row."""

    view: int
    """Their view."""
    rows: Int64[np.ndarray, " rows"]
    """Rows of the store."""
    source: Int64[np.ndarray, " rows"]
    """Index of each in the transfer set."""
    labels: Int64[np.ndarray, " rows"] | None
    """Labels of the store, which those of the transfer set are compared with; None for stored inputs."""
    digests: UInt64[np.ndarray, " rows"] | None
    """Digests of the inputs of the transfer set; None for stored inputs."""
    seen: UInt64[np.ndarray, " rows"] | None
    """Digests of the view, as the teacher saw it; None for a view that is not augmented."""
    stored: NDArray[Any] | None = None
    """Inputs of the store, (rows, …); None where they come from the transfer set."""

    def part(self, start: int, stop: int) -> "Wanted":
        """Return the rows number start … stop - 1."""

        def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[start:stop]

        rows, source = self.rows[start:stop], self.source[start:stop]
        given = cut(self.labels), cut(self.digests), cut(self.seen), cut(self.stored)
        return Wanted(self.view, rows, source, *given)


@runtime_checkable
class OfStore(Protocol):
    """A transfer set that a store keeps itself, and that is decoded here."""

    digest_remedy: str
    """Remedy for an input other than the teacher's."""


class InputMaker:
    """A transfer set and an augmentation, which make inputs; one thread at a time."""

    def __init__(self, transfer_set: Any, augment: Augment | None) -> None:
        """Make nothing yet. transfer_set: None for stored inputs."""
        self.transfer_set, self.augment = transfer_set, augment
        self._one_at_a_time = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"transfer_set": self.transfer_set, "augment": self.augment}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _one_at_a_time=threading.Lock())

    def make(self, wanted: Wanted) -> NDArray[Any]:
        """Return inputs as the teachers saw them. Raises RowMismatch for others, and the errors of set and augmentation."""
        inputs = wanted.stored
        if inputs is None:
            inputs = self.fetch(wanted)
            assert wanted.digests is not None
            if isinstance(self.transfer_set, OfStore):
                _check(
                    inputs, wanted.digests, wanted, "the file in the store", self.transfer_set.digest_remedy
                )
            else:
                _check(inputs, wanted.digests, wanted, "the transfer set")
        if wanted.seen is not None:
            assert self.augment is not None
            with self._one_at_a_time:
                inputs = self.augment(inputs, wanted.view, wanted.rows)
            _check(inputs, wanted.seen, wanted, f"view {wanted.view}, as `augment` makes it")
        return inputs

    def fetch(self, wanted: Wanted) -> NDArray[Any]:
        """Return inputs of the transfer set, with the labels of the store. Raises RowMismatch for another label."""
        indices = wanted.source.tolist()
        with self._one_at_a_time:  # A data set need not be safe for threads.
            items = fetch_items(self.transfer_set, indices)
        inputs = read_inputs(items, indices, "transfer set")
        assert wanted.labels is not None
        check_labels(wanted.rows, indices, wanted.labels, items)
        return inputs


def check_labels(
    rows: Int64[np.ndarray, " rows"],
    indices: Sequence[int],
    stored: Int64[np.ndarray, " rows"],
    items: Sequence[Any],
) -> None:
    """Compare the labels of fetched items with those of the store. Raises RowMismatch, BadDataError.

    indices: of the items in the transfer set.
    """
    for row, index, label, item in zip(rows.tolist(), indices, stored.tolist(), items, strict=True):
        if label == UNKNOWN:
            continue
        place = f"transfer set, example {index}"
        part = item if isinstance(item, Item) else split_item(item, place)
        if part.is_labelled:
            found = class_number(part.label, place)
            if found not in (label, UNKNOWN):
                raise other_label(row, index, label, found)


def other_label(row: int, index: int, stored: int, found: int, more: str = "") -> RowMismatch:
    """Return the error of an example with another label than its row. more: words behind the label."""
    return RowMismatch(
        f"row {row} (index {index} of the transfer set): label",
        expected=str(stored),
        found=f"{found}{more}",
        remedy="give the transfer set the labels of the store, or make a new store",
    )


def check_form(inputs: NDArray[Any], wanted: Wanted, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Refuse inputs of another dtype or shape than those of the first rows. Raises ConfigError. shape: of one."""
    if (inputs.dtype, inputs.shape) != (dtype, (len(wanted.rows), *shape)):
        raise ConfigError(
            f"view {wanted.view}, rows from {int(wanted.rows[0])}",
            expected=f"inputs of {dtype} {shape}, as in the first rows",
            found=f"{inputs.dtype} {inputs.shape[1:]}",
            remedy="stream one view at a time, or capture every view augmented (first_view = 0)",
        )


def _check(
    inputs: NDArray[Any],
    expected: NDArray[Any],
    wanted: Wanted,
    origin: str,
    remedy: str = "use the transfer set and the augmentation that the store was made from",
) -> None:
    digests = digest_rows(inputs)
    bad = np.flatnonzero(digests != expected)
    if len(bad):
        first = int(bad[0])
        raise RowMismatch(
            f"row {int(wanted.rows[first])} (index {int(wanted.source[first])} of the transfer set)",
            expected=f"the input that the teacher saw, digest {int(expected[first]):016x}",
            found=f"{int(digests[first]):016x} from {origin}",
            remedy=remedy,
        )


@runtime_checkable
class Makers(Protocol):
    """Processes that make inputs, several at a time."""

    def batches_ahead(self, batch_bytes: int) -> int:
        """Return how many batches are begun before the first of them is needed. batch_bytes: of its inputs."""

    def begin(self, wanted: Wanted, out: NDArray[Any]) -> Sequence[Future[None]]:
        """Begin to make inputs into a contiguous array (rows, …) of their dtype; each future ends with some of the rows."""


@dataclass(frozen=True)
class Form:
    """The form of the inputs of a batch."""

    dtype: np.dtype[Any]
    """Of their elements."""
    shape: tuple[int, ...]
    """Of one input."""

    @property
    def nbytes(self) -> int:
        """Bytes of one input."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class _Making:
    """A batch whose inputs are being made."""

    arrays: Arrays
    inputs: NDArray[Any]
    parts: list[tuple[NDArray[np.int64], NDArray[Any], Sequence[Future[None]]]]
    """Of each view: its places in the batch, its inputs, and what is waited for."""

    @classmethod
    def begin(
        cls,
        arrays: Arrays,
        wanted_of: Callable[[Arrays, NDArray[np.int64]], Wanted],
        form: Form,
        makers: Makers,
    ) -> "_Making":
        views = arrays["views"]
        inputs = np.empty((len(views), *form.shape), form.dtype)
        making = cls(arrays, inputs, [])
        numbers = np.unique(views)
        for view in numbers:
            places = np.flatnonzero(views == view)
            wanted = wanted_of(arrays, places)
            # A batch of one view needs no further copy.
            into = inputs if len(numbers) == 1 else np.empty((len(places), *form.shape), form.dtype)
            if wanted.stored is not None and wanted.seen is None:
                check_form(wanted.stored, wanted, form.dtype, form.shape)
                into[...] = wanted.stored
                making.parts.append((places, into, []))
            else:
                making.parts.append((places, into, makers.begin(wanted, into)))
        return making

    def finish(self) -> Arrays:
        """Wait for the inputs; return the arrays of the batch with them. Raises the first error."""
        for places, into, futures in self.parts:
            for future in futures:
                future.result()
            if into is not self.inputs:
                self.inputs[places] = into
        return {**self.arrays, "inputs": self.inputs}

    def cancel(self) -> None:
        for _, _, futures in self.parts:
            for future in futures:
                future.cancel()


def made_ahead(
    batches: Iterable[Arrays],
    wanted_of: Callable[[Arrays, NDArray[np.int64]], Wanted],
    form: Form,
    makers: Makers,
    ahead: int,
) -> Generator[Arrays, None, None]:
    """Yield the arrays of batches with their inputs, in order; so many batches are in work ahead of the one that is yielded.

    wanted_of: from a batch and places of one view in it. Closing the generator cancels what is not begun.
    """
    pending = deque[_Making]()
    try:
        for arrays in batches:
            pending.append(_Making.begin(arrays, wanted_of, form, makers))
            if len(pending) > ahead:
                yield pending.popleft().finish()
        while pending:
            yield pending.popleft().finish()
    finally:
        for making in pending:
            making.cancel()
