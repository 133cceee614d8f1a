"""Batches of a labelled set on a device, for the validation of a training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ...storage.errors import ConfigError
from ..evaluation_set import EvaluationExamples, SetName, content_of, warn_if_unlike
from ..transfer import Examples
from ..workspace import Workspace


@dataclass(frozen=True)
class LabelledBatch:
    """Inputs and their labels, on a device."""

    inputs: Tensor
    """(batch, …)."""
    labels: Int64[Tensor, " batch"]
    """Class of each, -1 if unknown."""

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int) -> "LabelledBatch":
        """Return the first rows."""
        return LabelledBatch(self.inputs[:count], self.labels[:count])


@dataclass(frozen=True)
class LabelledBatches:
    """The examples of a set in order, a batch at a time; each iteration is the whole set."""

    examples: Examples
    """The set, fetched anew in every iteration."""
    batch_size: int
    """Examples that are held together."""
    device: torch.device
    """Device of the batches."""
    indices: Int64[np.ndarray, " some"] | None = None
    """Examples that are taken; all by default."""

    def __iter__(self) -> Iterator[LabelledBatch]:
        taken = range(len(self.examples)) if self.indices is None else self.indices.tolist()
        for start in range(0, len(taken), self.batch_size):
            inputs, labels = self.examples.fetch(taken[start : start + self.batch_size])
            yield LabelledBatch(
                torch.from_numpy(inputs).to(self.device), torch.from_numpy(labels).to(self.device)
            )


def open_set(work: Workspace, name: str, *, chooses: bool) -> EvaluationExamples:
    """Open the validation set or the evaluation set of an experiment, with a warning if its inputs are of another scale.

    chooses: whether its figures choose the weights that are kept; then it is not the set that models are scored on.
    Raises ConfigError or BadDataError for a set that cannot be used.
    """
    experiment = work.experiment
    if chooses and None not in (experiment.evaluation_set, experiment.validation_set):
        contents = [
            content_of(table, experiment.base)
            for table in (experiment.validation_set, experiment.evaluation_set)
        ]
        if contents[0] == contents[1]:
            raise ConfigError(
                "validation_set",
                expected="examples besides those of the evaluation set, for keep = 'best'",
                found="the same examples, whose scores would be those of the choice",
                remedy="set validation = 0.1, a share of the rows that it does not learn from, or name another set",
            )
    examples = EvaluationExamples(work.experiment, work.rows, cast(SetName, name))
    if work.ranks.is_first:
        warn_if_unlike(examples, work.rows)
    return examples


def without_teachers(logits: Tensor, batch: Any) -> None:
    """Return no KL: the teachers' logits of a set that is not in the store are not known."""
