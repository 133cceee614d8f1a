"""Augmented views, replayed so that a student gets exactly the inputs of its teacher.

A stream passes the inputs of some rows of the transfer set. `replay` makes the captured view of them, and the stream compares
each with the digest of the teacher's input. Stage one makes its views with the same function.

An augmentation that mixes two rows needs the second one: `rows_of_store` reads it from the source of the stream.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray

from ..storage.api import Store
from ..storage.errors import BadDataError, BadLogitsError, ConfigError, FactoryError, SpecMismatch
from ..storage.format.constants import SAMPLES
from ..storage.identity import as_json
from ..storage.parts.reader import CaptureReader, Samples
from ..storage.parts.same_rows import is_augmented
from ..storage.stream.inputs import Augment
from ..storage.stream.items import fetch_items, read_inputs
from ..storage.stream.row_numbers import as_numbered
from .augment import Augmentation, OtherRows, PairAugmentation, augment_rows
from .experiment.document import Experiment
from .factories.products import augmentation_of, augmentation_source
from .transfer import TransferRows, spread_over


def replay(
    augmentation: Augmentation | PairAugmentation,
    seed: int = 0,
    first_view: int = 1,
    others: OtherRows | None = None,
) -> Augment:
    """Make the `augment` of `store.stream` from an augmentation such as `shift(pixels=2)`.

    seed, first_view: those of the capture (`store.teachers[name].augmentation`).
    others: `rows_of_store(store)` for an augmentation that mixes rows, such as `mixup()`.

    >>> from logitstore.pipeline.augment import shift
    >>> again = replay(shift(pixels=1))
    >>> again(np.ones((2, 3, 3)), 0, np.array([4, 5])).sum()  # view 0 is not augmented
    np.float64(18.0)
    """
    return _Replay(augmentation, seed, first_view, others)


def rows_of_store(store: Store, transfer_set: Any = None) -> OtherRows:
    """Return the inputs of a store's rows, for `replay` of an augmentation that mixes them.

    transfer_set: the data set of a store without inputs, as for `Store.stream`. Raises ConfigError if it is missing.
    """
    if transfer_set is None and store.samples.inputs is None:
        raise ConfigError(
            f"{store.path}: samples",
            expected="inputs, which mixtures are made from",
            found="no inputs",
            remedy="pass the data set of the store, transfer_set=…",
        )
    return RowsOfStore(store.num_rows, store.samples, transfer_set)


def experiment_views(
    experiment: Experiment, others: OtherRows | None = None, *, made_twice: bool = True
) -> Augment | None:
    """Make the function of an experiment's views; None without an augmentation.

    others: the source of rows for mixtures, by default the transfer set. made_twice: whether some rows are made again and
    compared (`augment_rows`), which views with digests do not need. Raises FactoryError.
    """
    table = experiment.cache.augment
    if table is None:
        return None
    augmentation = augmentation_of(table, base=experiment.base)
    if others is None and isinstance(augmentation, PairAugmentation):
        others = TransferRows(experiment)
    return _Replay(augmentation, table.seed, table.first_view, others, made_twice)


def views_onto(experiment: Experiment, rows: TransferRows, store: Store | None) -> Augment | None:
    """Make the function of the views of a capture that is added to a store: rows have the numbers by which streams replay them.

    store: None where there is none yet. Raises FactoryError, ConfigError for mixtures of rows of a concatenated store.
    """
    make_view = experiment_views(experiment, rows)
    identity = None if store is None else store.identity_of(SAMPLES)
    if store is None or identity is None:
        return make_view
    where = f"{store.path}: {SAMPLES}"
    numbered = as_numbered(make_view, identity, store.num_rows, where)
    if numbered is not make_view and mixes_rows(make_view):
        raise ConfigError(
            f"{where}: augment",
            expected="views of a row alone, in a store that was concatenated",
            found="mixtures of rows",
            remedy="choose another augmentation, or cache all rows into a new store (another --out)",
        )
    return numbered


def first_views(experiment: Experiment, rows: TransferRows) -> Shaped[np.ndarray, "few ..."]:
    """Return one or two inputs as networks get them: view 0 of rows of the transfer set.

    All views have this shape and dtype; those of the rows are others where an experiment augments every view.
    """
    make_view = _view_0(experiment, rows)
    return rows.a_few if make_view is None else make_view(np.arange(min(2, len(rows)), dtype=np.int64))


def spread_views(experiment: Experiment, rows: TransferRows) -> Shaped[np.ndarray, "some ..."]:
    """Return inputs from all over the transfer set (`Examples.spread`) as networks get them in view 0."""
    make_view = _view_0(experiment, rows)
    return rows.spread() if make_view is None else make_view(spread_over(len(rows)))


def _view_0(
    experiment: Experiment, rows: TransferRows
) -> Callable[[Int64[np.ndarray, " rows"]], NDArray[Any]] | None:
    """Return the function from rows of the store to their view 0; None where that is the rows themselves."""
    make_view, augment = experiment_views(experiment, rows, made_twice=False), experiment.cache.augment
    if make_view is None or augment is None or augment.first_view > 0:
        return None
    return lambda numbers: make_view(rows.inputs_of(numbers), 0, numbers)


def check_one_form(
    shown: Shaped[np.ndarray, "rows ..."], view: int, like: Shaped[np.ndarray, "few ..."]
) -> None:
    """Refuse a view of another shape or dtype than view 0. Raises FactoryError.

    like: some inputs of view 0.
    """
    if (shown.dtype, shown.shape[1:]) != (like.dtype, like.shape[1:]):
        raise FactoryError(
            f"view {view}",
            expected=f"inputs of {like.dtype} of shape {like.shape[1:]}, as in view 0",
            found=f"{shown.dtype} of shape {shown.shape[1:]}",
            remedy="set first_view = 0 beside the augmentation, so that every view is augmented",
        )


@contextlib.contextmanager
def naming_unlike_views(experiment: Experiment, rows: TransferRows) -> Iterator[None]:
    """Refuse augmented views of another shape where a network fails on view 0: it may be made for these.

    Raises FactoryError, as `check_one_form`, in place of a BadLogitsError.
    """
    try:
        yield
    except BadLogitsError:
        table, few = experiment.cache.augment, rows.a_few
        if table is not None and 0 < table.first_view < experiment.cache.views:
            make_view = experiment_views(experiment, rows, made_twice=False)
            assert make_view is not None  # there is a table
            numbers = np.arange(len(few), dtype=np.int64)
            check_one_form(make_view(few, table.first_view, numbers), table.first_view, few)
        raise


def mixes_rows(make_view: Augment | None) -> bool:
    """Return whether views are mixtures of rows, and therefore without labels.

    >>> from logitstore.pipeline.augment import mixup, shift
    >>> mixes_rows(replay(shift())), mixes_rows(replay(mixup()))
    (False, True)
    """
    return isinstance(make_view, _Replay) and isinstance(make_view.augmentation, PairAugmentation)


@dataclass(frozen=True)
class _Replay:
    """A function of views that can be pickled, for the workers of a DataLoader."""

    augmentation: Augmentation | PairAugmentation
    seed: int
    first_view: int
    others: OtherRows | None = None
    made_twice: bool = False

    def __call__(self, inputs: NDArray[Any], view: int, rows: Int64[np.ndarray, " rows"]) -> NDArray[Any]:
        return augment_rows(
            inputs,
            self.augmentation,
            self.seed,
            view,
            rows,
            self.first_view,
            others=self.others,
            made_twice=self.made_twice,
        )


@dataclass(frozen=True)
class RowsOfStore:
    """Inputs from the source of a stream. The stream checks the mixtures against their digests."""

    num_rows: int
    samples: Samples
    transfer_set: Any

    def __len__(self) -> int:
        return self.num_rows

    def inputs_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if self.transfer_set is None:
            return self.samples.reader.read("input", rows)
        indices = self.samples.source[rows].tolist()
        return read_inputs(fetch_items(self.transfer_set, indices), indices, "transfer set")


def augmentation_identity(experiment: Experiment) -> dict[str, Any] | None:
    """Return the augmentation in a capture's identity; None without one."""
    augment = experiment.cache.augment
    if augment is None:
        return None
    return {
        "factory": augment.factory,
        "args": augment.args,
        "source": augmentation_source(augment, base=experiment.base),
        "seed": augment.seed,
        "first_view": augment.first_view,
    }


