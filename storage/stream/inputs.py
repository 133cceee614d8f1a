"""The inputs of a stream, checked against those of the teachers.

They come from the store, which keeps them, or from a transfer set, which is checked by digest. The inputs of an
augmented view are made again from these and checked against the digest of what the teacher was shown.

The labels of a batch are the store's. Those of a transfer set are compared with them, all at once if the set lists them,
otherwise with each example that is fetched; an unknown label, on either side, contradicts none.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..digest import digest_rows
from ..errors import ConfigError, RowMismatch
from ..parts.reader import CaptureReader, Samples
from ..parts.same_inputs import check_same_inputs
from ..parts.same_rows import is_augmented
from .items import UNKNOWN, Item, class_number, fetch_items, listed_labels, read_inputs, split_item
from .options import StreamOptions
from .order import ChunkRun
from .window import Field

Augment = Callable[[NDArray[Any], int, NDArray[np.int64]], NDArray[Any]]
"""(inputs (rows, …), view, rows) -> the inputs of that view, as the capture showed them to its teacher."""


class Inputs:
    """The inputs of a stream."""

    def __init__(
        self, samples: Samples, captures: Mapping[str, CaptureReader], options: StreamOptions, where: str
    ) -> None:
        """Check the transfer set and the inputs of the teachers; where: the store, for messages.

        Reads no block, except of digests whose checksums differ between teachers. Raises SpecMismatch or RowMismatch if
        the teachers saw different inputs, RowMismatch for labels that the set lists and the store has otherwise, ConfigError
        for an unfit transfer set or augment.
        """
        self._samples = samples
        self._transfer_set = options.transfer_set
        self._augment = options.augment
        self._view = options.streamed_views[0]
        self._shown = next(iter(captures.values()), None)
        self._augmentation = check_same_inputs(captures, options.streamed_views, where)
        self.available = options.inputs and (self._transfer_set is not None or samples.inputs is not None)
        """Whether batches have inputs."""
        self._one_at_a_time = threading.Lock()
        augmented = [view for view in options.streamed_views if is_augmented(self._augmentation, view)]
        if self.available and self._augment is None and augmented:
            raise ConfigError(
                "augment",
                expected=f"the function that made views {augmented} of the inputs",
                found="None",
                remedy="pass augment=…, or views=0, or inputs=False if you need no inputs",
            )
        if self._transfer_set is not None:
            self._check_transfer_set()

    def _check_transfer_set(self) -> None:
        readable = any(hasattr(self._transfer_set, name) for name in ("__getitem__", "__getitems__"))
        if not readable or not hasattr(self._transfer_set, "__len__"):
            raise ConfigError(
                "transfer_set",
                expected="a data set with a length and examples by number",
                found=type(self._transfer_set).__name__,
                remedy="pass the transfer set of this store",
            )
        needed = int(self._samples.source.max(initial=-1)) + 1
        found = len(self._transfer_set)
        is_whole = needed == len(self._samples.source)  # not a selection of a larger set
        if found < needed or (is_whole and found > needed):
            raise ConfigError(
                "transfer_set",
                expected=f"{'' if is_whole else 'at least '}{needed} examples, as in the transfer set of the store",
                found=str(found),
                remedy="pass the transfer set that this store was made from",
            )
        self._check_listed_labels()

    def _check_listed_labels(self) -> None:
        """Compare the labels that the set lists, if it does. Raises RowMismatch."""
        listed = listed_labels(self._transfer_set)
        if listed is None:
            return
        source, ours = self._samples.source, self._samples.labels
        bad = np.flatnonzero(_contradicts(listed[source], ours))
        if not len(bad):
            return
        # The items decide: they have other labels than the list where the set has a `target_transform`.
        wanted = [int(source[bad[0]])]
        item = split_item(fetch_items(self._transfer_set, wanted)[0], f"transfer set, example {wanted[0]}")
        if not item.is_labelled:
            self._refuse_label(
                int(bad[0]), int(listed[wanted[0]]), f" ({len(bad)} of {len(ours)} rows differ)"
            )
        self._check_labels(bad[:1], wanted, [item])

    def _check_labels(self, rows: NDArray[np.int64], indices: list[int], items: Sequence[Any]) -> None:
        """Compare the labels of fetched items with those of the store. Raises RowMismatch, BadDataError."""
        for row, index, label, item in zip(
            rows.tolist(), indices, self._samples.labels[rows].tolist(), items, strict=True
        ):
            if label == UNKNOWN:
                continue
            place = f"transfer set, example {index}"
            part = item if isinstance(item, Item) else split_item(item, place)
            if part.is_labelled:
                found = class_number(part.label, place)
                if found not in (label, UNKNOWN):
                    self._refuse_label(row, found)

    def _refuse_label(self, row: int, found: int, more: str = "") -> None:
        raise RowMismatch(
            f"row {row} (index {int(self._samples.source[row])} of the transfer set): label",
            expected=str(int(self._samples.labels[row])),
            found=f"{found}{more}",
            remedy="give the transfer set the labels of the store, or make a new store",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_one_at_a_time"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._one_at_a_time = threading.Lock()

    @cached_property
    def field(self) -> Field:
        """The array of a window that holds the inputs."""
        form: Any = self._samples.inputs
        if form is None or self._transfer_set is not None or self._is_remade(self._view):
            form = self._rows(range(1), self._view)
        return Field("inputs", form.dtype, form.shape[1:], self._read)

    @cached_property
    def made_from_bytes(self) -> int:
        """Bytes of the input that a view of a row is made from; 0 if no view is made."""
        if not (self.available and self._is_remade(self._view)):
            return 0
        if self._transfer_set is None:
            stored: Any = self._samples.inputs
            return int(np.dtype(stored.dtype).itemsize * np.prod(stored.shape[1:], dtype=np.int64))
        with self._one_at_a_time:
            return self._fetch(np.arange(1)).nbytes

    def _read(self, run: ChunkRun, out: NDArray[Any]) -> None:
        if self._transfer_set is None and not self._is_remade(run.view):
            self._samples.reader.read_into("input", run.rows, 0, out)
            return
        inputs = self._rows(run.rows, run.view)
        if (inputs.dtype, inputs.shape) != (out.dtype, out.shape):
            raise ConfigError(
                f"view {run.view}, rows from {int(run.rows[0])}",
                expected=f"inputs of {out.dtype} {out.shape[1:]}, as in the first rows",
                found=f"{inputs.dtype} {inputs.shape[1:]}",
                remedy="stream one view at a time, or capture every view augmented (first_view = 0)",
            )
        out[...] = inputs

    def _is_remade(self, view: int) -> bool:
        return self._augment is not None and is_augmented(self._augmentation, view)

    def _rows(self, rows: range | NDArray[np.int64], view: int) -> NDArray[Any]:
        """Return the inputs of `rows` as the teachers saw them, each checked against its digest."""
        numbers = np.asarray(rows, dtype=np.int64)
        if self._transfer_set is None:
            inputs = self._samples.reader.read("input", rows)
        else:
            with self._one_at_a_time:  # A data set need not be safe for threads.
                inputs = self._fetch(numbers)
            self._check(inputs, self._samples.reader.read("digest", rows), numbers, view=None)
        if self._is_remade(view) and self._augment is not None:
            with self._one_at_a_time:
                inputs = self._augment(inputs, view, numbers)
            assert self._shown is not None
            self._check(inputs, self._shown.seen(rows, view), numbers, view=view)
        return inputs

    def _fetch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        wanted = self._samples.source[rows].tolist()
        items = fetch_items(self._transfer_set, wanted)
        inputs = read_inputs(items, wanted, "transfer set")
        self._check_labels(rows, wanted, items)
        return inputs

    def _check(
        self, inputs: NDArray[Any], expected: NDArray[Any], rows: NDArray[np.int64], view: int | None
    ) -> None:
        digests = digest_rows(inputs)
        bad = np.flatnonzero(digests != expected)
        if len(bad):
            row = int(rows[bad[0]])
            origin = "the transfer set" if view is None else f"view {view}, as `augment` makes it"
            raise RowMismatch(
                f"row {row} (index {int(self._samples.source[row])} of the transfer set)",
                expected=f"the input that the teacher saw, digest {int(expected[bad[0]]):016x}",
                found=f"{int(digests[bad[0]]):016x} from {origin}",
                remedy="use the transfer set and the augmentation that the store was made from",
            )


def _contradicts(found: NDArray[np.int64], stored: NDArray[np.int64]) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = (found != stored) & (found != UNKNOWN) & (stored != UNKNOWN)
    return differs
