"""Where do the inputs of a row come from, and are they what the teachers saw?

From the store, where it keeps them, or from a transfer set, each then checked against its digest. An augmented view is
made again from them, and checked against the digest of what the teacher was shown.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..digest import digest_rows
from ..errors import BadDataError, ConfigError, LogitStoreError, RowMismatch, SpecMismatch
from ..parts.reader import CaptureReader, Samples
from .order import Run
from .window import Field

Augment = Callable[[NDArray[Any], int, NDArray[np.int64]], NDArray[Any]]
"""(inputs (rows, …), view, rows) -> the inputs of that view: what the capture showed to its teacher."""


def is_augmented(augmentation: Mapping[str, Any] | None, view: int) -> bool:
    """Whether a teacher was shown something else than the rows in this view."""
    return augmentation is not None and view >= int(augmentation.get("first_view", 0))


def common_augmentation(
    captures: Mapping[str, CaptureReader], views: Iterable[int], where: str
) -> Mapping[str, Any] | None:
    """The augmentation of all captures in these views. Raises SpecMismatch where they saw different inputs."""
    streamed = list(views)
    found: dict[str, Any] = {
        name: c.augmentation if any(is_augmented(c.augmentation, view) for view in streamed) else None
        for name, c in captures.items()
    }
    names = list(found)
    for name in names[1:]:
        if found[name] != found[names[0]]:
            raise SpecMismatch(
                f"{where}: teachers {names[0]!r} and {name!r}",
                expected="captures of the same augmented inputs",
                found=f"{found[names[0]]} and {found[name]}"[:200],
                remedy="stream them one at a time, or capture one of them again",
            )
    return found[names[0]] if names else None


class Inputs:
    """The inputs of a stream."""

    def __init__(
        self,
        samples: Samples,
        shown: CaptureReader | None,
        *,
        augmentation: Mapping[str, Any] | None,
        transfer_set: Any,
        augment: Augment | None,
        view: int,
    ) -> None:
        """shown: the capture that says what its teacher saw. view: one that will be asked for."""
        self._samples = samples
        self._shown = shown
        self._augmentation = augmentation
        self._transfer_set = transfer_set
        self._augment = augment
        self._view = view
        self._one_at_a_time = threading.Lock()
        if transfer_set is not None:
            self._check_transfer_set()

    def _check_transfer_set(self) -> None:
        """Refuse what is no data set, or has lost examples, before anything is read. Raises ConfigError."""
        readable = any(hasattr(self._transfer_set, name) for name in ("__getitem__", "__getitems__"))
        if not readable or not hasattr(self._transfer_set, "__len__"):
            raise ConfigError(
                "transfer_set",
                expected="a data set with a length and examples by number",
                found=type(self._transfer_set).__name__,
                remedy="pass the one that the store was made from",
            )
        needed = int(self._samples.source.max(initial=-1)) + 1
        if len(self._transfer_set) < needed:
            raise ConfigError(
                "transfer_set",
                expected=f"at least {needed} examples, as the store was made from",
                found=str(len(self._transfer_set)),
                remedy="use the transfer set that the store was made from, whole",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_one_at_a_time"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._one_at_a_time = threading.Lock()

    @cached_property
    def field(self) -> Field:
        """The array of a window that holds them."""
        dtype, shape = self._form
        return Field("inputs", dtype, shape, self._read)

    @cached_property
    def _form(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """dtype of the inputs, and shape of one."""
        stored = self._samples.inputs
        if stored is not None and self._transfer_set is None and not self._remade(self._view):
            return stored.dtype, stored.shape[1:]
        first = self._rows(range(1), self._view)
        return first.dtype, first.shape[1:]

    def _read(self, run: Run, out: NDArray[Any]) -> None:
        if self._transfer_set is None and not self._remade(run.view):
            self._samples.reader.read_into("input", run.rows, 0, out)
            return
        found = self._rows(run.rows, run.view)
        if (found.dtype, found.shape) != (out.dtype, out.shape):
            raise ConfigError(
                f"view {run.view}, rows from {int(run.rows[0])}",
                expected=f"inputs of {out.dtype} {out.shape[1:]}, like the others",
                found=f"{found.dtype} {found.shape[1:]}",
                remedy="stream one view at a time, or use an augmentation that keeps dtype and shape",
            )
        out[...] = found

    def _remade(self, view: int) -> bool:
        return self._augment is not None and is_augmented(self._augmentation, view)

    def _rows(self, rows: range | NDArray[np.int64], view: int) -> NDArray[Any]:
        """The inputs of `rows` as the teachers saw them, each checked against its digest."""
        numbers = np.asarray(rows, dtype=np.int64)
        if self._transfer_set is None:
            inputs = self._samples.reader.read("input", rows)
        else:
            with self._one_at_a_time:  # A data set need not bear several threads.
                inputs = self._fetch(self._samples.source[numbers])
            self._check(inputs, self._samples.reader.read("digest", rows), numbers, view=None)
        if self._remade(view) and self._augment is not None:
            with self._one_at_a_time:
                inputs = self._augment(inputs, view, numbers)
            assert self._shown is not None
            self._check(inputs, self._shown.seen(rows, view), numbers, view=view)
        return inputs

    def _fetch(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        items = fetch_items(self._transfer_set, indices.tolist())
        try:
            return np.stack([np.asarray(item[0] if isinstance(item, tuple) else item) for item in items])
        except ValueError as error:
            raise BadDataError(
                f"transfer set, {_span(indices)}",
                expected="inputs of one shape, alone or as (input, label)",
                found=" ".join(str(error).split())[:160],
                remedy="use the transfer set that the store was made from",
            ) from None

    def _check(
        self,
        inputs: NDArray[Any],
        expected: NDArray[Any],
        rows: NDArray[np.int64],
        view: int | None,
    ) -> None:
        found = digest_rows(inputs)
        bad = np.flatnonzero(found != expected)
        if len(bad):
            row = int(rows[bad[0]])
            what = "the transfer set" if view is None else f"view {view}, as `augment` makes it"
            raise RowMismatch(
                f"row {row} (index {int(self._samples.source[row])} of the transfer set)",
                expected=f"the input that the teacher saw, digest {int(expected[bad[0]]):016x}",
                found=f"{int(found[bad[0]]):016x} from {what}",
                remedy="use the transfer set and the augmentation that the store was made from",
            )


def fetch_items(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Items of a map-style data set, in one call where it has `__getitems__`. Raises BadDataError for what it raises."""
    try:
        if hasattr(dataset, "__getitems__"):
            return list(dataset.__getitems__(list(indices)))
        return [_item(dataset, index) for index in indices]
    except (LogitStoreError, MemoryError):
        raise
    except Exception as error:
        raise _failed(error, _span(np.asarray(indices))) from error


def _item(dataset: Any, index: int) -> Any:
    try:
        return dataset[index]
    except (LogitStoreError, MemoryError):
        raise
    except Exception as error:
        raise _failed(error, f"example {index}") from error


def _failed(error: Exception, where: str) -> BadDataError:
    """What a data set raised, as one line that says where."""
    return BadDataError(
        f"transfer set, {where}",
        expected="an example",
        found=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": "),
        remedy="mend the data set, and run the same again: what the store holds stays",
    )


def _span(indices: NDArray[np.int64]) -> str:
    return f"examples {int(indices.min())} to {int(indices.max())}" if len(indices) else "no examples"
