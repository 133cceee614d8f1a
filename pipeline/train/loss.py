"""The loss of a student's batch, from its logits, the teachers' and the labels.

Most losses are means over rows: each rank computes its own, and the step takes their mean, weighted by rows. DIST compares
the rows of a batch with each other, and a mean over labelled rows is none over all rows; for these the rows of all ranks
are gathered first (`StudentLoss.is_of_all_ranks`).
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from .. import losses
from ..experiment.tables import Student
from ..losses import Distillation, hard_cross_entropy, soft_targets
from ..losses.divergence import from_cross_entropy
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
        self._last: Callable[[], Tensor] | None = None
        if student.targets == "soft":
            # The hard term is added in `__call__`: it is of logits that are not standardised, and no part of the KL.
            if student.loss.name == "distillation":
                self._distillation = Distillation(student.temperature)
            else:
                self._matching = _matching(student)

    def __call__(self, logits: Tensor, batch: TorchBatch) -> Tensor:
        """Return the loss, nats, a mean over rows; its gradient is that of this rank's logits."""
        student = self._student
        labels = self._of_all(batch.labels)
        logits = self._of_all(logits)
        if student.targets == "hard":
            return hard_cross_entropy(logits, labels, student.train.label_smoothing)
        given = {name: self._of_all(z) for name, z in batch.teacher_logits(student.temperature).items()}
        own, given = self._compared(logits, given)
        if self._distillation is not None:
            targets = soft_targets(given, student.temperature, self._weights, student.mean)
            value: Tensor = self._distillation(own, targets)
            self._last = partial(from_cross_entropy, value.detach(), targets, student.temperature)
        else:
            assert self._matching is not None  # soft targets have one of the two
            mixed = losses.ensemble_logits(given, student.temperature, self._weights, student.mean)
            value = self._matching(own, mixed, labels)
            self._last = partial(_from_logits, own.detach(), mixed, student.temperature)
        if self._hard_weight:
            value = value + self._hard_weight * hard_cross_entropy(logits, labels)
        return value

    def divergences(self, logits: Tensor, batch: TorchBatch) -> Tensor | None:
        """Return the KL of each row, as `divergence` means it, of rows that are not learned from."""
        student = self._student
        if student.targets == "hard":
            return None
        own, given = self._compared(logits, batch.teacher_logits(student.temperature))
        targets = soft_targets(given, student.temperature, self._weights, student.mean)
        return losses.kl_divergence(own, targets, student.temperature)

    def _compared(self, logits: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits that are compared, the student's and the teachers': standardised, if the table asks."""
        if not self._student.standardise:
            return logits, given
        return losses.standardise(logits), {name: losses.standardise(z) for name, z in given.items()}

    def divergence(self) -> Tensor | None:
        """Return the mean KL from the student to the targets in the last batch, nats; None where targets are labels.

        It is that at the temperature, of standardised logits if those are compared. Whatever the loss, 0 is the student
        that its teachers are.
        """
        return None if self._last is None else self._last()

    def _of_all(self, rows: Tensor) -> Tensor:
        return self._ranks.rows_of_all(rows) if self.is_of_all_ranks else rows


def _matching(student: Student) -> Matching:
    """Return the loss that the table names, without its hard term."""
    name, numbers = student.loss.name, student.loss.numbers
    if name == "logit_matching":
        return losses.LogitMatching()
    if name == "dkd":
        return losses.DecoupledDistillation(student.temperature, hard_weight=0.0, **numbers)
    return losses.Dist(student.temperature, hard_weight=0.0, **numbers)


@torch.no_grad()
def _from_logits(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """Return the KL of a batch from the logits of both."""
    targets = losses.soften(teachers, temperature)
    return losses.kl_divergence(student, targets, temperature).sum() / max(len(targets), 1)
