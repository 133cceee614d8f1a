"""The evaluation set and the validation set, whose labels are classes of the transfer set. Imports no torch.

Classes are matched by name, so a set that lacks one, or has them in another order, is scored rightly. A set without names is
taken by number. Its inputs are held against those of the transfer set, as a network gives wrong logits for another scale of
numbers without a word.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int64, Shaped

from ..storage.errors import BadDataError, ConfigError
from ..storage.stream.items import fetch_items, split_item
from .datasets.class_names import is_numbered
from .experiment.document import Experiment
from .experiment.tables import EvaluationSet
from .models.class_names import match_classes
from .transfer import Examples, TransferRows, set_identity
from .views import first_views

log = logging.getLogger(__name__)
_COMPARED = 64
"""Examples of either set whose numbers are compared."""
_SPREAD = 3.0
"""Factor between the deviations of two sets from which they are of different scales."""
_APART = 1.0
"""Distance of the means of two sets, in deviations of the transfer set, from which they are of different scales."""

SetName = Literal["evaluation_set", "validation_set"]
_PURPOSES: Final = {
    "evaluation_set": "that models are evaluated on",
    "validation_set": "on which a training is validated",
}


class EvaluationExamples(Examples):
    """Labelled examples of the classes of a transfer set."""

    _class_of: Int64[np.ndarray, " own"] | None = None
    """The transfer set's class of each class of this set; None where the numbers are the same."""

    def __init__(self, experiment: Experiment, rows: TransferRows, name: SetName = "evaluation_set") -> None:
        """Open the evaluation set of an experiment. rows: the transfer set. name: of the table.

        Raises ConfigError for an experiment without one; BadDataError for a set without labels, and for classes that are
        none of the transfer set's.
        """
        table: EvaluationSet | None = getattr(experiment, name)
        if table is None:
            raise ConfigError(
                name,
                expected=f"the labelled examples {_PURPOSES[name]}",
                found="no such table",
                remedy=f"add [{name}] to the experiment",
            )
        self._num_classes = rows.num_classes
        self._made_of = experiment, rows, name
        super().__init__(table, experiment.base, name)
        # Networks get views, which may be cast.
        shown = first_views(experiment, rows)
        self.shape_of_views = shown.shape[1:]
        """Shape of the transfer set's inputs as networks get them, in view 0."""
        if _kind(self.first) != _kind(shown):
            raise BadDataError(
                self.where,
                expected=f"inputs of {shown.dtype}, as in the transfer set"
                + (" as its views are made" if shown.dtype != rows.first.dtype else ""),
                found=f"{self.first.dtype}",
                remedy="prepare both sets alike: networks divide uint8 by 255, and nothing else",
            )
        (first,) = fetch_items(self.dataset, [0])
        if (
            not split_item(first, f"{self.where}, example 0").is_labelled
            or getattr(self.dataset, "labels", ()) is None
        ):
            raise BadDataError(
                self.where,
                expected="labelled examples, (input, label)",
                found="a set without labels",
                remedy=f"evaluate on a labelled set, or drop [{name}]",
            )
        self._class_of = match_classes(self.class_names, rows.class_names, rows.num_classes, self.where)

    def again(self) -> "EvaluationExamples":
        """Return the set of a second call of the factory, its labels in the same numbers."""
        return EvaluationExamples(*self._made_of)

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


def content_of(table: EvaluationSet | None, base: Path) -> Any:
    """Return the content of a validation set, for the identity of a model that it chooses; None without one.

    base: folder of relative file names. The set is read once. Raises as `Examples`.
    """
    if table is None:
        return None
    if table._content is None:
        table._content = set_identity(Examples(table, base, "validation_set"))
    return table._content


def _kind(inputs: Shaped[np.ndarray, "..."]) -> str:
    """Return what networks tell apart in a dtype: uint8, which they divide by 255, integers, fractions, booleans."""
    return "uint8" if inputs.dtype == np.uint8 else inputs.dtype.kind.replace("u", "i")


def warn_if_unlike(examples: EvaluationExamples, rows: Examples) -> None:
    """Warn of a set whose inputs have another shape or scale than those of the transfer set."""
    if examples.first.shape != examples.shape_of_views:
        log.warning(
            "%s: inputs of shape %s, those of the transfer set have %s",
            examples.where,
            examples.first.shape,
            examples.shape_of_views,
        )
    (mean, deviation), (expected, usual) = _moments(examples), _moments(rows)
    is_number = examples.first.dtype.kind in "fu" and _kind(examples.first) == _kind(rows.first)
    if not (0 < usual < np.inf and np.isfinite(mean)) or not is_number:
        return
    if not 1 / _SPREAD <= deviation / usual <= _SPREAD or abs(mean - expected) > _APART * usual:
        log.warning(
            "%s: the numbers of its inputs (mean %.3g, deviation %.3g) are unlike those of the transfer set (mean %.3g, "
            "deviation %.3g); prepare both sets alike",
            examples.where,
            mean,
            deviation,
            expected,
            usual,
        )


def warn_of_first_class(examples: EvaluationExamples, labels: Int64[np.ndarray, " rows"]) -> None:
    """Warn of labels that seem to count from 1, where they are taken by number. labels: of all examples."""
    known = labels[labels >= 0]
    has_names = bool(examples.class_names) and not is_numbered(examples.dataset)
    if has_names or not len(known) or int(known.min()) != 1:
        return
    log.warning(
        "%s: no example of class 0: the labels run from 1 to %d, and labels count from 0; if yours count from 1, set "
        "first_label = 1 in args, or subtract 1 from them",
        examples.where,
        int(known.max()),
    )


def _moments(examples: Examples) -> tuple[float, float]:
    """Return mean and deviation of all numbers in a few examples, spread over the set."""
    indices = np.unique(np.linspace(0, len(examples) - 1, _COMPARED).astype(np.int64))
    inputs, _ = examples.fetch(indices.tolist())
    return float(inputs.mean(dtype=np.float64)), float(inputs.std(dtype=np.float64))
