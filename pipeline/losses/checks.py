"""Checks of the tensors that a loss takes.

No check reads a value on an accelerator, because the host would have to wait for it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...storage.errors import BadDataError, BadLogitsError, ConfigError


def widened(logits: object, where: str = "logits") -> Tensor:
    """Return logits in float32, or in float64 if they are float64. Raises BadLogitsError as `check_floating`."""
    # Autocast lowers matrix products and convolutions only, and the losses have none.
    floating = check_floating(logits, where)
    return floating if floating.dtype == torch.float64 else floating.float()


def check_floating(logits: object, where: str = "logits") -> Tensor:
    """Return a floating tensor; refuse codes, top-k rows and several teachers. Raises BadLogitsError."""
    if isinstance(logits, Tensor) and logits.is_floating_point():
        return logits
    if isinstance(logits, Mapping):
        raise BadLogitsError(
            where,
            expected="the logits of 1 teacher",
            found=f"the logits of {len(logits)} teachers",
            remedy="combine them first: `ensemble_logits(batch.logits, temperature)`",
        )
    found = f"{logits.dtype} codes" if isinstance(logits, Tensor) else type(logits).__name__
    raise BadLogitsError(
        where,
        expected="floating logits",
        found=f"{found}, as they are stored",
        remedy="decode them first: `batch.teacher_logits(temperature)`, or a stream with decode=True",
    )


def widened_pair(student_logits: object, teacher_logits: object) -> tuple[Tensor, Tensor]:
    """Return student's and teacher's logits in the wider dtype of the two.

    Raises BadLogitsError unless both are floating tensors of one shape (rows, classes).
    """
    student, teacher = widened(student_logits, "student_logits"), widened(teacher_logits, "teacher_logits")
    check_same_shape(student, teacher, "teacher_logits")
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(dtype), teacher.to(dtype)


def check_same_shape(student: Tensor, other: Tensor, where: str) -> None:
    """Raise BadLogitsError unless both are (rows, classes), so that nothing is broadcast."""
    if student.ndim != 2:
        raise BadLogitsError(
            "student_logits",
            expected="the shape (rows, classes)",
            found=f"{tuple(student.shape)}",
            remedy="reshape them",
        )
    if other.shape != student.shape:
        raise BadLogitsError(
            where,
            expected=f"the shape of the student's logits, {tuple(student.shape)}",
            found=f"{tuple(other.shape)}",
            remedy="give both the same rows and classes",
        )


def check_labels(labels: Tensor | None, logits: Tensor, needed_for: str, remedy: str) -> Tensor:
    """Return the labels if they are int64, one a row, and, on the CPU, class numbers or -1.

    needed_for, remedy: for the message if there are no labels. On an accelerator the kernels assert the range.
    Raises ConfigError without labels, BadDataError for wrong ones.
    """
    if labels is None:
        raise ConfigError("labels", expected=f"labels, for {needed_for}", found="labels=None", remedy=remedy)
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise BadDataError(
            "labels",
            expected=f"int64 of shape ({len(logits)},), one a row",
            found=f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}",
            remedy="check that labels and logits belong together",
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels < -1) | (labels >= logits.shape[1])]
        if len(wrong):
            raise BadDataError(
                "labels",
                expected=f"classes from 0 to {logits.shape[1] - 1}, or -1 where unknown",
                found=str(int(wrong[0])),
                remedy="check that labels and logits belong together",
            )
    return labels


def check_probabilities(targets: Tensor) -> None:
    """Refuse numbers below 0, which are logits. Raises BadLogitsError; checks tensors of the CPU only."""
    if targets.device.type == "cpu" and targets.numel() and not torch.compiler.is_compiling():
        least = float(targets.detach().min())
        if least < 0:
            raise BadLogitsError(
                "targets",
                expected="probabilities, from 0 to 1",
                found=f"numbers down to {least:.4g}, as logits are",
                remedy="pass soft_targets(logits, temperature)",
            )


def mean_over_rows(rows: Tensor) -> Tensor:
    """Return the mean over rows, or 0 with a gradient of 0 if a rank has no rows in a step."""
    return rows.mean() if len(rows) else rows.sum()
