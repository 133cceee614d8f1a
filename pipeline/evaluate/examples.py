"""The evaluation set, whose labels are classes of the transfer set. Imports no torch.

Classes are matched by name, so a set that lacks one, or has them in another order, is scored rightly. A set without names is
taken by number.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int64, Shaped

from ...storage.errors import BadDataError, ConfigError
from ...storage.format.documents import sha256_hex
from ...storage.stream.items import fetch_items, split_item
from ..experiment.document import Experiment
from ..models.class_names import match_classes
from ..transfer import Examples


class EvaluationExamples(Examples):
    """Labelled examples of the classes of a transfer set."""

    _class_of: Int64[np.ndarray, " own"] | None = None
    """The transfer set's class of each class of this set; None where the numbers are the same."""

    def __init__(self, experiment: Experiment, rows: Examples) -> None:
        """Open the evaluation set of an experiment. rows: the transfer set.

        Raises ConfigError for an experiment without one; BadDataError for a set without labels, and for classes that are
        none of the transfer set's.
        """
        if experiment.evaluation_set is None:
            raise ConfigError(
                "evaluation_set",
                expected="the labelled examples that models are evaluated on",
                found="no such table",
                remedy="add [evaluation_set] to the experiment",
            )
        self._num_classes = rows.num_classes
        super().__init__(experiment.evaluation_set, experiment.base, "evaluation_set")
        (first,) = fetch_items(self.dataset, [0])
        if (
            not split_item(first, f"{self.where}, example 0").is_labelled
            or getattr(self.dataset, "labels", ()) is None
        ):
            raise BadDataError(
                self.where,
                expected="labelled examples, (input, label)",
                found="a set without labels",
                remedy="evaluate on a labelled set, or drop [evaluation_set]",
            )
        self._class_of = match_classes(self.class_names, rows.class_names, rows.num_classes, self.where)

    def fetch(
        self, indices: Sequence[int]
    ) -> tuple[Shaped[np.ndarray, "rows ..."], Int64[np.ndarray, " rows"]]:
        """Fetch inputs, and labels in the numbers of the transfer set's classes. Raises BadDataError as `Examples.fetch`."""
        inputs, labels = super().fetch(indices)
        if self._class_of is not None:
            labels = np.where(labels < 0, labels, self._class_of[labels])
        wrong = np.flatnonzero((labels < -1) | (labels >= self._num_classes))
        if len(wrong):
            raise BadDataError(
                f"{self.where}, example {indices[wrong[0]]}",
                expected=f"a label from -1 to {self._num_classes - 1}, a class of the transfer set",
                found=str(labels[wrong[0]]),
                remedy="evaluate on examples of the same classes",
            )
        return inputs, labels

    @cached_property
    def content(self) -> str:
        """Fingerprint of the set, or a digest of every input and label; with its classes, where their numbers differ."""
        content = super().content
        if self._class_of is None:
            return content
        return f"sha256:{sha256_hex(f'{content} {self._class_of.tolist()}'.encode())}"
