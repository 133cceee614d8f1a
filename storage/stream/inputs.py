"""The inputs of a stream, checked against those of the teachers.

They come from the store, which keeps them, or from a transfer set, which is checked by digest. The inputs of an
augmented view are made again from these and checked against the digest of what the teacher was shown.

The labels of a batch are the store's. Those of a transfer set are compared with them, all at once if the set lists them,
otherwise with each example that is fetched; an unknown label, on either side, contradicts none.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..parts.reader import CaptureReader, Samples
from ..parts.same_inputs import check_same_inputs
from ..parts.same_rows import check_knows_inputs, is_augmented
from .fetch_ahead import Source
from .items import UNKNOWN, fetch_items, listed_labels, split_item
from .making import Augment, Form, InputMaker, Wanted, check_form, check_labels, other_label
from .options import StreamOptions
from .order import ChunkRun
from .row_numbers import as_numbered
from .window import Arrays, Field

__all__ = ["Augment", "Inputs"]
_MADE_FROM, _SEEN = "made from", "seen"
"""Names of the arrays of a window that inputs are made from."""


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
        self.augment = as_numbered(options.augment, samples.spec.identity, samples.num_rows, where)
        """The function of the views, given the numbers that rows had where they were captured."""
        self._streamed = options.streamed_views
        self._view = self._streamed[0]
        self._shown = next(iter(captures.values()), None)
        self._augmentation = check_same_inputs(captures, options.streamed_views, where)
        self.available = options.inputs and (self._transfer_set is not None or samples.inputs is not None)
        """Whether batches have inputs."""
        self._maker = InputMaker(options.transfer_set, self.augment)
        augmented = [view for view in options.streamed_views if is_augmented(self._augmentation, view)]
        if self.available and self.augment is None and augmented:
            raise ConfigError(
                "augment",
                expected=f"the function that made views {augmented} of the inputs",
                found="None",
                remedy="pass augment=…, or views=0, or inputs=False if you need no inputs",
            )
        if self._transfer_set is not None:
            check_knows_inputs(samples.spec.identity, where)
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
            more = f" ({len(bad)} of {len(ours)} rows differ)"
            first = int(bad[0])
            raise other_label(first, wanted[0], int(ours[first]), int(listed[wanted[0]]), more)
        check_labels(bad[:1], wanted, ours[bad[:1]], [item])

    @property
    def are_made(self) -> bool:
        """Whether inputs are made, of some view, and not only read from the store."""
        remade = any(self._is_remade(view) for view in self._streamed)
        return self.available and (self._transfer_set is not None or remade)

    @cached_property
    def form(self) -> Form:
        """The form of the inputs of a batch."""
        stored: Any = self._samples.inputs
        if stored is None or self._transfer_set is not None or self._is_remade(self._view):
            stored = self._rows(range(1), self._view)
        return Form(stored.dtype, stored.shape[1:])

    @property
    def field(self) -> Field:
        """The array of a window that holds the inputs."""
        name = "input" if self._transfer_set is None else "digest"
        sources = (Source(self._samples.reader, name, has_views=False), *self._seen_sources)
        return Field("inputs", self.form.dtype, self.form.shape, self._read, sources)

    @property
    def _seen_sources(self) -> tuple[Source, ...]:
        remade = self._shown is not None and any(map(self._is_remade, self._streamed))
        return (Source(self._shown.reader, "seen", has_views=True),) if remade and self._shown else ()

    @property
    def fields_to_make(self) -> list[Field]:
        """The arrays of a window that inputs are made from, batch by batch (`wanted`)."""
        uint64 = np.dtype(np.uint64)
        reader, stored = self._samples.reader, self._samples.inputs
        if self._transfer_set is None:
            assert stored is not None  # inputs are available
            name, dtype, shape = "input", stored.dtype, stored.shape[1:]
        else:
            name, dtype, shape = "digest", uint64, ()
        source = (Source(reader, name, has_views=False),)
        given = Field(
            _MADE_FROM, dtype, shape, lambda run, out: reader.read_into(name, run.rows, 0, out), source
        )
        return [given, Field(_SEEN, uint64, (), self._read_seen, self._seen_sources)]

    def wanted(self, arrays: Arrays, places: NDArray[np.int64]) -> Wanted:
        """Return the rows of one view at some places of a batch, with all that their inputs are made from."""
        view, given = int(arrays["views"][places[0]]), arrays[_MADE_FROM][places]
        seen = arrays[_SEEN][places] if self._is_remade(view) else None
        return self._wanted(view, arrays["rows"][places], given, seen)

    def _wanted(
        self, view: int, rows: NDArray[np.int64], given: NDArray[Any], seen: NDArray[Any] | None
    ) -> Wanted:
        """Return rows to be made. given: their stored inputs, or the digests of those of the transfer set."""
        source = self._samples.source[rows]
        if self._transfer_set is None:
            return Wanted(view, rows, source, None, None, seen, given)
        return Wanted(view, rows, source, self._samples.labels[rows], given, seen)

    @cached_property
    def made_from_bytes(self) -> int:
        """Bytes of the input that a view of a row is made from; 0 if no view is made."""
        if not (self.available and self._is_remade(self._view)):
            return 0
        if self._transfer_set is None:
            stored: Any = self._samples.inputs
            return int(np.dtype(stored.dtype).itemsize * np.prod(stored.shape[1:], dtype=np.int64))
        first = np.zeros(1, np.int64)
        return self._maker.fetch(self._wanted(self._view, first, np.zeros(1, np.uint64), None)).nbytes

    def _read(self, run: ChunkRun, out: NDArray[Any]) -> None:
        if self._transfer_set is None and not self._is_remade(run.view):
            self._samples.reader.read_into("input", run.rows, 0, out)
            return
        wanted = self._wanted_run(run.rows, run.view)
        inputs = self._maker.make(wanted)
        check_form(inputs, wanted, out.dtype, out.shape[1:])
        out[...] = inputs

    def _read_seen(self, run: ChunkRun, out: NDArray[Any]) -> None:
        if self._is_remade(run.view):
            assert self._shown is not None
            out[...] = self._shown.seen(run.rows, run.view)

    def _is_remade(self, view: int) -> bool:
        return self.augment is not None and is_augmented(self._augmentation, view)

    def _rows(self, rows: range, view: int) -> NDArray[Any]:
        """Return the inputs of `rows` as the teachers saw them, each checked against its digest."""
        return self._maker.make(self._wanted_run(rows, view))

    def _wanted_run(self, rows: range | NDArray[np.int64], view: int) -> Wanted:
        """Return rows that are read together, with all that their inputs are made from."""
        given = self._samples.reader.read("input" if self._transfer_set is None else "digest", rows)
        seen = None
        if self._is_remade(view):
            assert self._shown is not None
            seen = self._shown.seen(rows, view)
        return self._wanted(view, np.asarray(rows, dtype=np.int64), given, seen)


def _contradicts(found: NDArray[np.int64], stored: NDArray[np.int64]) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = (found != stored) & (found != UNKNOWN) & (stored != UNKNOWN)
    return differs