def shown_views(asked: str | int, num_views: int) -> Sequence[int]:
    """Return the views that a student is shown. asked: of its table, a view or the text "all" or "cycle"."""
    return range(num_views) if isinstance(asked, str) else [asked]


def check_labels_of_views(
    where: str, needed: str | None, asked: str | int, shown: CaptureReader, augment: Augment
) -> None:
    """Refuse a setting that needs the labels of mixtures, which have none. Raises BadDataError.

    needed: the setting, if any. asked: as `shown_views`.
    """
    views = shown_views(asked, shown.num_views)
    augmented = [view for view in views if is_augmented(shown.augmentation, view)]
    refuse_mixtures(where, needed, augmented, augment)


def refuse_mixtures(
    where: str, needed: str | None, augmented: Sequence[int], augment: Augment | None
) -> None:
    """Refuse a setting that needs labels where some augmented views are mixtures. Raises BadDataError. needed: the setting."""
    if needed is not None and augmented and mixes_rows(augment):
        raise BadDataError(
            where,
            expected=f"labelled inputs, for {needed}",
            found=f"unlabelled mixtures of two rows in views {augmented}",
            remedy="train it on soft targets alone, or on a view that is not augmented (views = 0)",
        )


def recorded_views(
    experiment: Experiment, store: Store, teacher: str, transfer_set: TransferRows | None = None
) -> Augment:
    """Make the function of a capture's views from the experiment's table. Raises SpecMismatch if the two differ.

    transfer_set: the inputs, for a store without them. The spec in a store is only compared, never executed. An augmentation in
    hand is compared by the inputs that it makes.
    """
    theirs, ours = store.teachers[teacher].augmentation, augmentation_identity(experiment)
    others: OtherRows | None = transfer_set
    if others is None and store.samples.inputs is not None:
        others = rows_of_store(store)
    make_view = experiment_views(experiment, others, made_twice=False)
    differs = ours is None or theirs is None or as_json(ours) != theirs
    table = experiment.cache.augment
    if table is not None and table.in_hand is not None:
        differs = False  # it may be that of a file under another name: the stream compares the digest of every input
    if make_view is None or differs:
        raise SpecMismatch(
            f"{store.path}: teachers/{teacher}",
            expected=f"the captured augmentation {theirs}"[:240],
            found=f"{ours}"[:240],
            remedy="set [cache] augment to that of the capture",
        )
    return make_view
