"""The loss of a student's batch, from its logits, the teachers' and the labels.

Most losses are means over rows: each rank computes its own, and the step takes their mean, weighted by rows. DIST compares
the rows of a batch with each other, and a mean over labelled rows is none over all rows; for these the rows of all ranks
are gathered first (`StudentLoss.is_of_all_ranks`).
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from .. import losses
from ..experiment.tables import Student
from ..losses import Distillation, hard_cross_entropy, soft_targets
from ..runtime.ranks import ALONE, Ranks
from ..stream.batch import TorchBatch

Matching = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student's logits, teachers' logits, labels) -> loss."""


class StudentLoss:
    """The loss of a student's batch."""

    def __init__(
        self,
        student: Student,
        weights: Mapping[str, float],
        *,
        labels_are_complete: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        """Prepare the loss. weights: of the teachers, by name. labels_are_complete: whether every row has a label."""
        self._student, self._weights, self._ranks = student, weights, ranks
        needs_whole = student.targets == "soft" and student.loss.name == "dist"
        incomplete = student.labels_needed_for is not None and not labels_are_complete
        self.is_of_all_ranks = ranks.size > 1 and (needs_whole or incomplete)
        """Whether a value is the loss of the rows of all ranks, and not of this rank's."""
        self._hard_weight = student.hard_weight
        self._distillation = self._matching = None
        if student.targets == "soft":
            # The hard term is of logits that are not standardised: it is then added in `__call__`.
            within = 0.0 if student.standardise else student.hard_weight
            if student.loss.name == "distillation":
                self._distillation = Distillation(student.temperature, within)
            else:
                self._matching = _matching(student, within)

    def __call__(self, logits: Tensor, batch: TorchBatch) -> Tensor:
        """Return the loss, nats, a mean over rows; its gradient is that of this rank's logits."""
        student = self._student
        labels = self._of_all(batch.labels)
        logits = self._of_all(logits)
        if student.targets == "hard":
            return hard_cross_entropy(logits, labels, student.train.label_smoothing)
        given = {name: self._of_all(z) for name, z in batch.teacher_logits(student.temperature).items()}
        own = logits
        if student.standardise:
            given = {name: losses.standardise(z) for name, z in given.items()}
            own = losses.standardise(logits)
        if self._distillation is not None:
            targets = soft_targets(given, student.temperature, self._weights, student.mean)
            value: Tensor = self._distillation(own, targets, labels)
        else:
            assert self._matching is not None  # soft targets have one of the two
            mixed = losses.ensemble_logits(given, student.temperature, self._weights, student.mean)
            value = self._matching(own, mixed, labels)
        if student.standardise and self._hard_weight:
            value = value + self._hard_weight * hard_cross_entropy(logits, labels)
        return value

    def _of_all(self, rows: Tensor) -> Tensor:
        return self._ranks.rows_of_all(rows) if self.is_of_all_ranks else rows


def _matching(student: Student, hard_weight: float) -> Matching:
    """Return the loss that the table names."""
    name, numbers = student.loss.name, student.loss.numbers
    if name == "logit_matching":
        return losses.LogitMatching(hard_weight=hard_weight)
    if name == "dkd":
        return losses.DecoupledDistillation(student.temperature, hard_weight=hard_weight, **numbers)
    return losses.Dist(student.temperature, hard_weight=hard_weight, **numbers)
