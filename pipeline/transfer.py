"""Data sets of an experiment as arrays, and the transfer set in the order of its store.

The factory of a table makes a map-style data set (`datasets`). The transfer set is shuffled by a seed, or left as it is; with
shuffled rows, every window of a stream is a fair sample. Each example is checked when it is fetched. No torch is imported.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from ..storage.digest import digest_rows
from ..storage.errors import BadDataError, ConfigError
from ..storage.format.constants import INPUT_DTYPES
from ..storage.random import philox_permutation
from ..storage.stream.items import class_number, fetch_items, read_inputs, split_item
from .datasets.class_names import as_ids, names_of
from .experiment.document import Experiment
from .experiment.tables import EvaluationSet, TransferSet
from .factories import build, expect_dataset


class Examples:
    """A data set, labelled or not, as arrays on demand."""

    _stated: int | None = None
    """Number of classes in the table of the experiment."""

    def __init__(self, table: TransferSet | EvaluationSet, base: Path, where: str) -> None:
        """Make the data set of a table and check its first example.

        base: folder of relative file names. where: the set in messages.
        Raises FactoryError, BadDataError as `fetch` does, and ConfigError if the set and the table have different numbers of
        classes.
        """
        self.dataset: Any = expect_dataset(build(table.factory, table.args, base=base), table.factory)
        self._stated = table.num_classes if isinstance(table, TransferSet) else None
        self.where = where
        names = self.class_names
        if names is not None and self._stated not in (None, len(names)):
            source, remedy = (
                "class_names of the data set",
                "remove num_classes, or give the data set all class_names",
            )
            if getattr(self.dataset, "is_numbered", False):
                source = f"classes from 0 to {names[-1]}, the largest label"
                remedy = "remove num_classes, set first_label = 1 in args for labels that count from 1, or give the data set class_names"
            raise ConfigError(
                f"{where}.num_classes",
                expected=f"{len(names)}, the number of {source}",
                found=str(self._stated),
                remedy=remedy,
            )
        self.fetch([0])

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names of the classes (`datasets.class_names`); None if the set has none."""
        return names_of(self.dataset, self.where)

    @cached_property
    def ids(self) -> Sequence[str] | None:
        """Name of each example; None if the set has none."""
        ids = getattr(self.dataset, "ids", None)
        return None if ids is None else as_ids(ids, len(self), f"{self.where}: ids")

    @cached_property
    def fingerprint(self) -> str | None:
        """The set's own digest of its content; None if it has none."""
        fingerprint = getattr(self.dataset, "fingerprint", None)
        return str(fingerprint()) if callable(fingerprint) else None

    @cached_property
    def content(self) -> str:
        """Fingerprint of the set, or a digest of every input and label."""
        if self.fingerprint is not None:
            return self.fingerprint
        digest = hashlib.sha256()
        for start in range(0, len(self), 1024):
            inputs, labels = self.fetch(range(start, min(start + 1024, len(self))))
            digest.update(digest_rows(inputs).tobytes() + labels.tobytes())
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def first(self) -> Shaped[np.ndarray, "..."]:
        """Input of the first example, whose shape and dtype all have."""
        return np.asarray(self.a_few[0])

    @cached_property
    def a_few(self) -> Shaped[np.ndarray, "few ..."]:
        """Inputs of the first examples, two at most, to try a model on."""
        return self.fetch(range(min(2, len(self))))[0]

    @property
    def num_classes(self) -> int:
        """Number of classes in the set or the table. Raises ConfigError if neither has it."""
        names = self.class_names or []
        if not names and self._stated is not None:
            return self._stated
        if len(names) < 2:
            remedy = "give the data set class_names"
            raise ConfigError(
                self.where,
                expected="class_names of at least 2 classes",
                found=f"class_names of 1 class ({names[0]})" if names else "no class_names",
                remedy=remedy if names else f"{remedy}, or set num_classes in [{self.where}]",
            )
        return len(names)

    def fetch(
        self, indices: Sequence[int]
    ) -> tuple[Shaped[np.ndarray, "rows ..."], Int64[np.ndarray, " rows"]]:
        """Fetch inputs (rows, …) and labels (rows,), -1 if unknown, of the examples at `indices`.

        Raises BadDataError for inputs of different shapes or dtypes, or of a dtype outside `INPUT_DTYPES`, and for a label
        that is no class.
        """
        items = fetch_items(self.dataset, indices)
        inputs = read_inputs(items, indices, self.where)
        if inputs.dtype.name not in INPUT_DTYPES:
            raise BadDataError(
                f"{self.where}, example {indices[0]}",
                expected=f"inputs of dtype {', '.join(INPUT_DTYPES[:-1])} or {INPUT_DTYPES[-1]}",
                found=inputs.dtype.name,
                remedy="cast them in the data set, fractions to float32",
            )
        names = self.class_names or ()
        classes = len(names) or self._stated or 0
        labels = np.empty(len(items), dtype=np.int64)
        for position, (index, item) in enumerate(zip(indices, items, strict=True)):
            place = f"{self.where}, example {index}"
            labels[position] = class_number(split_item(item, place).label, place, names, classes)
        return inputs, labels


class TransferRows(Examples):
    """The transfer set of an experiment, in the order of its store."""

    def __init__(self, experiment: Experiment) -> None:
        """Make the data set and its order. Raises FactoryError, BadDataError or ConfigError."""
        table = experiment.transfer_set
        super().__init__(table, experiment.base, "transfer_set")
        self._order: dict[str, Any] = {"kind": table.order}
        self.source: Int64[np.ndarray, " rows"] = np.arange(len(self), dtype=np.int64)
        """Index in the transfer set of each row of the store."""
        if table.order == "shuffled":
            self._order["seed"] = table.seed
            self.source = philox_permutation(len(self), table.seed, stream=0, counter=0)
        self.digest_of = table.digest_of

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the samples of a store of this set."""
        return {
            "transfer_set": self.fingerprint,
            "order": self._order,
            "digest_of": self.digest_of,
            "label_kind": "class",
        }

    def rows(self, rows: range) -> tuple[Shaped[np.ndarray, "rows ..."], Int64[np.ndarray, " rows"]]:
        """Fetch inputs and labels of some rows of the store."""
        return self.fetch(self.source[rows.start : rows.stop].tolist())

    def inputs_of(self, rows: Int64[np.ndarray, " rows"]) -> Shaped[np.ndarray, "rows ..."]:
        """Fetch inputs of some rows of the store, for mixtures (`augment.OtherRows`)."""
        return self.fetch(self.source[rows].tolist())[0]


def input_bytes(experiment: Experiment, rows: TransferRows) -> int:
    """Return the bytes of an input in the store; 0 for a store without inputs."""
    return rows.first.nbytes if experiment.transfer_set.store_inputs else 0
