"""How does a student get the very inputs that its teacher saw?

A stream hands over the inputs of a run of rows as the transfer set has them; `replay` makes of them the view that was
captured, and the stream compares each with the digest of what the teacher was given. Stage one makes its views
with the same function.

An augmentation that mixes a row with another one needs that row too. `rows_of_store` finds it where the stream finds
its own.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..storage.api import Store
from ..storage.errors import ConfigError
from ..storage.inputs import Augment, fetch_items
from ..storage.reader import Samples
from .augment import Augmentation, OtherRows, PairAugmentation, augment_rows
from .experiment import Experiment
from .factories import build_augmentation
from .transfer import TransferRows


def replay(
    augmentation: Augmentation | PairAugmentation,
    seed: int = 0,
    first_view: int = 1,
    others: OtherRows | None = None,
) -> Augment:
    """What `store.stream(..., augment=…)` takes, for an augmentation such as `shift(pixels=2)`.

    seed, first_view: as the capture has them (`store.teachers[name].augmentation` says both).
    others: for an augmentation that mixes rows, such as `mixup()`: `rows_of_store(store)`.

    >>> from logitstore.pipeline.augment import shift
    >>> again = replay(shift(pixels=1))
    >>> again(np.ones((2, 3, 3)), 0, np.array([4, 5])).sum()  # view 0 is the row as it is
    np.float64(18.0)
    """
    return _Replay(augmentation, seed, first_view, others)


def rows_of_store(store: Store, transfer_set: Any = None) -> OtherRows:
    """The inputs of a store's rows, for `replay` of an augmentation that mixes them.

    transfer_set: where the store keeps no inputs, the set that it was made from, as `Store.stream` takes it.
    Raises ConfigError where neither has them.
    """
    if transfer_set is None and store.samples.inputs is None:
        raise ConfigError(
            f"{store.path}: samples",
            expected="inputs, to mix rows with others",
            found="a store that keeps none",
            remedy="pass transfer_set=…, the set that it was made from",
        )
    return _RowsOfStore(store.num_rows, store.samples, transfer_set)


def experiment_views(
    experiment: Experiment, others: OtherRows | TransferRows | None = None, *, made_twice: bool = True
) -> Augment | None:
    """What makes the views of an experiment's captures; None where every view is the row as it is.

    others: the transfer set where the caller has it at hand, or where else a mixture finds its other rows; left out,
    the set is made when the first of them is needed.
    made_twice: whether some rows are made again and compared, as `augment_rows` says. What is checked against digests
    of what was seen needs it not.
    Raises FactoryError.
    """
    table = experiment.cache.augment
    if table is None:
        return None
    augmentation = build_augmentation(table.factory, table.args, base=experiment.base)
    if others is None or isinstance(others, TransferRows):
        others = _RowsOfExperiment(experiment, others)
    return _Replay(augmentation, table.seed, table.first_view, others, made_twice)


def mixes_rows(make_view: Augment | None) -> bool:
    """Whether views are mixtures of rows, which have no label.

    >>> from logitstore.pipeline.augment import mixup, shift
    >>> mixes_rows(replay(shift())), mixes_rows(replay(mixup()))
    (False, True)
    """
    return isinstance(make_view, _Replay) and isinstance(make_view.augmentation, PairAugmentation)


@dataclass(frozen=True)
class _Replay:
    """An object and no closure: a stream is sent to the workers of a DataLoader, and what it holds with it."""

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
class _RowsOfStore:
    """Inputs from where a stream has them; what is mixed of them, the stream compares with what was seen."""

    num_rows: int
    samples: Samples
    transfer_set: Any

    def __len__(self) -> int:
        return self.num_rows

    def inputs_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if self.transfer_set is None:
            return self.samples.reader.read("input", rows)
        items = fetch_items(self.transfer_set, self.samples.source[rows].tolist())
        return np.stack([np.asarray(item[0] if isinstance(item, tuple) else item) for item in items])


@dataclass(frozen=True)
class _RowsOfExperiment:
    """Inputs from the transfer set of an experiment."""

    experiment: Experiment
    given: TransferRows | None

    @cached_property
    def rows(self) -> TransferRows:
        """The set, made when it is first asked for: few augmentations mix rows."""
        return TransferRows(self.experiment) if self.given is None else self.given

    def __len__(self) -> int:
        return len(self.rows)

    def inputs_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.rows.fetch(self.rows.source[rows].tolist())[0]
